"""Sweeps: runs in a YAML file (cli/commands/sweep.py shows one), listed or spanned by grids, each with every seed.

The name of a run follows from the name of the sweep, the options that its grid varies (or its own name) and its seed,
so that the same file finds its runs again. Imports no MLX.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import RunConfig, options
from ..core.errors import MlxzoError
from ..core.files import user_path
from ..core.formatting import shown
from ..core.options import current_name, parse_value
from ..core.yaml_file import YamlFile
from ..runtime.preflight import check_names
from .naming import LONGEST_NAME, base_name, read_name, read_seeds, slug
from .spec import PlannedRun, SpecReader

MOST_RUNS = 1000
_KEYS = ("name", "out", "seeds", "defaults", "runs", "grid")
_FIX = "`mlxzo batch --help` shows how it is written, and `mlxzo train --help` lists the options"
# Options that the file gives for all runs at its top.
_RESERVED = {"name": "runs are named by the batch", "out": "write out at the top of the file"}
_OPTIONS = {field.name: field for field in options()}


@dataclass(frozen=True)
class Sweep:
    """Runs under one name, in one folder."""

    name: str
    out: Path
    runs: tuple[PlannedRun, ...]

    @property
    def folder(self) -> Path:
        """The folder of its summary. It lies among the runs and is none."""
        return self.out / self.name

    @staticmethod
    def read(path: str | Path, out: str | None = None) -> Sweep:
        """The sweep in a file.

        Args:
            out: the folder of the runs, instead of the file's.

        Raises:
            ConfigError: every problem of the file at once, with its line.
        """
        file = YamlFile.read(path)
        return _Reader(file, file.values(), out).sweep()


@dataclass(frozen=True)
class _Draft:
    """A run without its seed: its name within the sweep, its options as written, and their place in the file."""

    label: str
    chosen: Mapping[str, Any]
    path: tuple[Any, ...]


class _Reader(SpecReader):
    """Reads one file."""

    def __init__(self, file: YamlFile, values: Mapping[str, Any], out: str | None):
        super().__init__("batch", _FIX, file, values, ("task", "model"))
        self._check_keys(values)
        own_name = slug(Path(file.path).stem, "batch")[:LONGEST_NAME]
        self._name = self.parsed("name", values.get("name"), read_name, own_name)
        self._out = out or self._folder(values.get("out"))
        self._defaults = self._mapping(values.get("defaults"), ("defaults",))
        # None: runs may have seeds of their own.
        self._seeds = self.parsed("seeds", values.get("seeds"), read_seeds, None)
        self._drafts = [*self._named(values.get("runs")), *self._grids(values.get("grid"))]
        if not self._drafts and not {"runs", "grid"} & values.keys():
            if values.get("seeds") is None:
                self.problem((), "it names no runs: give runs, grid or seeds")
            self._drafts = [_Draft("", {}, ("defaults",))]

    def sweep(self) -> Sweep:
        planned = self._planned()
        self.raise_problems()
        varied = self._varied([config for _, config in planned])
        runs = (
            PlannedRun(label, config, {name: getattr(config, name) for name in varied}) for label, config in planned
        )
        return Sweep(self._name, user_path(self._out).absolute(), tuple(runs))

    def _check_keys(self, values: Mapping[str, Any]) -> None:
        self.check_repeated()
        for key in values:
            if key in _OPTIONS and key not in _KEYS:
                self.problem((key,), f"{key}: options of all runs are written under defaults")
            elif key not in _KEYS:
                self.problem((key,), f"{key}: a batch has {', '.join(_KEYS)}, and nothing else")

    def _folder(self, raw: Any) -> str:
        if raw is None:
            return RunConfig.out
        return str(raw) if self.is_right("out", raw, ("out",)) else RunConfig.out

    def _mapping(self, raw: Any, path: tuple[Any, ...]) -> dict[str, Any]:
        if raw is None:
            return {}
        if not isinstance(raw, Mapping):
            self.problem(path, f"expected `option: value` lines, not {shown(raw)}")
            return {}
        self.check_repeated(path)
        return self.options(raw, path, reserved=_RESERVED)

    def _named(self, raw: Any) -> Iterator[_Draft]:
        if raw is None:
            return
        if not isinstance(raw, list) or not raw:
            self.problem(("runs",), f"runs: expected a list of at least one run, not {shown(raw)}")
            return
        for number, item in enumerate(raw):
            path = ("runs", number)
            if not isinstance(item, Mapping):
                self.problem(path, f"expected a run's `option: value` lines, not {shown(item)}")
                continue
            chosen = self._mapping({key: value for key, value in item.items() if key != "name"}, path)
            name = item.get("name")
            yield _Draft(_label(chosen) if name is None else self.label(name, path, f"run {number + 1}"), chosen, path)

    def _grids(self, raw: Any) -> Iterator[_Draft]:
        if raw is None:
            return
        if isinstance(raw, Mapping):
            yield from self._grid(raw, ("grid",))
        elif isinstance(raw, list) and raw:
            for number, item in enumerate(raw):
                if isinstance(item, Mapping):
                    yield from self._grid(item, ("grid", number))
                else:
                    self.problem(("grid", number), f"expected `option: [value, ...]` lines, not {shown(item)}")
        else:
            self.problem(("grid",), f"grid: expected `option: [value, ...]` lines, not {shown(raw)}")

    def _grid(self, raw: Mapping[Any, Any], path: tuple[Any, ...]) -> Iterator[_Draft]:
        """The runs of one grid: every combination of the values of its lists; other values hold for all of it."""
        self.check_repeated(path)
        prefix = self.label(raw["name"], path, "") + " " if "name" in raw else ""
        axes: dict[str, list[Any]] = {}
        fixed: dict[str, Any] = {}
        for key, value in raw.items():
            if key == "name":
                continue
            if not isinstance(value, list):
                fixed |= self.options({key: value}, path, reserved=_RESERVED)
                continue
            if not value:
                self.problem((*path, key), f"{key}: it has no values")
            axes[key] = [
                item for number, item in enumerate(value) if self.is_right(key, item, (*path, key, number), _RESERVED)
            ]
        if not axes:
            self.problem(path, "the grid is empty: give at least one option a list of values")
            return
        count = math.prod(map(len, axes.values())) * len(self._seeds or (0,))
        if count > MOST_RUNS:
            self.problem(path, f"the grid has {count:,} runs, and a batch at most {MOST_RUNS:,}")
            return
        for values in itertools.product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            yield _Draft(prefix + _label(varied), {**fixed, **varied}, path)

    def _planned(self) -> list[tuple[str, RunConfig]]:
        """Label and configuration of every run with every seed, one seed of all runs after the other."""
        if len(self._drafts) * len(self._seeds or (0,)) > MOST_RUNS:
            self.problem((), f"it has more than {MOST_RUNS:,} runs, the most that a batch may have")
            return []
        found: list[tuple[str, RunConfig]] = []
        names: set[str] = set()
        for seed in self._seeds or (None,):
            for draft in self._drafts:
                config = self._config(draft, seed)
                if config is None:
                    continue
                # File systems may not distinguish upper and lower case.
                key = str(config.name).lower()
                if key in names:
                    called = draft.label or self._name
                    self.problem(draft.path, f"more than one run is called {called!r}; give each a name of its own")
                names.add(key)
                found.append((draft.label, config))
        return found

    def _config(self, draft: _Draft, seed: int | None) -> RunConfig | None:
        values = {**self._defaults, **draft.chosen}
        if seed is not None and values.get("seed") is not None:
            self.problem((*draft.path, "seed"), "seed: the file gives every run its seeds")
            return None
        try:
            own = parse_value(_OPTIONS["seed"], values.get("seed", RunConfig.seed)) if seed is None else seed
            part = f"-{slug(draft.label, 'run')}" if draft.label else ""
            identity = {"seed": own, "name": f"{self._name}{part}-s{own}", "out": self._out}
            config = check_names(RunConfig.from_mapping({**values, **identity}).resolved())
            self.check_answers(config)
            return config
        except MlxzoError as error:
            # Each value is right by itself: the combination is not.
            self.problems_of(error, draft.path, f"{draft.label}: " if draft.label else "")
            return None

    def _varied(self, configs: Sequence[RunConfig]) -> list[str]:
        """The options that runs or grids set and in which the runs differ."""
        given = {current_name(key) for draft in self._drafts for key in draft.chosen} | {"seed"}
        return [name for name in _OPTIONS if name in given and len({getattr(each, name) for each in configs}) > 1]


def _label(chosen: Mapping[str, Any]) -> str:
    """A run's name made of its options, in the order of RunConfig whatever that of the file."""
    order = list(_OPTIONS)
    names = sorted(chosen.keys() - {"seed"}, key=lambda name: order.index(current_name(name)))
    return " ".join(f"{name.replace('_', '-')} {_text(name, chosen[name])}" for name in names)


def _text(name: str, raw: Any) -> str:
    """A value as part of a name; 1e-3 and 0.001 give the same."""
    if str(raw).lower() == "auto" or (value := parse_value(_OPTIONS[current_name(name)], raw)) is None:
        return "auto"
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    if name in ("model", "task", "data"):
        return base_name(value).removesuffix(".yaml").removesuffix(".yml")
    return str(value)
