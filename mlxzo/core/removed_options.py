"""Options, values and commands of version 0.1 that are gone, and the advice to those who still name one.

What a run of version 0.1 recorded is read as long as it means what every run does today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PROBE = "give --lr, or keep the default"
# Option -> its former default, which asks for nothing, and the advice.
_OPTIONS: dict[str, tuple[Any, str]] = {
    "momentum": (0.0, "leave it out, or train with mlxzo 0.1"),
    "probe": ("off", f"leave it out, and {_PROBE}"),
    "direction_scale": ("auto", "leave it out: each kind of parameter has a length of its own"),
    "clip": (None, "leave it out: the update rule adaptive cuts derivatives at 3 times their running rms"),
    "check_every": (100, "leave it out: ranks compare their weights every 100 steps"),
    "stall_seconds": (120.0, "leave it out: ranks wait 10 minutes for one another"),
    "sides": ("separate", "leave it out: each perturbed copy of the weights has its own forward pass"),
}
# Option and value -> the advice.
_VALUES: dict[tuple[str, str], str] = {
    ("estimator", "fzoo"): "leave it out for rsgn, the default, or use spsa",
    ("lr", "auto"): "give a number, or leave it out for the default of the scope",
    ("scope", "auto"): "name a scope, or leave it out for the default",
}
_COMMANDS = {"probe": _PROBE}


def removed_command(name: str) -> str:
    """The problem of calling a command that is gone; empty where it is not."""
    return f"the command {name} was removed; {_COMMANDS[name]}" if name in _COMMANDS else ""


def removed_problem(name: Any, raw: Any = None) -> str:
    """The problem of naming an option, or one of its values, that is gone; empty where neither is."""
    if name in _OPTIONS:
        return f"{name}: this option was removed; {_OPTIONS[name][1]}"
    if isinstance(raw, str) and (name, raw.lower()) in _VALUES:
        return f"{name}: its value {raw.lower()} was removed; {_VALUES[name, raw.lower()]}"
    return ""


def without_removed(values: Mapping[Any, Any], problems: list[str] | None = None) -> dict[Any, Any]:
    """The options that there still are.

    Args:
        problems: what was removed is added to it, but for options with their former default; None to leave it out in
            silence, where nothing depends on it any more.
    """
    kept = {name: raw for name, raw in values.items() if not removed_problem(name, raw)}
    if problems is not None:
        gone = {name: raw for name, raw in values.items() if name not in kept}
        problems += [removed_problem(name, raw) for name, raw in gone.items() if not _asks_for_nothing(name, raw, kept)]
    return kept


def _asks_for_nothing(name: str, raw: Any, others: Mapping[Any, Any]) -> bool:
    if name == "probe" and (raw is False or others.get("lr") is not None):
        # YAML takes the bare word off for a truth value. A probe never chose a rate that was there, and what it did
        # choose is in the configuration of its run.
        return True
    if name == "clip" and others.get("update") == "adaptive":
        # The former default of this rule, in the configuration of every run.
        return raw in (None, 3.0)
    return name in _OPTIONS and raw == _OPTIONS[name][0]
