"""Writes docs/commands.md and docs/options.md from the parsers of the commands and the options of a run.

python -m bench.reference
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from mlxzo.cli.main import COMMANDS, command_parser
from mlxzo.cli.options import default_text, help_text
from mlxzo.core.config import options
from mlxzo.core.options import GROUP_TITLES, Option, flag, value_type

DOCS = Path(__file__).parents[1] / "docs"
_NOTE = "<!-- written by `python -m bench.reference`: edit the help texts in the code instead -->"


def pages() -> dict[str, str]:
    """The generated pages: file name in docs/ -> text."""
    return {"commands.md": "\n".join(_commands()) + "\n", "options.md": "\n".join(_options()) + "\n"}


def _commands() -> Iterator[str]:
    yield from ("# Commands", "", _NOTE, "", "| command | does |", "|---|---|")
    for name, (_, summary) in COMMANDS.items():
        yield f"| [`mlxzo {name}`](#mlxzo-{name}) | {summary} |"
    for name in COMMANDS:
        parser = command_parser(name)
        yield from _command(parser, "##", parser.description or "")


def _command(parser: argparse.ArgumentParser, heading: str, description: str) -> Iterator[str]:
    """A section on one command, and one on each of its actions."""
    yield from ("", f"{heading} {parser.prog}")
    for paragraph in description.strip().split("\n\n"):
        code = all(line.startswith(("  ", "mlxzo ")) for line in paragraph.splitlines())
        yield from ("", *(("```", textwrap.dedent(paragraph), "```") if code else (_escaped(paragraph),)))
    texts = {field.name: help_text(field) for field in options()}
    shared, own = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        if action.help == texts.get(action.dest):
            shared.append(action.dest)
        elif action.dest != "help" and action.help != argparse.SUPPRESS:
            own.append(action)
    if own:
        yield from ("", "| argument | meaning |", "|---|---|", *map(_row, own))
    if shared:
        left_out = [name for name in texts if name not in shared]
        few = len(shared) < len(left_out)
        named = f"`{'`, `'.join(map(flag, shared if few else left_out))}`"
        which = f": {named}" if few else f", all but {named}" if left_out else ", all of them"
        yield from ("", f"[Options of a run](options.md){which}.")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: str(choice.help) for choice in action._choices_actions}
            for name, subparser in action.choices.items():
                yield from _command(subparser, "###", f"{summaries[name][0].upper()}{summaries[name][1:]}.")


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper())
    words = [*action.option_strings[:1], *([] if action.nargs == 0 else [str(value)])]
    if action.nargs in ("+", "*"):
        words.append("...")
    name = " ".join(words).replace("|", r"\|")
    return f"| `{name}` | {_escaped((action.help or '').replace('%%', '%'))} |"


def _options() -> Iterator[str]:
    yield from ("# Options of a run", "", _NOTE, "")
    yield "Flags of `mlxzo train`; the same names with underscores in a YAML file for `--config`."
    groups: dict[str, list[str]] = {}
    for field in options():
        option: Option = field.metadata["option"]
        cells = (_values(field, option), default_text(field), option.help)
        row = " | ".join([f"`{flag(field.name)}`", *map(_escaped, cells)])
        groups.setdefault(option.group, []).append(f"| {row} |")
    for group, rows in groups.items():
        yield from ("", f"## {GROUP_TITLES.get(group, group)}", "", "| option | value | default | meaning |")
        yield from ("|---|---|---|---|", *rows)


def _values(field: dataclasses.Field, option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    kind = {str: "text", int: "whole number", float: "number"}[value_type(field)]
    parts = [f"{kind} of {option.unit}" if option.unit else kind]
    if option.minimum is not None:
        parts.append(f"{'above' if option.exclusive_minimum else 'at least'} {_number(option.minimum)}")
    if option.maximum is not None:
        parts.append(f"at most {_number(option.maximum)}")
    return ", ".join(parts)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _escaped(text: str) -> str:
    """Text in which Markdown finds no markup of its own, but code between backticks."""
    return "`".join(
        piece if place % 2 else re.sub(r"([*|<])", r"\\\1", piece) for place, piece in enumerate(text.split("`"))
    )


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
