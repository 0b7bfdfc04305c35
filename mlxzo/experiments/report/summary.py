"""Results of runs by contestant, with mean and range over seeds, and the report made of them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...core import events
from ...core.config import RunConfig
from ...core.defaults import step_limit
from ...core.formatting import format_seconds
from ...core.metrics import metric_named, standard_error
from ...core.run_history import Measurement
from .probed_model import ProbedModel
from .run_record import ComparedRun, Status
from .spread import Spread

# Options that runs must share to be comparable, in words.
_CONDITIONS = {
    "task": "the task",
    "memory_cap": "the memory cap",
    "max_seconds": "the time",
    "validation_examples": "the number of validation examples",
    "test_examples": "the number of test examples",
}


_BY_GRAVITY: tuple[Status, ...] = ("failed", "does not fit", "running", "interrupted", "not run", "finished")


@dataclass(frozen=True)
class Contender:
    """One contestant with all its runs, measured on `split`."""

    name: str
    runs: tuple[ComparedRun, ...]
    split: str

    @property
    def config(self) -> RunConfig:
        """The configuration of its first run; the others differ in the seed."""
        return self.runs[0].config

    @cached_property
    def finished(self) -> tuple[ComparedRun, ...]:
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def status(self) -> Status:
        """`finished` if all runs are, else the gravest of their statuses."""
        found = {run.status for run in self.runs}
        return next(status for status in _BY_GRAVITY if status in found)

    @property
    def failed(self) -> events.Failed | None:
        """The failure of the first of its runs that failed."""
        return next((run.failed for run in self.runs if run.failed and run.status != "interrupted"), None)

    @property
    def needed_bytes(self) -> int | None:
        """The predicted memory of a contestant that does not fit; None for others."""
        return next((run.needed_bytes for run in self.runs if run.needed_bytes is not None), None)

    def spread(self, value: Callable[[ComparedRun], float | None]) -> Spread | None:
        """Mean and range of a value over the finished runs."""
        return Spread.of(value(run) for run in self.finished)

    @property
    def tuned(self) -> Spread | None:
        """The metric of the best state on `split`."""
        return self.spread(self._tuned)

    @property
    def zero_shot(self) -> Spread | None:
        """The metric of the untrained model on `split`, of all runs that measured it."""
        zero_shots = (run.history.zero_shot.get(self.split) for run in self.runs)
        return Spread.of(found.value for found in zero_shots if found)

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
        """MLX's peak, of all runs that computed something."""
        return Spread.of(run.history.peak_bytes for run in self.runs if run.history.zero_shot)

    @property
    def footprint_bytes(self) -> Spread | None:
        """The peak memory that the system charged its runs for, which is what the cap limits."""
        return Spread.of(run.history.footprint_bytes for run in self.runs if run.history.zero_shot)

    def _tuned(self, run: ComparedRun) -> float | None:
        measured = run.history.test if self.split == "test" else run.history.best
        return measured.value if measured else None

    def band(self) -> list[tuple[float, float, float, float]]:
        """Validation metric over time: seconds, mean, lowest and highest of the finished runs; of all where none has.

        The curve of a run is a straight line between two evaluations and level after the last.
        """
        runs = self.finished or tuple(run for run in self.runs if len(run.history.steps))
        curves = [found for run in runs if (found := run.history.validation)]
        times = sorted({point.seconds for curve in curves for point in curve})
        values = [[_at(curve, time) for curve in curves] for time in times]
        return [(time, statistics.fmean(each), min(each), max(each)) for time, each in zip(times, values, strict=True)]


@dataclass(frozen=True)
class ComparisonReport:
    """The present state of a comparison: contestants, verdict, remarks and conditions.

    Attributes:
        split: the split that contestants are measured on: `test`, or `validation` where not all runs have a test split.
        probed: the ridge probes of models, which stand beside the contestants.
    """

    name: str
    contenders: tuple[Contender, ...]
    split: str
    probed: tuple[ProbedModel, ...] = ()

    @staticmethod
    def of(name: str, runs: Sequence[ComparedRun], probed: Sequence[ProbedModel] = ()) -> ComparisonReport:
        """Gathers runs by contestant, in the order in which they come."""
        begun = [run for run in runs if len(run.history.steps)]
        split = "test" if begun and all("test" in run.history.zero_shot for run in begun) else "validation"
        names = dict.fromkeys(run.contestant for run in runs)
        contenders = (Contender(each, tuple(run for run in runs if run.contestant == each), split) for each in names)
        return ComparisonReport(name, tuple(contenders), split, tuple(probed))

    @cached_property
    def runs(self) -> list[ComparedRun]:
        return [run for contender in self.contenders for run in contender.runs]

    @property
    def config(self) -> RunConfig:
        return self.contenders[0].config

    @cached_property
    def metric(self) -> str:
        return next((run.history.metric for run in self.runs if run.history.metric), "accuracy")

    @cached_property
    def examples(self) -> int | None:
        """The number of examples in `split`."""
        found = self._zero_shot(self.split)
        return found.examples if found else None

    def majority(self, split: str) -> float | None:
        """The metric of a constant answer on a split."""
        found = self._zero_shot(split)
        return found.majority if found else None

    def _zero_shot(self, split: str) -> events.Evaluated | None:
        return next((r.history.zero_shot[split] for r in self.runs if split in r.history.zero_shot), None)

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config.seed for run in self.runs})

    @property
    def standard_error(self) -> float | None:
        """Standard error of an accuracy near one half on `examples`; None for other metrics."""
        return standard_error(0.5, self.examples) if self.examples and self.metric == "accuracy" else None

    def verdict(self) -> str:
        """The best contestant and the next in a sentence, and whether their difference is significant."""
        metric = metric_named(self.metric)
        measured = [(each, tuned) for each in self.contenders if (tuned := each.tuned)]
        ranked = sorted(measured, key=lambda pair: metric.merit(pair[1].mean), reverse=True)
        if not ranked:
            return "No contestant has finished a run."
        best, first = ranked[0]
        text = f"Best {self.split} {self.metric}: {best.name}, {metric.text(first.mean)}"
        if best.zero_shot:
            text += f" (zero-shot {metric.text(best.zero_shot.mean)})"
        if len(ranked) == 1:
            return text + "; no other contestant has finished a run."
        second, next_best = ranked[1]
        text += f"; next: {second.name}, {metric.text(next_best.mean)}"
        if self.standard_error is not None and abs(first.mean - next_best.mean) <= 2 * self.standard_error:
            return text + ". They lie within two standard errors: these figures do not tell them apart."
        if next_best.count > 1 and first.low <= next_best.high and next_best.low <= first.high:
            return text + ". Their ranges over seeds overlap."
        return text + "."

    def remarks(self) -> list[str]:
        """Limits of the figures, a sentence each."""
        found = []
        if self.standard_error is not None:
            found.append(
                f"On {self.examples} {self.split} examples one standard error of an accuracy is up to "
                f"{100 * self.standard_error:.1f} points."
            )
        if any(len(each.runs) == 1 for each in self.contenders):
            found.append("With one seed there is no range: another seed may reverse the order.")
        missing = sum(run.status in ("not run", "running", "interrupted") for run in self.runs)
        if missing:
            found.append(f"{missing} of {len(self.runs)} runs are not done.")
        for key, words in _CONDITIONS.items():
            values = list(dict.fromkeys(getattr(run.config, key) for run in self.runs))
            if len(values) > 1:
                found.append(f"Not the same for all: {words} ({', '.join(str(value) for value in values)}).")
        if self._data_differ():
            found.append("Runs of one seed did not see the same data.")
        machines = {(run.environment.get("platform"), str(run.environment.get("device_info"))) for run in self.finished}
        if len(machines) > 1:
            found.append("The runs come from different machines: do not compare their times.")
        return found + [each.sentence() + self._beside(each) for each in self.probed]

    def _beside(self, probe: ProbedModel) -> str:
        """The probe beside the contestants that are measured as it is."""
        tuned = [each.tuned.mean for each in self.contenders if each.tuned]
        if (probe.metric, probe.split) != (self.metric, self.split) or not tuned or max(tuned) > probe.value.mean:
            return ""
        return " No contestant has more."

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
        """The conditions of the runs: label and value."""
        config = self.config
        rows = [("task", config.task), ("seeds", ", ".join(map(str, self.seeds)))]
        rows.append(("memory cap", config.memory_cap or "none"))
        if config.max_seconds is not None:
            rows.append(("time a run", f"{format_seconds(config.max_seconds)} of steps and validation"))
        elif (limit := step_limit(config)) is not None:
            rows.append(("steps a run", f"{limit:,}"))
        if self.examples:
            rows.append(("measured on", f"{self.examples} {self.split} examples"))
        if (majority := self.majority(self.split)) is not None:
            rows.append(("majority class", metric_named(self.metric).text(majority)))
        environment = next((run.environment for run in self.finished if run.environment), {})
        if environment:
            packages = environment.get("packages", {})
            device = environment.get("device_info", {}).get("device_name", "")
            rows.append(("machine", f"{environment.get('platform')}, {environment.get('device')} {device}".strip()))
            rows.append(("versions", f"mlxzo {environment.get('mlxzo')}, mlx {packages.get('mlx')}"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All values, as comparison.json holds them."""
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
            "ridge_probes": [each.to_dict() for each in self.probed],
            "runs": [run.to_dict() for run in self.runs],
        }


def _summary(each: Contender) -> dict[str, Any]:
    spreads = {
        "zero_shot": each.zero_shot,
        "tuned": each.tuned,
        "best_validation": each.spread(lambda run: run.history.best and run.history.best.value),
        "steps": each.steps,
        "steps_per_second": each.steps_per_second,
        "seconds_to_best": each.seconds_to_best,
        "peak_bytes": each.peak_bytes,
        "footprint_bytes": each.footprint_bytes,
    }
    return {
        "name": each.name,
        "status": each.status,
        "runs": len(each.runs),
        "finished": len(each.finished),
        **{name: spread and spread.to_dict() for name, spread in spreads.items()},
        "needed_bytes": each.needed_bytes,
        "problem": each.failed.message if each.failed else None,
    }


def _at(curve: Sequence[Measurement], seconds: float) -> float:
    """The value of a curve at a time: linear between its points, level beyond the last."""
    for before, after in itertools.pairwise(curve):
        if before.seconds <= seconds < after.seconds:
            share = (seconds - before.seconds) / (after.seconds - before.seconds)
            return before.value + share * (after.value - before.value)
    return curve[-1].value
