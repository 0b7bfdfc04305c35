"""One option of a run: its type, range and help, parsing and checking of its values."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from .errors import ConfigError
from .formatting import parse_bytes, shown
from .scope import Scope

GROUP_TITLES = {
    "model": "model",
    "task": "task and data",
    "method": "training",
    "mezo": "MeZO",
    "bp": "backpropagation",
    "lora": "LoRA",
    "ranks": "several processes or machines",
    "run": "evaluation and output",
}


# Former and present names of options; files and command lines may use either.
_RENAMED = {"prefix_cache": "activation_cache"}


def current_name(name: Any) -> Any:
    """`prefix_cache` -> `activation_cache`: the present name of an option that was renamed; any other name as it is."""
    return _RENAMED.get(name, name) if isinstance(name, str) else name


def former_name(name: str) -> str:
    """`activation_cache` -> `prefix_cache`: the first name of an option; any other name as it is.

    Names of runs that are made from options are made from their first names, so that earlier runs are found again.
    """
    return next((former for former, current in _RENAMED.items() if current == name), name)


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Option:
    """Help, group, unit and range of one option."""

    help: str
    group: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    auto: str = ""
    """The meaning of None, in words; empty where the option must have a value."""


def option_field(default: Any, help: str, group: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(help=help, group=group, **more)})


def parse_shares(text: str) -> tuple[float, ...]:
    """`2,1,1` as numbers.

    Raises:
        ValueError: with a sentence naming what is expected.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0.0 < share < math.inf for share in shares):
        raise ValueError(f"expected positive numbers with commas between them, such as 2,1,1, not {shown(text)}")
    return shares


def value_type(f: dataclasses.Field) -> type:
    """str, int or float: the type of an option that is set."""
    return {"str": str, "int": int, "float": float}[f.type.split(" ")[0]]


def parse_value(f: dataclasses.Field, raw: Any) -> Any:
    """Converts a raw value (text from the command line or a form, or a YAML scalar) to the option's type.

    Raises:
        ValueError: with a sentence naming what is expected.
    """
    option: Option = f.metadata["option"]
    # Where the default is none, an empty text is a mistake, such as a variable of a shell that is not set.
    words = ("auto", "all", "null") if option.auto == "none" else ("auto", "all", "null", "")
    if option.auto and (raw is None or (isinstance(raw, str) and raw.lower() in words)):
        return None
    kind = value_type(f)
    # YAML takes the bare words on and off for truth values.
    if isinstance(raw, bool) and (word := "on" if raw else "off") in option.choices:
        return word
    if isinstance(raw, bool) or raw is None or isinstance(raw, (list, dict)):
        raise ValueError(f"expected {_describe(kind, option)}, not {shown(raw)}")
    if kind is str:
        return str(raw)
    try:
        number = float(raw)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected {_describe(kind, option)}, not {shown(raw)}") from None
    if kind is float:
        return number
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"expected {_describe(kind, option)}, not {shown(raw)}")
    # Integers beyond 2**53 must not pass through a float.
    if isinstance(raw, int):
        return raw
    return int(raw) if re.fullmatch(r"[+-]?\d+", str(raw).strip()) else int(number)


def _describe(kind: type, option: Option) -> str:
    if option.choices:
        return "one of " + ", ".join(option.choices)
    name = {str: "text", int: "a whole number", float: "a number"}[kind]
    unit = f" of {option.unit}" if option.unit else ""
    low = option.minimum
    if low is None:
        return name + unit
    bound = f"above {low:g}" if option.exclusive_minimum else f"of at least {low:g}"
    return f"{name}{unit} {bound}" + (f" and at most {option.maximum:,.15g}" if option.maximum is not None else "")


def value_problems(f: dataclasses.Field, value: Any) -> list[str]:
    """Problems of an option's value, in sentences: its type and range, then the grammar of a text."""
    if problem := _problem(f, value):
        return [problem]
    try:
        if f.name == "scope":
            Scope.parse(value)
        elif f.name == "memory_cap" and value is not None:
            parse_bytes(value)
        elif f.name == "shares" and value is not None:
            parse_shares(value)
    except ConfigError as error:
        return [f"{error.message}: {error.fix}"]
    except ValueError as error:
        return [f"{f.name}: {error}"]
    if f.name == "name" and value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        return [
            f"name: {shown(value)} must be 1-100 letters, digits, dots, dashes or underscores, and start with a "
            "letter or digit"
        ]
    return []


def _problem(f: dataclasses.Field, value: Any) -> str | None:
    option: Option = f.metadata["option"]
    if value is None:
        return None if option.auto else f"{f.name}: must have a value"
    kind = value_type(f)
    ok = isinstance(value, str) if kind is str else isinstance(value, (int, float)) and math.isfinite(value)
    if ok and option.choices and value not in option.choices:
        near = difflib.get_close_matches(str(value), option.choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{f.name}: expected {_describe(kind, option)}, not {shown(value)}{hint}"
    if ok and option.minimum is not None:
        ok = value > option.minimum if option.exclusive_minimum else value >= option.minimum
    if ok and option.maximum is not None:
        ok = value <= option.maximum
    if ok and isinstance(value, str) and not value.strip():
        return f"{f.name}: it is empty; give a value" + (", or leave it out" if option.auto else "")
    return None if ok else f"{f.name}: expected {_describe(kind, option)}, not {shown(value)}"


def yaml_text(fields: Iterable[dataclasses.Field], values: Mapping[str, Any]) -> str:
    """The content of a configuration file: one option per line, grouped and explained."""
    lines = ["# mlxzo run configuration: `mlxzo train --config FILE` reads it"]
    group = None
    for f in fields:
        option: Option = f.metadata["option"]
        if option.group != group:
            group = option.group
            lines.append(f"\n# {group}")
        value = yaml.safe_dump(values[f.name], default_flow_style=True, allow_unicode=True)
        value = value.removesuffix("...\n").strip()
        lines.append(f"{f.name}: {value}  # {option.help}")
    return "\n".join(lines) + "\n"
