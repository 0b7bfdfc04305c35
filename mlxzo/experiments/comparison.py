"""Comparisons: contestants on one task, under one memory cap and one budget, each with several seeds.

A comparison is read from flags or from a YAML file (cli/commands/compare.py shows one): options that all contestants
share, and a list of contestants. Its runs are ordinary run directories whose names follow from it, so that the same
comparison asked for again finds what is done. Imports no MLX.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..core.config import DATA_OPTIONS, RunConfig, options
from ..core.errors import ConfigError, MlxzoError
from ..core.files import user_path
from ..core.formatting import shown
from ..core.options import current_name
from ..core.yaml_file import YamlFile
from ..runtime.preflight import check_model, check_task
from .model_probe import ModelProbe, model_probes
from .naming import base_name, options_digest, read_name, read_seeds, slug
from .spec import PlannedRun, SpecReader, problem_texts

# Options that contestants have in common: without them there would be nothing to compare.
COMMON: tuple[str, ...] = (*DATA_OPTIONS, "memory_cap", "max_seconds", "out")
OWN_KEYS = ("name", "minutes", "seeds", "ridge_probe", "contestants")
# Options of a run that a comparison sets by keys of its own.
REPLACED = {"model": "contestants", "max_seconds": "minutes", "seed": "seeds"}
_OPTIONS = {field.name: field for field in options()}
_METHODS = _OPTIONS["method"].metadata["option"].choices


@dataclass(frozen=True)
class Contestant:
    """One way to train: a name, and its options beside the shared ones.

    Attributes:
        problem: the reason why it is bound to fail, where that is known beforehand (an unknown model); else empty.
    """

    name: str
    options: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """Contestants, the options that they share, and the seeds that each runs with.

    Attributes:
        ridge_probe: measure the ridge probe of each model beside them.
    """

    name: str
    shared: Mapping[str, Any]
    seeds: tuple[int, ...]
    contestants: tuple[Contestant, ...]
    ridge_probe: bool = True

    @property
    def shared_config(self) -> RunConfig:
        """The shared options as a configuration; its model means nothing."""
        return RunConfig.from_mapping(self.shared)

    @property
    def folder(self) -> Path:
        """The folder of its report. It lies among the runs and is none."""
        return user_path(self.shared_config.out).absolute() / self.name

    def runs(self) -> list[PlannedRun]:
        """Every run, one seed of all contestants after the other, so that half a comparison compares too."""
        return [
            PlannedRun(contestant.name, self._config(contestant, number, seed), contestant.options)
            for seed in self.seeds
            for number, contestant in enumerate(self.contestants, 1)
        ]

    def probes(self, folder: Path) -> list[ModelProbe]:
        """The ridge probes of its models, kept in a folder; none if it has none."""
        known = {each.name for each in self.contestants if not each.problem}
        runs = [each.config for each in self.runs() if each.label in known]
        return model_probes(runs, folder) if self.ridge_probe else []

    def _config(self, contestant: Contestant, number: int, seed: int) -> RunConfig:
        run = f"{self.name}-{_slug(contestant, number)}-s{seed}"
        return RunConfig.from_mapping({**self.shared, **contestant.options, "seed": seed, "name": run}).resolved()

    def to_yaml(self) -> str:
        """YAML text that `--config` reads back."""
        shared = dict(self.shared)
        limit = shared.pop("max_seconds", None)
        values = {"name": self.name, **shared, **({} if limit is None else {"minutes": limit / 60})}
        values["seeds"] = list(self.seeds)
        if not self.ridge_probe:
            values["ridge_probe"] = False
        values["contestants"] = [{"name": each.name, **each.options} for each in self.contestants]
        head = "# mlxzo comparison: `mlxzo compare --config FILE` reads it\n"
        return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @staticmethod
    def read(path: str | Path, flags: Mapping[str, Any]) -> Comparison:
        """The comparison in a file, as `from_mapping` takes it; flags replace values of the file.

        Raises:
            ConfigError: every problem at once, those of the file with their lines.
        """
        file = YamlFile.read(path)
        values = file.values()
        return _Reader({**values, **flags}, file, values.keys() - flags.keys()).comparison()

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> Comparison:
        """Builds a comparison from `name`, `minutes`, `seeds`, `ridge_probe`, `contestants` and options of a run.

        With `minutes`, two defaults change: `steps` are as many as fit, and `schedule` is constant, since a rate that
        falls over steps would not know when the time is up.

        Raises:
            ConfigError: every problem at once, of the shared options and of each contestant.
        """
        return _Reader(values).comparison()


class _Reader(SpecReader):
    """Reads one comparison."""

    def __init__(self, values: Mapping[str, Any], file: YamlFile | None = None, located: Iterable[str] = ()):
        fix = "`mlxzo compare --help` shows how it is written"
        super().__init__("comparison", fix, file, located, ("task",))
        self.check_repeated()
        own = {key: values.get(key) for key in OWN_KEYS}
        self._wrong_for_all: set[str] = set()
        self._seeds = self.parsed("seeds", own["seeds"], read_seeds, (0,))
        self._ridge_probe = self.parsed("ridge_probe", own["ridge_probe"], _truth, True)
        self._shared = self._read_shared(values, own["minutes"])
        self._contestants = self._read_contestants(own["contestants"])
        # By the shared options alone, so that seeds and contestants can be added to a comparison.
        task = slug(Path(str(self._shared.get("task", RunConfig.task))).stem, "task")
        own_name = f"compare-{task[:20]}-{options_digest(self._shared)}"
        self._name = self.parsed("name", own["name"], read_name, own_name)

    def comparison(self) -> Comparison:
        self.raise_problems()
        return Comparison(self._name, self._shared, self._seeds, self._contestants, self._ridge_probe)

    def _read_shared(self, values: Mapping[str, Any], minutes: Any) -> dict[str, Any]:
        for key, instead in REPLACED.items():
            if values.get(key) is not None:
                self.problem((key,), f"{key}: a comparison takes {instead} instead")
        found = self.options({key: values[key] for key in values if key not in (*OWN_KEYS, *REPLACED)}, ())
        if (seconds := self.parsed("minutes", minutes, _seconds, None)) is not None:
            found["max_seconds"] = seconds
            found.setdefault("steps", int(_OPTIONS["steps"].metadata["option"].maximum))
            found.setdefault("schedule", "constant")
        try:
            return _parsed(found, check_task(RunConfig.from_mapping(found)))
        except ConfigError as error:
            # Each value is right by itself: the combination is not.
            self.problems_of(error, ())
            self._wrong_for_all.update(problem_texts(error))
            return found

    def _read_contestants(self, raw: Any) -> tuple[Contestant, ...]:
        items = [raw] if isinstance(raw, str) else raw
        if not isinstance(items, list) or not items:
            self.problem(("contestants",), "contestants: name at least one, such as `smollm2-135m mezo norms/last-6`")
            return ()
        found: dict[str, Contestant] = {}
        for number, item in enumerate(items, 1):
            path = ("contestants", number - 1)
            if (each := self._contestant(item, number, path)) is None:
                continue
            # Runs are named by it, on file systems that may not distinguish upper and lower case.
            key = _slug(each, number).lower()
            if key in found:
                again = f"more than one is called {each.name!r}; give each a name of its own"
                self.problem(path, f"contestants: {again}")
            found[key] = each
        return tuple(found.values())

    def _contestant(self, item: Any, number: int, path: tuple[Any, ...]) -> Contestant | None:
        where = f"contestant {number}"
        if isinstance(item, str):
            where += f" ({item})"
            try:
                item = parse_contestant(item)
            except ValueError as error:
                self.problem(path, f"{where}: {error}")
                return None
        if not isinstance(item, Mapping):
            expected = "expected options or `MODEL METHOD SCOPE OPTION=VALUE ...`"
            self.problem(path, f"{where}: {expected}, not {shown(item)}")
            return None
        self.check_repeated(path)
        name = "" if item.get("name") is None else self.label(item["name"], path, "", f"{where}: ")
        if name:
            where = f"contestant {number} ({name})"
        # Without a time limit, steps are the budget.
        budget = () if "max_seconds" in self._shared else ("steps",)
        reserved = dict.fromkeys((*COMMON, "seed", *budget), "all contestants share it")
        given = {key: value for key, value in item.items() if key != "name"}
        if not given.get("model"):
            self.problem(path, f"{where}: it has no model")
        chosen = self.options(given, path, reserved=reserved, prefix=f"{where}: ")
        config, problem = RunConfig(), ""
        try:
            config = RunConfig.from_mapping({**self._shared, **chosen})
            self.check_answers(config)
            config = check_model(config)
        except ConfigError as error:
            self.problems_of(error, path, f"{where}: ", known=self._wrong_for_all)
        except MlxzoError as error:
            # No reason to keep the others from running.
            problem = error.message
        return Contestant(name or _described(chosen), _parsed(chosen, config), problem)


def parse_contestant(text: str) -> dict[str, Any]:
    """The options in `MODEL [METHOD] [SCOPE] [OPTION=VALUE ...]`, such as `smollm2-135m bp lora lr=1e-3`.

    Words are quoted as in a shell; `name=...` names the contestant.

    Raises:
        ValueError: with the fault in a sentence.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{error}".lower()) from None
    found: dict[str, Any] = {}
    bare: list[str] = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not re.fullmatch(r"[a-z][a-z_-]*", key):
            bare.append(word)
            continue
        if key.replace("-", "_") in found:
            raise ValueError(f"{key} is given twice")
        found[key.replace("-", "_")] = value
    if bare and "model" not in found:
        found["model"] = bare.pop(0)
    for key, wanted in (("method", lambda word: word in _METHODS), ("scope", lambda word: True)):
        if bare and wanted(bare[0]) and key not in found:
            found[key] = bare.pop(0)
    if bare:
        raise ValueError(f"{shown(bare[0])} is one word too many; further options are written as option=value")
    return found


def label_of(config: RunConfig, keys: Sequence[str]) -> str:
    """A contestant's name made of its configuration: model, method, scope, and the options in `keys`."""
    return _described({key: getattr(config, key) for key in ("model", "method", "scope", *keys)})


def _parsed(values: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Options with their parsed values; those that are resolved later (auto) as they were written."""

    def stays(key: str) -> bool:
        return getattr(config, current_name(key)) is None or str(values[key]).lower() == "auto"

    return {key: raw if stays(key) else getattr(config, current_name(key)) for key, raw in values.items()}


def _truth(raw: Any) -> bool:
    """Returns a truth value as it is.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(raw, bool):
        raise ValueError(f"expected true or false, not {shown(raw)}")
    return raw


def _seconds(minutes: Any) -> float:
    """Parses a time limit in minutes.

    Raises:
        ValueError: with a sentence naming what is expected.
    """
    try:
        found = float(minutes)
    except (TypeError, ValueError):
        found = 0.0
    if isinstance(minutes, bool) or not 0.0 < found < 1e7:
        raise ValueError(f"expected a number above 0, not {shown(minutes)}")
    return 60 * found


def _described(chosen: Mapping[str, Any]) -> str:
    words = [base_name(str(chosen.get("model", ""))), chosen.get("method", RunConfig.method)]
    words.append(chosen.get("scope", RunConfig.scope))
    words += [f"{key}={value}" for key, value in chosen.items() if key not in ("model", "method", "scope")]
    return " ".join(str(word) for word in words)


def _slug(contestant: Contestant, number: int) -> str:
    return slug(contestant.name, f"contestant-{number}")
