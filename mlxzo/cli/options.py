"""Flags of the commands: one for each field of RunConfig, and the few that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..core.config import RunConfig, options
from ..core.files import user_path
from ..core.options import GROUP_TITLES, Option, flag, former_name, value_type

if TYPE_CHECKING:
    from ..engine.tuned_source import Source


def add_config_options(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """Adds a flag for each option of a run, or for those in `names`. Values stay text: RunConfig checks all at once."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in options():
        if names is not None and field.name not in names:
            continue
        option: Option = field.metadata["option"]
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(GROUP_TITLES.get(option.group, option.group))
        groups[option.group].add_argument(
            flag(field.name),
            dest=field.name,
            default=argparse.SUPPRESS,
            metavar=_metavar(field, option),
            help=help_text(field).replace("%", "%%"),
        )
        if field.name == "max_seconds":
            groups[option.group].add_argument(
                "--minutes",
                dest="max_minutes",
                default=argparse.SUPPRESS,
                metavar="NUMBER",
                help="the same as --max-seconds, in minutes",
            )
        if (former := former_name(field.name)) != field.name:
            parser.add_argument(flag(former), dest=field.name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def config_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were given as flags."""
    given = vars(arguments)
    values = {field.name: given[field.name] for field in options() if field.name in given}
    if "max_minutes" in given:
        values["max_seconds"] = _in_seconds(given["max_minutes"])
    return values


def _in_seconds(minutes: str) -> float | str:
    """Minutes in seconds; a text that is no number as it is, so that it is reported with all other problems."""
    try:
        return 60.0 * float(minutes)
    except ValueError:
        return minutes


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result to stdout as one JSON document")


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="allow the runs to execute the judge that --reward-command or --reward-function names",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where tuned weights come from; `source_of` reads them."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--run",
        metavar="RUN",
        help="a run directory, the id of a run, or what `mlxzo export` made of one: a folder or a journal",
    )
    source.add_argument("--adapter", metavar="DIR", help="an adapter folder, of `mlxzo export` or of mlx-lm")
    source.add_argument("--journal", metavar="FILE", help="a journal, of `mlxzo export` or a run's journal.bin")


def source_of(arguments: argparse.Namespace) -> Source | None:
    """The tuned weights that the flags name; None for a model by itself.

    Raises:
        ConfigError: there is no such run.
    """
    from ..core.run_directory import RunDirectory
    from ..engine.task_record import export_options
    from ..engine.tuned_source import Source
    from ..models.adapter_folder import ADAPTER_CONFIG

    if arguments.run is not None:
        path = user_path(arguments.run).absolute()
        if path.is_file():
            return Source("journal", path)
        if (path / ADAPTER_CONFIG).is_file():
            return Source("adapter", path)
        if (path / "config.json").is_file():
            # A fused model needs no other, and no source.
            arguments.model = str(path)
            for name, value in export_options(path).items():
                vars(arguments).setdefault(name, value)
            return None
        return Source("run", RunDirectory.open(arguments.run, getattr(arguments, "out", RunConfig.out)).path)
    for kind in ("adapter", "journal"):
        if (path := getattr(arguments, kind)) is not None:
            return Source(kind, user_path(path).absolute())
    return None


def _metavar(field: dataclasses.Field, option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    return {str: "TEXT", int: "N", float: "X"}[value_type(field)]


def help_text(field: dataclasses.Field) -> str:
    """The help of an option with its unit, its least value and its default."""
    option: Option = field.metadata["option"]
    facts = [option.unit] if option.unit else []
    if option.minimum is not None:
        facts.append(f"{'above' if option.exclusive_minimum else 'at least'} {option.minimum:g}")
    return f"{option.help} ({'; '.join([*facts, f'default: {default_text(field)}'])})"


def default_text(field: dataclasses.Field) -> str:
    """The default of an option, and the word for its other automatic value if it has one."""
    auto = field.metadata["option"].auto
    if field.default is None:
        return auto
    return f"{field.default}" + ("" if not auto else ", or `all`" if auto == "all" else f"; all: {auto}")
