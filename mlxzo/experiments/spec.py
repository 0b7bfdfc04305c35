"""Common parts of sweeps and comparisons: the planned run, and a reader that gathers all problems with their lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.config import RunConfig, options
from ..core.config_checks import ENOUGH_PROBLEMS, LONGEST_PROBLEM, option_problems
from ..core.errors import ConfigError, DataError, MlxzoError
from ..core.formatting import brief, shown
from ..core.yaml_file import GIVEN_TWICE, YamlFile
from ..runtime.preflight import check_names

if TYPE_CHECKING:
    from ..tasks.base import Task

T = TypeVar("T")

_LONGEST_LABEL = 100
_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep or a comparison.

    Attributes:
        label: the name of a contestant, or of a run within its sweep; runs that differ only in the seed share it.
        config: resolved; its `name` is the run's id.
        options: options in which the runs of a sweep, or the contestants, differ, with their values here.
    """

    label: str
    config: RunConfig
    options: Mapping[str, Any]


class SpecReader:
    """Checks the values of a sweep or a comparison one by one and gathers every problem.

    A `path` is the keys and positions that lead to a value. A `prefix` goes before the text of a problem.

    Args:
        kind: `batch` or `comparison`, for messages.
        fix: the advice that goes with the problems.
        file: the values' YAML file; None where they were not read from one.
        located: the top-level keys whose values are the file's; problems of others, such as flags, have no line.
        names: options that name something known: `task`, `model`.
    """

    def __init__(self, kind: str, fix: str, file: YamlFile | None, located: Iterable[str], names: tuple[str, ...]):
        self._kind, self._fix, self._file, self._names = kind, fix, file, names
        self._located = frozenset(located)
        self._problems: list[tuple[int, str]] = []
        self._tasks: dict[tuple[str, str | None], Task | None] = {}

    def raise_problems(self) -> None:
        """Raises the problems that were found, if any.

        Raises:
            ConfigError: lists every problem in the order of the lines.
        """
        if not self._problems:
            return
        in_order = sorted(dict.fromkeys(self._problems), key=lambda problem: problem[0])
        details = [f"line {line}: {text}" if line else text for line, text in in_order]
        message = details[0] if len(details) == 1 else f"{len(details)} problems in the {self._kind}"
        source = f"{self._file.path}: " if self._file else ""
        raise ConfigError(source + message, self._fix, details if len(details) > 1 else ())

    def problem(self, path: tuple[Any, ...], text: str) -> None:
        line = self._file.line(*path) if self._file and path and path[0] in self._located else None
        self._problems.append((line or 0, brief(text, LONGEST_PROBLEM)))

    def problems_of(
        self, error: MlxzoError, path: tuple[Any, ...], prefix: str = "", known: Collection[str] = ()
    ) -> None:
        """Adds the problems of an error that are not `known`, each at the option that it begins with."""
        for text in problem_texts(error):
            if text not in known:
                self.problem((*path, text.partition(":")[0]), prefix + text)

    def check_answers(self, config: RunConfig) -> None:
        """Checks that the rows of a run have answers where it needs them; own rows are read once for all runs.

        Raises:
            ConfigError: they are prompts alone. Rows that cannot be read are left to the run, which lists all problems.
        """
        from ..tasks.registry import check_answers, task_alone

        if config.objective == "reward":
            return
        rows = (config.task, config.data)
        if rows not in self._tasks:
            self._tasks[rows] = None
            with contextlib.suppress(MlxzoError):
                self._tasks[rows] = task_alone(config)
        if (task := self._tasks[rows]) is not None:
            try:
                check_answers(config, task)
            except DataError as error:
                raise ConfigError(f"{error.message}: {error.fix}") from None

    def check_repeated(self, path: tuple[Any, ...] = ()) -> None:
        """Adds the keys that a mapping of the file has more than once."""
        if self._file and (not path or path[0] in self._located):
            self._problems += [(line, f"{brief(key)}: {GIVEN_TWICE}") for key, line in self._file.repeated(*path)]

    def parsed(self, key: str, raw: Any, parse: Callable[[Any], T], default: T) -> T:
        """The value of a top-level key; `default` where it is None or wrong (ValueError)."""
        try:
            return default if raw is None else parse(raw)
        except ValueError as error:
            self.problem((key,), f"{key}: {error}")
            return default

    def label(self, raw: Any, path: tuple[Any, ...], default: str, prefix: str = "") -> str:
        """The name that a run, a grid or a contestant has been given; `default` where it is wrong."""
        if isinstance(raw, str) and raw.strip() and len(raw) <= _LONGEST_LABEL:
            return raw
        expected = f"expected a text of at most {_LONGEST_LABEL} characters"
        self.problem((*path, "name"), f"{prefix}name: {expected}, not {shown(raw)}")
        return default

    def options(
        self, raw: Mapping[Any, Any], path: tuple[Any, ...], *, reserved: Mapping[str, str] = _NOTHING, prefix: str = ""
    ) -> dict[str, Any]:
        """The options of a mapping that are right by themselves."""
        return {key: value for key, value in raw.items() if self.is_right(key, value, (*path, key), reserved, prefix)}

    def is_right(
        self, key: Any, value: Any, path: tuple[Any, ...], reserved: Mapping[str, str] = _NOTHING, prefix: str = ""
    ) -> bool:
        """True if a value suits its option, whatever the others are; else a problem is added.

        Args:
            reserved: options that may not be here, and the reason for each.
        """
        if len(self._problems) >= ENOUGH_PROBLEMS:
            return False
        found = [f"{key}: {reserved[key]}"] if key in reserved else option_problems(options(), key, value)
        if not found and key in self._names:
            found = _name_problems(key, value)
        for text in found:
            self.problem(path, prefix + text)
        return not found


def problem_texts(error: MlxzoError) -> list[str]:
    """The single problems of an error."""
    return error.details or [error.message]


def _name_problems(key: str, value: Any) -> list[str]:
    try:
        check_names(replace(RunConfig(), **{key: str(value)}))
    except MlxzoError as error:
        return [f"{key}: {text}" for text in problem_texts(error)]
    return []
