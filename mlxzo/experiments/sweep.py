"""What a batch is: runs in a YAML file, named one by one or spanned by grids, each with every seed.

    name: rates                   # optional: the file's own name
    out: runs
    seeds: [0, 1]
    defaults: {task: sst2, memory_cap: 2GB, steps: 2000}
    runs:
      - {name: backpropagation, method: bp, scope: lora}
    grid:
      lr: [1e-3, 3e-4]
      scope: [lora, norms/last-6]

A run's name follows from the batch's name, the options that its grid varies (or its own name) and its seed, so that the
same file finds its runs again. Nothing here imports MLX.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.config import RunConfig, option_problems, options
from ..core.errors import ConfigError, MlxzoError
from ..core.options import current_name, parse_value
from ..core.yaml_file import GIVEN_TWICE, YamlFile
from ..runtime.preflight import check_names
from .naming import LONGEST_NAME, read_name, read_seeds, slug

MOST_RUNS = 1000
_KEYS = ("name", "out", "seeds", "defaults", "runs", "grid")
# What the file says of all runs, in words of its own.
_OF_THE_FILE = {"name": "runs are named by the batch", "out": "write out at the top of the file"}
_OPTIONS = {field.name: field for field in options()}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a batch.

    Attributes:
        config: resolved; its `name` is the run's id.
        options: those by which runs of the batch differ, and their values in this one.
    """

    config: RunConfig
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Runs under one name, in one folder."""

    name: str
    out: Path
    runs: tuple[PlannedRun, ...]

    @property
    def folder(self) -> Path:
        """Where its summary goes. It lies among the runs and is none."""
        return self.out / self.name

    @staticmethod
    def read(path: str | Path, out: str | None = None) -> Sweep:
        """The batch in a file.

        Args:
            out: the folder of the runs, instead of the file's.

        Raises:
            ConfigError: every problem of the file at once, with its line.
        """
        file = YamlFile.read(path)
        return _Reading(file.values(), file, Path(path), out).batch()


@dataclass(frozen=True)
class _Drafted:
    """A run before its seed: what it is called within the batch, its options as they were written, and where."""

    label: str
    chosen: Mapping[str, Any]
    path: tuple[Any, ...]


class _Reading:
    """One reading of a file, gathering what is wrong with it."""

    def __init__(self, values: dict[str, Any], lines: YamlFile, path: Path, out: str | None):
        self.problems: list[tuple[int, str]] = []
        self.lines, self.path = lines, path
        self._check_keys(values)
        self.name = self._name(values.get("name"))
        self.out = out or self._out(values.get("out"))
        self.defaults = self._options(values.get("defaults"), ("defaults",))
        self.seeds = self._seeds(values.get("seeds"))
        drafted = [*self._named(values.get("runs")), *self._grids(values.get("grid"))]
        if not drafted and not {"runs", "grid"} & values.keys():
            if self.seeds is None:
                self._problem((), "it names no runs: give runs, grid or seeds")
            drafted = [_Drafted("", {}, ())]
        self.drafted = drafted

    def batch(self) -> Sweep:
        runs = self._planned()
        if self.problems:
            told = sorted(dict.fromkeys(self.problems))
            details = [f"line {line}: {text}" if line else text for line, text in told]
            message = details[0] if len(details) == 1 else f"{len(details)} problems in the batch"
            raise ConfigError(
                f"{self.path}: {message}",
                "`mlxzo batch --help` shows how it is written, and `mlxzo train --help` lists the options",
                details if len(details) > 1 else (),
            )
        varied = self._varied(runs)
        planned = [PlannedRun(config, {name: getattr(config, name) for name in varied}) for config in runs]
        return Sweep(self.name, Path(self.out).expanduser().absolute(), tuple(planned))

    def _problem(self, path: tuple[Any, ...], text: str) -> None:
        self.problems.append((self.lines.line(*path) or 0, text))

    def _check_keys(self, values: dict[str, Any]) -> None:
        self._check_repeated(())
        for key in values:
            if key in _OPTIONS and key not in _KEYS:
                self._problem((key,), f"{key}: options of all runs are written under defaults")
            elif key not in _KEYS:
                self._problem((key,), f"{key}: a batch has {', '.join(_KEYS)}, and nothing else")

    def _check_repeated(self, path: tuple[Any, ...]) -> None:
        for key, line in self.lines.repeated(*path):
            self.problems.append((line, f"{key}: {GIVEN_TWICE}"))

    def _name(self, raw: Any) -> str:
        if raw is None:
            return slug(self.path.stem, "batch")[:LONGEST_NAME]
        try:
            return read_name(raw)
        except ValueError as error:
            self._problem(("name",), f"name: {error}")
            return "batch"

    def _out(self, raw: Any) -> str:
        if raw is None:
            return RunConfig.out
        for text in option_problems("out", raw):
            self._problem(("out",), text)
        return str(raw)

    def _seeds(self, raw: Any) -> tuple[int, ...] | None:
        """The seeds that every run has; None where runs may have seeds of their own."""
        if raw is None:
            return None
        try:
            return read_seeds(raw)
        except ValueError as error:
            self._problem(("seeds",), f"seeds: {error}")
            return (0,)

    def _options(self, raw: Any, path: tuple[Any, ...]) -> dict[str, Any]:
        """A mapping of options, those left out that are wrong."""
        if raw is None:
            return {}
        if not isinstance(raw, Mapping):
            self._problem(path, f"expected `option: value` lines, not {raw!r}")
            return {}
        self._check_repeated(path)
        return {key: value for key, value in raw.items() if self._is_right(key, value, (*path, key))}

    def _is_right(self, key: Any, value: Any, path: tuple[Any, ...]) -> bool:
        if key in _OF_THE_FILE:
            found = [f"{key}: {_OF_THE_FILE[key]}"]
        else:
            found = option_problems(key, value)
        if not found and key in ("task", "model"):
            found = _name_problems(key, value)
        for text in found:
            self._problem(path, text)
        return not found

    def _named(self, raw: Any) -> Iterator[_Drafted]:
        if raw is None:
            return
        if not isinstance(raw, list) or not raw:
            self._problem(("runs",), f"runs: expected a list of at least one run, not {raw!r}")
            return
        for number, item in enumerate(raw):
            path = ("runs", number)
            if not isinstance(item, Mapping):
                self._problem(path, f"expected a run's `option: value` lines, not {item!r}")
                continue
            name = item.get("name")
            if name is not None and (not isinstance(name, str) or not name.strip() or len(name) > 100):
                self._problem((*path, "name"), f"name: expected a text of at most 100 characters, not {name!r}")
                name = f"run {number + 1}"
            chosen = self._options({key: value for key, value in item.items() if key != "name"}, path)
            yield _Drafted(_label(chosen) if name is None else name, chosen, path)

    def _grids(self, raw: Any) -> Iterator[_Drafted]:
        if raw is None:
            return
        if isinstance(raw, Mapping):
            yield from self._grid(raw, ("grid",))
        elif isinstance(raw, list) and raw:
            for number, item in enumerate(raw):
                if isinstance(item, Mapping):
                    yield from self._grid(item, ("grid", number))
                else:
                    self._problem(("grid", number), f"expected `option: [value, ...]` lines, not {item!r}")
        else:
            self._problem(("grid",), f"grid: expected `option: [value, ...]` lines, not {raw!r}")

    def _grid(self, raw: Mapping[Any, Any], path: tuple[Any, ...]) -> Iterator[_Drafted]:
        """The runs of one grid: every combination of the values of its lists; what is no list holds for all of it."""
        self._check_repeated(path)
        axes: dict[str, list[Any]] = {}
        for key, value in raw.items():
            if key == "name":
                if not isinstance(value, str) or not value.strip() or len(value) > 100:
                    self._problem((*path, key), f"name: expected a text of at most 100 characters, not {value!r}")
            elif isinstance(value, list):
                if not value:
                    self._problem((*path, key), f"{key}: it has no values")
                found = enumerate(value)
                axes[key] = [item for number, item in found if self._is_right(key, item, (*path, key, number))]
        fixed = self._options({key: raw[key] for key in raw if key != "name" and key not in axes}, path)
        if not axes:
            self._problem(path, "the grid is empty: give at least one option a list of values")
            return
        count = math.prod(map(len, axes.values())) * len(self.seeds or (0,))
        if count > MOST_RUNS:
            self._problem(path, f"the grid has {count:,} runs, and a batch at most {MOST_RUNS:,}")
            return
        for values in itertools.product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            label = f"{raw['name']} {_label(varied)}" if raw.get("name") else _label(varied)
            yield _Drafted(label, {**fixed, **varied}, path)

    def _planned(self) -> list[RunConfig]:
        """Every run with every seed, one seed of all runs after the other."""
        if len(self.drafted) * len(self.seeds or (0,)) > MOST_RUNS:
            self._problem((), f"it has more than {MOST_RUNS:,} runs, the most that a batch may have")
            return []
        found: list[RunConfig] = []
        names: set[str] = set()
        for seed in self.seeds or (None,):
            for draft in self.drafted:
                config = self._config(draft, seed)
                if config is None:
                    continue
                # On file systems that may not tell upper from lower case.
                key = str(config.name).lower()
                if key in names:
                    called = draft.label or self.name
                    self._problem(draft.path, f"more than one run is called {called!r}; give each a name of its own")
                names.add(key)
                found.append(config)
        return found

    def _config(self, draft: _Drafted, seed: int | None) -> RunConfig | None:
        values = {**self.defaults, **draft.chosen}
        if seed is not None and values.get("seed") is not None:
            self._problem((*draft.path, "seed"), "seed: the file gives every run its seeds")
            return None
        try:
            own = parse_value(_OPTIONS["seed"], values.get("seed", RunConfig.seed)) if seed is None else seed
            part = f"-{slug(draft.label, 'run')}" if draft.label else ""
            identity = {"seed": own, "name": f"{self.name}{part}-s{own}", "out": self.out}
            return check_names(RunConfig.from_mapping({**values, **identity}).resolved())
        except MlxzoError as error:
            # Each value is right: they do not go together.
            for text in error.details or [error.message]:
                self._problem(draft.path, f"{draft.label}: {text}" if draft.label else text)
            return None

    def _varied(self, configs: Sequence[RunConfig]) -> list[str]:
        """The options that runs or grids set and in which the runs differ."""
        given = {current_name(key) for draft in self.drafted for key in draft.chosen} | {"seed"}
        return [name for name in _OPTIONS if name in given and len({getattr(each, name) for each in configs}) > 1]


def _name_problems(key: str, value: Any) -> list[str]:
    """Why no task or model is called so."""
    try:
        check_names(replace(RunConfig(), **{key: str(value)}))
    except MlxzoError as error:
        return [f"{key}: {text}" for text in error.details or [error.message]]
    return []


def _label(chosen: Mapping[str, Any]) -> str:
    """What a run is called by its options, in the order of the options, whatever that of the file."""
    order = list(_OPTIONS)
    names = sorted(chosen.keys() - {"seed"}, key=lambda name: order.index(current_name(name)))
    return " ".join(f"{name.replace('_', '-')} {_text(name, chosen[name])}" for name in names)


def _text(name: str, raw: Any) -> str:
    """A value as names show it: 1e-3 and 0.001 are one."""
    if str(raw).lower() == "auto" or (value := parse_value(_OPTIONS[current_name(name)], raw)) is None:
        return "auto"
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    if name in ("model", "task", "data"):
        return Path(value.rstrip("/")).name.removesuffix(".yaml").removesuffix(".yml")
    return str(value)
