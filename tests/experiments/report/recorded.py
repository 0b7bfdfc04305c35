"""Run directories as a worker leaves them, with events written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import RunDirectory
from mlxzo.experiments.report.probed_model import ProbedModel
from mlxzo.experiments.report.run_record import ComparedRun

STEP_SECONDS, EVALUATION_SECONDS = 2.0, 10.0
EXAMPLES = 100


def evaluated(kind: str, split: str, step: int, value: float, best: bool = False) -> events.Evaluated:
    return events.Evaluated(kind, split, step, "accuracy", value, 1.0 - value, EXAMPLES, 0.52, EVALUATION_SECONDS, best)


def step(number: int, steps: int, peak_bytes: int, seconds: float = STEP_SECONDS) -> events.Step:
    return events.Step(
        step=number,
        steps=steps,
        loss=0.5,
        smoothed_loss=0.6,
        lr=0.1,
        directional_derivative=None,
        seconds=seconds,
        tokens=64,
        steps_per_second=0.5,
        tokens_per_second=32.0,
        eta_seconds=1.0,
        active_bytes=peak_bytes // 2,
        peak_bytes=peak_bytes,
        cache_bytes=0,
    )


def memory(footprint_bytes: int, peak_bytes: int) -> events.Memory:
    return events.Memory("train", footprint_bytes, footprint_bytes, peak_bytes // 2, 0, peak_bytes, None, 0, 0, None)


def story(
    accuracies: Sequence[float],
    *,
    every: int = 2,
    test: float | None = None,
    peak_bytes: int = 600_000_000,
    step_seconds: float = STEP_SECONDS,
) -> list[events.Event]:
    """The events of a run: zero-shot `accuracies[0]`, then an evaluation every so many steps; best as it rises."""
    found: list[events.Event] = [evaluated("zero-shot", "validation", 0, accuracies[0])]
    if test is not None:
        found.append(evaluated("zero-shot", "test", 0, accuracies[0]))
    best = accuracies[0]
    steps = every * (len(accuracies) - 1)
    for number, value in enumerate(accuracies[1:], 1):
        found += [step(i, steps, peak_bytes, step_seconds) for i in range(every * (number - 1) + 1, every * number + 1)]
        found.append(evaluated("validation", "validation", every * number, value, value > best))
        best = max(best, value)
    found.append(memory(peak_bytes + 200_000_000, peak_bytes))
    if test is not None:
        found.append(evaluated("test", "test", steps, test))
    return found


def record(root: Path, contestant: str, seed: int, told: Sequence[events.Event] | None, **options) -> ComparedRun:
    """A run directory with these events; None where the run is still to come."""
    name = f"{contestant.replace(' ', '-')}-s{seed}".encode("ascii", "replace").decode().replace("?", "x")
    # A run that ends with its steps, so that what it names by default is the same for both methods.
    options = {"steps": 300, "batch_size": 16, "eval_every": 50, **options}
    if options.get("method") != "bp":
        options = {"estimator": "spsa", **options}
    config = RunConfig(
        out=str(root), name="".join(c if c.isalnum() else "-" for c in name).strip("-"), seed=seed, **options
    )
    if told is None:
        return ComparedRun(contestant, config, RunDirectory(root / str(config.name)))
    run = RunDirectory.create(config)
    run.events_path.write_text("".join(events.to_json(event, 1e9 + i) + "\n" for i, event in enumerate(told)))
    return ComparedRun(contestant, run.config, run)


def probed(model: str, *values: float) -> ProbedModel:
    """The ridge probes of a model with seeds 0, 1, ... and these accuracies on 100 test rows."""
    fields = {"metric": "accuracy", "split": "test", "standard_error": 0.05, "seconds": 60.0, "layer": 15}
    fields |= {"model_layers": 30, "train_examples": 1000}
    return ProbedModel(model, {seed: {**fields, "value": value} for seed, value in enumerate(values)})


def finished(told: Sequence[events.Event]) -> list[events.Event]:
    return [*told, events.Finished({"steps": 1})]


def failed(
    told: Sequence[events.Event], title: str, message: str, exit_code: int, needed_bytes: int | None = None
) -> list[events.Event]:
    return [*told, events.Failed(title, message, "mend it", ["weights 540.0 MB"], exit_code, needed_bytes)]
