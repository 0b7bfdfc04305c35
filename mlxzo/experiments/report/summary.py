"""Runs side by side: what each run reached, gathered by contestant with mean and range over its seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...core import events
from ...core.config import RunConfig
from ...core.formatting import format_metric, format_seconds
from ...core.metrics import metric_named
from ...core.run_history import Measurement
from .run_record import ComparedRun, Status

# What runs have to share for their figures to be comparable, and how a reader would call it.
_CONDITIONS = {
    "task": "the task",
    "memory_cap": "the memory cap",
    "max_seconds": "the time",
    "validation_examples": "the number of validation examples",
    "test_examples": "the number of test examples",
}


@dataclass(frozen=True)
class Spread:
    """Mean and range of a figure over runs."""

    mean: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread | None:
        """Of the values that are there; None where none is."""
        there = [value for value in values if value is not None]
        return Spread(statistics.fmean(there), min(there), max(there), len(there)) if there else None


@dataclass(frozen=True)
class Contender:
    """One contestant with all its runs, measured on `split`."""

    name: str
    runs: tuple[ComparedRun, ...]
    split: str

    @property
    def config(self) -> RunConfig:
        """That of its first run; the others differ in the seed."""
        return self.runs[0].config

    @cached_property
    def finished(self) -> tuple[ComparedRun, ...]:
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def status(self) -> Status:
        """`finished` if all runs are, else the gravest of what became of them."""
        found = {run.status for run in self.runs}
        order: tuple[Status, ...] = ("failed", "does not fit", "running", "interrupted", "not run")
        return next((status for status in order if status in found), "finished")

    @property
    def failed(self) -> events.Failed | None:
        """What the first of its runs that failed said."""
        return next((run.failed for run in self.runs if run.failed and run.status != "interrupted"), None)

    @property
    def metric(self) -> str | None:
        measured = next((run.history.zero_shot["validation"] for run in self.runs if run.history.zero_shot), None)
        return measured.metric if measured else None

    @property
    def needed_bytes(self) -> int | None:
        """What it was predicted to need, where it does not fit."""
        return next((run.needed_bytes for run in self.runs if run.needed_bytes is not None), None)

    def spread(self, value: Callable[[ComparedRun], float | None]) -> Spread | None:
        """Mean and range of a figure over the finished runs."""
        return Spread.of(value(run) for run in self.finished)

    @property
    def tuned(self) -> Spread | None:
        """The best state on the test split; where there is none, on the validation split that chose it."""
        return self.spread(self._tuned)

    @property
    def zero_shot(self) -> Spread | None:
        """The untrained model on the same split as `tuned`, of all runs that came so far."""
        return Spread.of(
            run.history.zero_shot[self.split].value for run in self.runs if self.split in run.history.zero_shot
        )

    @property
    def steps(self) -> Spread | None:
        return self.spread(lambda run: run.steps)

    @property
    def steps_per_second(self) -> Spread | None:
        return self.spread(lambda run: run.steps_per_second)

    @property
    def seconds_to_best(self) -> Spread | None:
        return self.spread(lambda run: best.seconds if (best := run.history.best_measurement) else None)

    @property
    def peak_bytes(self) -> Spread | None:
        """MLX's peak, of all runs that came to compute something."""
        return Spread.of(run.history.peak_bytes for run in self.runs if run.history.zero_shot)

    @property
    def footprint_bytes(self) -> Spread | None:
        """What the system charged its runs for at their peak, which is what the cap limits."""
        return Spread.of(run.history.footprint_bytes for run in self.runs if run.history.zero_shot)

    def _tuned(self, run: ComparedRun) -> float | None:
        measured = run.history.test if self.split == "test" else run.history.best
        return measured.value if measured else None

    def band(self) -> list[tuple[float, float, float, float]]:
        """Validation metric over time: seconds, mean, lowest and highest of the finished runs.

        Between two evaluations of a run its curve is a straight line; after its last it stays where it is. A contestant
        of which no run finished shows what its runs reached.
        """
        runs = self.finished or tuple(run for run in self.runs if len(run.history.steps))
        curves = [found for run in runs if (found := run.history.validation)]
        times = sorted({point.seconds for curve in curves for point in curve})
        values = [[_at(curve, time) for curve in curves] for time in times]
        return [(time, statistics.fmean(each), min(each), max(each)) for time, each in zip(times, values, strict=True)]


@dataclass(frozen=True)
class ComparisonReport:
    """A comparison as it stands: its contestants, and what a reader should know about the figures.

    Attributes:
        split: what contestants are measured on: `test`, or `validation` where not all runs have a test split.
    """

    name: str
    contenders: tuple[Contender, ...]
    split: str

    @staticmethod
    def of(name: str, runs: Sequence[ComparedRun]) -> ComparisonReport:
        """Gathers runs by contestant, in the order in which they come."""
        begun = [run for run in runs if len(run.history.steps)]
        split = "test" if begun and all("test" in run.history.zero_shot for run in begun) else "validation"
        names = dict.fromkeys(run.contestant for run in runs)
        contenders = (Contender(each, tuple(run for run in runs if run.contestant == each), split) for each in names)
        return ComparisonReport(name, tuple(contenders), split)

    @property
    def runs(self) -> list[ComparedRun]:
        return [run for contender in self.contenders for run in contender.runs]

    @property
    def config(self) -> RunConfig:
        return self.contenders[0].config

    @cached_property
    def metric(self) -> str:
        return next((each.metric for each in self.contenders if each.metric), "accuracy")

    @cached_property
    def examples(self) -> int | None:
        """How many examples that split has."""
        found = next((r.history.zero_shot[self.split] for r in self.runs if self.split in r.history.zero_shot), None)
        return found.examples if found else None

    def majority(self, split: str) -> float | None:
        """What a constant answer scores on a split."""
        found = next((r.history.zero_shot[split] for r in self.runs if split in r.history.zero_shot), None)
        return found.majority if found else None

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config.seed for run in self.runs})

    @property
    def standard_error(self) -> float | None:
        """Of an accuracy near one half on the examples that contestants are measured on."""
        return 0.5 / math.sqrt(self.examples) if self.examples and self.metric == "accuracy" else None

    def verdict(self) -> str:
        """Who did best, in one sentence, and whether the next is far enough behind for that to mean something."""
        ranked = sorted(
            (each for each in self.contenders if each.tuned),
            key=lambda each: metric_named(self.metric).merit(each.tuned.mean),
            reverse=True,
        )
        if not ranked:
            return "No contestant has finished a run."
        best = ranked[0]
        what = f"{self.split} {self.metric}"
        text = f"Best {what}: {best.name}, {format_metric(self.metric, best.tuned.mean)}"
        if best.zero_shot:
            text += f" (zero-shot {format_metric(self.metric, best.zero_shot.mean)})"
        if len(ranked) == 1:
            return text + "; no other contestant has finished a run."
        second = ranked[1]
        text += f"; next: {second.name}, {format_metric(self.metric, second.tuned.mean)}"
        apart = abs(best.tuned.mean - second.tuned.mean)
        if self.standard_error is not None and apart <= 2 * self.standard_error:
            return text + ". They lie within two standard errors: these figures do not tell them apart."
        overlap = best.tuned.low <= second.tuned.high and second.tuned.low <= best.tuned.high
        if second.tuned.count > 1 and overlap:
            return text + ". Their ranges over seeds overlap."
        return text + "."

    def remarks(self) -> list[str]:
        """What a reader should know before taking the figures for more than they are."""
        found = []
        if self.standard_error is not None:
            found.append(
                f"On {self.examples} {self.split} examples one standard error of an accuracy is up to "
                f"{100 * self.standard_error:.1f} points."
            )
        if any(len(each.runs) == 1 for each in self.contenders):
            found.append("With one seed there is no range: another seed may turn the order round.")
        missing = sum(run.status in ("not run", "running", "interrupted") for run in self.runs)
        if missing:
            found.append(f"{missing} of {len(self.runs)} runs are not done.")
        for key, words in _CONDITIONS.items():
            values = list(dict.fromkeys(getattr(run.config, key) for run in self.runs))
            if len(values) > 1:
                found.append(f"Not the same for all: {words} ({', '.join(str(value) for value in values)}).")
        if self._data_differ():
            found.append("Runs of one seed did not see the same data.")
        places = {(run.environment.get("platform"), str(run.environment.get("device_info"))) for run in self.finished}
        if len(places) > 1:
            found.append("Not all runs were made on one machine: compare no seconds.")
        return found

    @property
    def finished(self) -> list[ComparedRun]:
        return [run for run in self.runs if run.status == "finished"]

    def _data_differ(self) -> bool:
        seen: dict[tuple[int | None, ...], set[str]] = {}
        for run in self.runs:
            if "data_sha256" in run.environment:
                key = (run.config.seed, run.config.train_examples, run.config.train_per_label)
                seen.setdefault(key, set()).add(run.environment["data_sha256"])
        return any(len(hashes) > 1 for hashes in seen.values())

    def conditions(self) -> list[tuple[str, str]]:
        """Under what the runs were made: label and value."""
        config = self.config
        rows = [("task", config.task), ("seeds", ", ".join(map(str, self.seeds)))]
        rows.append(("memory cap", config.memory_cap or "none"))
        if config.max_seconds is not None:
            rows.append(("time a run", f"{format_seconds(config.max_seconds)} of steps and validation"))
        else:
            rows.append(("steps a run", f"{config.steps:,}"))
        if self.examples:
            rows.append(("measured on", f"{self.examples} {self.split} examples"))
        if (majority := self.majority(self.split)) is not None:
            rows.append(("majority class", format_metric(self.metric, majority)))
        environment = next((run.environment for run in self.finished if run.environment), {})
        if environment:
            packages = environment.get("packages", {})
            device = environment.get("device_info", {}).get("device_name", "")
            rows.append(("machine", f"{environment.get('platform')}, {environment.get('device')} {device}".strip()))
            rows.append(("versions", f"mlxzo {environment.get('mlxzo')}, mlx {packages.get('mlx')}"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All figures, as comparison.json holds them."""
        return {
            "schema": 1,
            "name": self.name,
            "metric": self.metric,
            "split": self.split,
            "examples": self.examples,
            "majority": self.majority(self.split),
            "verdict": self.verdict(),
            "remarks": self.remarks(),
            "contestants": [_summary(each) for each in self.contenders],
            "runs": [run.to_dict() for run in self.runs],
        }


def _summary(each: Contender) -> dict[str, Any]:
    def plain(spread: Spread | None) -> dict[str, float] | None:
        return None if spread is None else {"mean": spread.mean, "low": spread.low, "high": spread.high}

    return {
        "name": each.name,
        "status": each.status,
        "runs": len(each.runs),
        "finished": len(each.finished),
        "zero_shot": plain(each.zero_shot),
        "tuned": plain(each.tuned),
        "best_validation": plain(each.spread(lambda run: run.history.best and run.history.best.value)),
        "steps": plain(each.steps),
        "steps_per_second": plain(each.steps_per_second),
        "seconds_to_best": plain(each.seconds_to_best),
        "peak_bytes": plain(each.peak_bytes),
        "footprint_bytes": plain(each.footprint_bytes),
        "needed_bytes": each.needed_bytes,
        "problem": each.failed.message if each.failed else None,
    }


def _at(curve: Sequence[Measurement], seconds: float) -> float:
    """The value of a curve at a time, on straight lines between its points and level beyond them."""
    for before, after in itertools.pairwise(curve):
        if before.seconds <= seconds < after.seconds:
            share = (seconds - before.seconds) / (after.seconds - before.seconds)
            return before.value + share * (after.value - before.value)
    return curve[-1].value
