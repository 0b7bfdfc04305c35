"""What a comparison is: contestants on one task, under one memory cap and one budget, each with several seeds.

It is read from flags or from a YAML file of options that all contestants share and a list of contestants:

    name: sst2-under-2gb          # optional, as are seeds (0), minutes and every option of a run
    task: sst2
    memory_cap: 2GB
    minutes: 10
    seeds: [0, 1, 2]
    contestants:
      - {name: backpropagation, model: smollm2-135m, method: bp, scope: lora, lr: 1e-3}
      - gemma-3-270m mezo norms/last-6

Its runs are ordinary run directories with names that follow from it, so that the same comparison asked for again finds
what is done. Nothing here imports MLX.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..core.config import DATA_OPTIONS, RunConfig, options
from ..core.errors import ConfigError, MlxzoError
from ..core.options import current_name, former_name
from ..runtime.preflight import check_model, check_task
from .naming import digest, read_name, read_seeds, slug

# What contestants have in common, or there would be nothing to compare.
COMMON = (*DATA_OPTIONS, "memory_cap", "max_seconds", "out")
# Options of a run that a comparison sets by words of its own: contestants, minutes, seeds.
_OWN = ("model", "max_seconds", "seed", "name")
_OPTIONS = {field.name: field for field in options()}
_METHODS = _OPTIONS["method"].metadata["option"].choices


@dataclass(frozen=True)
class Contestant:
    """One way to train: a name, and its options beside those that all share.

    Attributes:
        problem: why it is bound to fail, where that can be told beforehand (a model that nobody knows); else empty.
    """

    name: str
    options: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison: which contestant's, and its resolved configuration, whose `name` is the run's id."""

    contestant: str
    config: RunConfig


@dataclass(frozen=True)
class Comparison:
    """Contestants, what they share and the seeds that each runs with."""

    name: str
    shared: Mapping[str, Any]
    seeds: tuple[int, ...]
    contestants: tuple[Contestant, ...]

    @property
    def shared_config(self) -> RunConfig:
        """The options that all share, as a configuration of which the model does not count."""
        return RunConfig.from_mapping(self.shared)

    @property
    def folder(self) -> Path:
        """Where its report goes. It lies among the runs and is none."""
        return Path(self.shared_config.out).expanduser().absolute() / self.name

    def runs(self) -> list[PlannedRun]:
        """Every run, one seed of all contestants after the other, so that half a comparison compares too."""
        return [
            PlannedRun(contestant.name, self._config(contestant, number, seed))
            for seed in self.seeds
            for number, contestant in enumerate(self.contestants, 1)
        ]

    def _config(self, contestant: Contestant, number: int, seed: int) -> RunConfig:
        run = f"{self.name}-{_slug(contestant, number)}-s{seed}"
        return RunConfig.from_mapping({**self.shared, **contestant.options, "seed": seed, "name": run}).resolved()

    def to_yaml(self) -> str:
        """YAML text that `--config` reads back."""
        shared = dict(self.shared)
        limit = shared.pop("max_seconds", None)
        values = {"name": self.name, **shared, **({} if limit is None else {"minutes": limit / 60})}
        values["seeds"] = list(self.seeds)
        values["contestants"] = [{"name": each.name, **each.options} for each in self.contestants]
        head = "# mlxzo comparison: `mlxzo compare --config FILE` reads it\n"
        return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @staticmethod
    def from_mapping(values: Mapping[str, Any], *, source: str = "") -> Comparison:
        """Builds a comparison from `name`, `minutes`, `seeds`, `contestants` and options of a run.

        With `minutes`, what is left open follows from it: `steps` are as many as fit, and `schedule` is constant,
        since a rate that falls over steps would not know when the time is up.

        Raises:
            ConfigError: every problem at once, of what is shared and of each contestant.
        """
        return _Reading(dict(values)).comparison(source)


class _Reading:
    """One reading of a comparison, gathering what is wrong with it."""

    def __init__(self, values: dict[str, Any]):
        self.problems: list[str] = []
        own = {key: values.pop(key, None) for key in ("name", "minutes", "seeds", "contestants")}
        for key in _OWN:
            if values.pop(key, None) is not None:
                instead = {"model": "contestants", "max_seconds": "minutes", "seed": "seeds"}[key]
                self.problems.append(f"{key}: a comparison takes {instead} instead")
        self.seeds = self._seeds(own["seeds"])
        self.shared = values
        if own["minutes"] is not None:
            self._limit(own["minutes"])
        self._check_shared()
        self.contestants = self._contestants(own["contestants"])
        self.name = self._name(own["name"])

    def comparison(self, source: str) -> Comparison:
        if self.problems:
            where = f"{source}: " if source else ""
            count = len(self.problems)
            message = self.problems[0] if count == 1 else f"{count} problems in the comparison"
            raise ConfigError(
                where + message, "`mlxzo compare --help` shows how it is written", self.problems if count > 1 else ()
            )
        return Comparison(self.name, self.shared, self.seeds, self.contestants)

    def _seeds(self, raw: Any) -> tuple[int, ...]:
        try:
            return read_seeds([0] if raw is None else raw)
        except ValueError as error:
            self.problems.append(f"seeds: {error}")
            return ()

    def _limit(self, raw: Any) -> None:
        try:
            minutes = float(raw)
        except (TypeError, ValueError):
            minutes = 0.0
        if isinstance(raw, bool) or not 0.0 < minutes < 1e7:
            self.problems.append(f"minutes: expected a number above 0, not {raw!r}")
            return
        self.shared["max_seconds"] = 60 * minutes
        self.shared.setdefault("steps", int(_OPTIONS["steps"].metadata["option"].maximum))
        self.shared.setdefault("schedule", "constant")

    def _check_shared(self) -> None:
        try:
            config = check_task(RunConfig.from_mapping(self.shared))
        except ConfigError as error:
            self.problems += error.details or [error.message]
            # Each contestant would only say the same again.
            self.shared = {key: value for key, value in self.shared.items() if not self._is_wrong(key, value)}
            return
        self.shared = _parsed(self.shared, config)

    def _is_wrong(self, key: str, value: Any) -> bool:
        try:
            check_task(RunConfig.from_mapping({key: value}))
        except ConfigError:
            return True
        return False

    def _contestants(self, raw: Any) -> tuple[Contestant, ...]:
        if isinstance(raw, str):
            raw = [raw]
        if not isinstance(raw, list) or not raw:
            self.problems.append("contestants: name at least one, such as `smollm2-135m mezo norms/last-6`")
            return ()
        found = [each for number, item in enumerate(raw, 1) if (each := self._contestant(item, number)) is not None]
        slugs: set[str] = set()
        for number, each in enumerate(found, 1):
            # Runs are named by it, on file systems that may not tell upper from lower case.
            part = _slug(each, number).lower()
            if part in slugs:
                self.problems.append(f"contestants: more than one is called {each.name!r}; give each a name of its own")
            slugs.add(part)
        return tuple(found)

    def _contestant(self, item: Any, number: int) -> Contestant | None:
        where = f"contestant {number}"
        if isinstance(item, str):
            where += f" ({item})"
            try:
                item = parse_contestant(item)
            except ValueError as error:
                self.problems.append(f"{where}: {error}")
                return None
        if not isinstance(item, Mapping):
            self.problems.append(f"{where}: expected options or `MODEL METHOD SCOPE OPTION=VALUE ...`, not {item!r}")
            return None
        chosen = dict(item)
        name = chosen.pop("name", None)
        if name is not None and (not isinstance(name, str) or not name.strip() or len(name) > 100):
            self.problems.append(f"{where}: name: expected a text of at most 100 characters, not {name!r}")
            return None
        if name is not None:
            where = f"contestant {number} ({name})"
        taken = [key for key in chosen if key in (*COMMON, "seed")]
        if "max_seconds" not in self.shared and "steps" in chosen:
            taken.append("steps")
        self.problems += [f"{where}: {key}: all contestants share it" for key in taken]
        chosen = {key: value for key, value in chosen.items() if key not in taken}
        if not chosen.get("model"):
            self.problems.append(f"{where}: it has no model")
        label, problem = name or _described(chosen), ""
        try:
            config = RunConfig.from_mapping({**self.shared, **chosen})
            config = check_model(config)
        except ConfigError as error:
            self.problems += [f"{where}: {text}" for text in error.details or [error.message]]
            return None
        except MlxzoError as error:
            # No reason to keep the others from running.
            problem = error.message
        return Contestant(label, _parsed(chosen, config), problem)

    def _name(self, raw: Any) -> str:
        if raw is None:
            # By what is shared alone, so that seeds and contestants can be added to a comparison.
            words = json.dumps(dict(sorted((former_name(key), str(value)) for key, value in self.shared.items())))
            task = Path(str(self.shared.get("task", RunConfig.task))).stem
            return f"compare-{slug(task, 'task')[:20]}-{digest(words)}"
        try:
            return read_name(raw)
        except ValueError as error:
            self.problems.append(f"name: {error}")
            return ""


def parse_contestant(text: str) -> dict[str, Any]:
    """The options in `MODEL [METHOD] [SCOPE] [OPTION=VALUE ...]`, such as `smollm2-135m bp lora lr=1e-3`.

    Words are quoted as in a shell; `name=...` names the contestant.

    Raises:
        ValueError: with a sentence that says what is wrong.
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
        raise ValueError(f"{bare[0]!r} is one word too many; further options are written as option=value")
    return found


def label_of(config: RunConfig, keys: Sequence[str]) -> str:
    """A contestant's name made of its configuration: model, method, scope, and the options in `keys`."""
    chosen = {key: getattr(config, key) for key in ("model", "method", "scope", *keys)}
    return _described(chosen)


def _parsed(values: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Options as they were understood; those that stand for something to be found (auto) as they were written."""

    def stays(key: str) -> bool:
        return getattr(config, current_name(key)) is None or str(values[key]).lower() == "auto"

    return {key: raw if stays(key) else getattr(config, current_name(key)) for key, raw in values.items()}


def _described(chosen: Mapping[str, Any]) -> str:
    scope = "scope chosen by probe" if chosen.get("probe") == "scope" else chosen.get("scope", RunConfig.scope)
    words = [Path(str(chosen.get("model", "")).rstrip("/")).name, chosen.get("method", RunConfig.method), scope]
    words += [f"{key}={value}" for key, value in chosen.items() if key not in ("model", "method", "scope")]
    return " ".join(str(word) for word in words)


def _slug(contestant: Contestant, number: int) -> str:
    return slug(contestant.name, f"contestant-{number}")
