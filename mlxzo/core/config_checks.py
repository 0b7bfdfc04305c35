"""Problems of a configuration as a whole: options that do not go together, unknown names, and the error of them all."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .formatting import brief, shown
from .mlx_lm_options import name_here
from .options import current_name, parse_value, value_problems
from .removed_options import removed_problem
from .suggestion import did_you_mean

if TYPE_CHECKING:
    from .config import RunConfig


LONGEST_PROBLEM = 400
# So many are those of a file of another kind; looking for the option that each key may have meant would take minutes.
ENOUGH_PROBLEMS = 500

WITHOUT = {"rsgn": ("lr", "update"), "es": ("update",)}
"""Options that an estimator does not have. A resolved configuration has values for them, which nothing reads."""


def combination_problems(config: RunConfig) -> list[str]:
    """Problems of options that do not go together, one sentence each."""
    problems = _problems_of_objective(config)
    if config.method == "bp":
        problems += _problems_of_backpropagation(config)
    elif config.estimator == "rsgn":
        problems += _problems_of_rsgn(config)
    elif config.estimator == "es":
        problems += _problems_of_es(config)
    # The journals of other estimators record 0.
    if config.pull and not config.evolves:
        problems.append(f"pull: only the estimator es pulls towards the start; {_instead_of_pull(config)}")
    return problems


def _instead_of_pull(config: RunConfig) -> str:
    if not config.writes or config.method != "mezo":
        return "leave it out; es is for objectives of generated answers (f1, exact_match, reward)"
    if config.estimator is None:
        other = "update" if config.update is not None else "weight_decay"
        return f"leave it out, or {other}, which stands for the estimator spsa"
    return "leave it out, or use --estimator es"


def _problems_of_rsgn(config: RunConfig) -> list[str]:
    problems = []
    if config.objective != "loss":
        others = "es or spsa" if config.writes else "spsa"
        problems.append(f"estimator: rsgn minimises the loss; with the objective {config.objective} use {others}")
    problems += [
        f"{name}: the estimator rsgn has no learning rate; leave it out, or use --estimator spsa"
        for name in WITHOUT["rsgn"]
        if getattr(config, name) is not None
    ]
    if config.weight_decay:
        problems.append("weight_decay: the estimator rsgn has none; leave it out, or use --estimator spsa")
    return problems


def _problems_of_es(config: RunConfig) -> list[str]:
    problems = []
    if not config.writes:
        others = "rsgn or spsa" if config.objective == "loss" else "spsa"
        problems.append(
            f"estimator: es is for objectives of generated answers (f1, exact_match, reward); with the objective "
            f"{config.objective} use {others}"
        )
    if config.update is not None:
        problems.append("update: the estimator es has one rule; leave it out, or use --estimator spsa")
    if config.weight_decay:
        problems.append("weight_decay: the estimator es has none; use --pull, or --estimator spsa")
    return problems


def _problems_of_objective(config: RunConfig) -> list[str]:
    problems = []
    judges = [name for name in ("reward_command", "reward_function") if getattr(config, name) is not None]
    if len(judges) > 1:
        problems.append("reward_command: reward_function names another judge: leave one of them out")
    # A task of one's own may name its judges, which its file says.
    if config.objective == "reward" and not judges and not config.task.endswith((".yaml", ".yml")):
        problems.append(
            "objective: reward needs a judge: give --reward-command or --reward-function, or a task YAML with `reward` "
            "(docs/tasks.md)"
        )
    function = config.reward_function
    if function and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", function):
        problems.append(f"reward_function: expected MODULE:FUNCTION, not {shown(function)}")
    if config.temperature and not config.writes:
        problems.append(f"temperature: with the objective {config.objective} no answers are generated in steps")
    if config.top_p < 1.0 and not config.temperature:
        problems.append("top_p: it applies to sampling: give a temperature as well")
    return problems


def _problems_of_backpropagation(config: RunConfig) -> list[str]:
    problems = []
    if config.objective != "loss":
        problems.append(
            f"objective: {config.objective} is for the method mezo: backpropagation follows the gradient of the loss"
        )
    if config.parallel == "directions":
        problems.append("parallel: only the method mezo has directions; use data")
    if config.optimizer == "sgd" and config.lr is None:
        problems.append("lr: sgd has no rate that suits every model; give one, such as 0.01, or use adam")
    return problems


def parse_values(
    known: Mapping[str, dataclasses.Field], values: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Parses the values of known options; adds unknown names and bad values to `problems`."""
    parsed: dict[str, Any] = {}
    for key, raw in values.items():
        if len(problems) >= ENOUGH_PROBLEMS:
            break
        if key not in known:
            problems.append(no_such_option(key, known))
            continue
        try:
            parsed[key] = parse_value(known[key], raw)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    return parsed


def option_problems(known: Iterable[dataclasses.Field], name: Any, raw: Any) -> list[str]:
    """Problems of an option's name and value, a text or a Python value, regardless of the other options."""
    if gone := removed_problem(name, raw):
        return [gone]
    by_name = {f.name: f for f in known}
    f = by_name.get(current_name(name))
    if f is None:
        return [no_such_option(name, by_name)]
    try:
        return value_problems(f, parse_value(f, raw))
    except ValueError as error:
        return [f"{name}: {error}"]


def no_such_option(name: Any, known: Iterable[str]) -> str:
    """The problem of an unknown option, with the name that is meant: mlx-lm has others, and people mistype."""
    return name_here(name) or f"{name}: no such option{did_you_mean(str(name).replace('-', '_'), known)}"


def configuration_error(problems: Sequence[str], source: str = "") -> ConfigError:
    """The error that lists all problems of a configuration.

    Args:
        source: the file of the configuration; empty without one.
    """
    problems = [brief(problem, LONGEST_PROBLEM) for problem in problems]
    where = f"{source}: " if source else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    message = where + (problems[0] if len(problems) == 1 else f"{count} in the configuration")
    fix = "`mlxzo train --help` lists every option with its range"
    return ConfigError(message, fix, problems if len(problems) > 1 else ())
