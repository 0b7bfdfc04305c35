"""Validation accuracy against forward passes and seconds, for recipes of estimator, update and scope.

    python -m bench.convergence --task sst2 --data ../shared/data/sst2 --recipes race --seconds 300 --out race.jsonl
    python -m bench.convergence --figure race.svg --out race.jsonl

Runs that the output file already holds are not run again, so an interrupted benchmark goes on where it stopped, and
further recipes or seeds are added to the same file. Seconds are those of training steps, frozen layers included, which
are computed when an example is first met; evaluations are not counted. A forward pass is one loss of a batch, through
the whole model or, where frozen layers are remembered, through the rest of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

from bench.report import emit, machine, table
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.batching import batch_indices
from mlxzo.engine.evaluation import Evaluator
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.session import open_session

# Named sets of recipes: label -> options beside those of the command line.
GRID = {
    f"{estimator} {update} {scope}": {"estimator": estimator, "update": update, "scope": scope}
    for scope in ("full", "lora", "last-6")
    for estimator in ("spsa",)
    for update in ("sgd", "adaptive")
}
RACE = {
    # Behind the frozen layers a direction costs next to nothing, so a step can afford many.
    "final norm, 16 directions": {"scope": "match:model.norm.weight", "lr": 0.2, "eps": 0.005, "queries": 16},
    "norms of the last layer, 8 directions": {"scope": "norms/last-1", "lr": 1.2, "queries": 8},
    "norms of the last 6 layers": {"scope": "norms/last-6"},
    "all weights of the last 4 layers, sgd": {"scope": "last-4", "update": "sgd", "schedule": "constant"},
    "all weights of the last 4 layers, adaptive": {"scope": "last-4", "update": "adaptive"},
    "LoRA in the last 6 layers": {"scope": "lora/last-6"},
}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {"grid": GRID, "race": RACE}


def run(
    label: str, config: RunConfig, arguments: argparse.Namespace, shared: dict[int, ActivationCache]
) -> dict[str, Any]:
    """Trains one recipe until the time, the steps or the target accuracy is reached; returns its record.

    Args:
        shared: caches of the validation rows by number of frozen layers, which all runs share.
    """
    session = open_session(config, events.ignore)
    # Two caches, so that an evaluation, whose time is not counted, computes nothing for a step.
    caches = {"train": ActivationCache(), "validation": shared.setdefault(session.scorer.layers, ActivationCache())}
    method = MeZO(session.scorer, session.trainable, config)
    examples = session.splits["train"]
    passes_a_step = config.point_count
    curve: list[dict[str, float]] = []
    seconds, losses, derivatives = 0.0, [], []
    for step in range(config.steps + 1):
        last = step == config.steps or seconds >= arguments.seconds
        if step % arguments.eval_every == 0 or last:
            session.scorer.cache = caches["validation"]
            outcome = Evaluator(session).evaluate("validation", events.ignore)
            point = {
                "step": step,
                "forward_passes": step * passes_a_step,
                "seconds": seconds,
                "accuracy": outcome.value,
                "loss": outcome.loss,
                "training_loss": statistics.fmean(losses) if losses else None,
                "derivative_rms": statistics.fmean(d * d for d in derivatives) ** 0.5 if derivatives else None,
            }
            curve.append(point)
            progress(f"{label}, seed {config.seed}: {point}")
            losses, derivatives = [], []
            reached = arguments.until is not None and outcome.value >= arguments.until
            if last or reached or not outcome.loss < arguments.give_up:
                break
        picked = [examples[i] for i in batch_indices(len(examples), config.batch_size, config.seed, step)]
        batch = session.batch(picked)
        session.scorer.cache = caches["train"]
        started = time.perf_counter()
        result = method.step(step, batch)
        seconds += time.perf_counter() - started
        losses.append(result.loss)
        derivatives.append(result.directional_derivative)
    return {
        "label": label,
        "seed": config.seed,
        "task": session.data.task.name,
        "validation_examples": len(session.splits["validation"]),
        "majority": outcome.majority,
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "out", "name")},
        "curve": curve,
    }


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs in an output file."""
    if not path.exists():
        return []
    return [r for r in map(json.loads, path.read_text().splitlines()) if r["figure"] == "convergence"]


def time_to(curve: list[dict[str, float]], accuracy: float) -> float | None:
    """Seconds until validation accuracy was first at least `accuracy`; None if it never was."""
    return next((point["seconds"] for point in curve if point["accuracy"] >= accuracy), None)


def summary(runs: list[dict[str, Any]], target: float) -> None:
    """A table of all runs, by recipe."""
    rows = []
    for label in dict.fromkeys(r["label"] for r in runs):
        group = [r for r in runs if r["label"] == label]
        best = [max(point["accuracy"] for point in r["curve"]) for r in group]
        final = [r["curve"][-1]["accuracy"] for r in group]
        spent = [r["curve"][-1]["seconds"] for r in group]
        reached = [time_to(r["curve"], target) for r in group]
        times = [f"{t:.0f}" if t is not None else f"> {s:.0f}" for t, s in zip(reached, spent, strict=True)]
        rows.append(
            [
                label,
                str(len(group)),
                f"{100 * group[0]['curve'][0]['accuracy']:.1f}",
                _spread(final),
                _spread(best),
                f"{statistics.fmean(r['curve'][-1]['forward_passes'] for r in group):.0f}",
                f"{statistics.fmean(spent):.0f}",
                ", ".join(times),
            ]
        )
    header = ["recipe", "seeds", "zero-shot %", "final %", "best seen %", "forward passes", "s", f"s to {target:.0%}"]
    table(header, rows)


def _spread(values: list[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f} ({100 * min(values):.1f} - {100 * max(values):.1f})"


def figure(runs: list[dict[str, Any]], path: Path, measure: str) -> None:
    """Validation accuracy or loss against seconds and against forward passes: the mean over seeds, with its range."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "mlxzo"
    scale = 100 if measure == "accuracy" else 1
    fig, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for label in dict.fromkeys(r["label"] for r in runs):
        group = [r for r in runs if r["label"] == label]
        for axis, key in zip(axes, ("seconds", "forward_passes"), strict=True):
            grid = np.linspace(0, max(r["curve"][-1][key] for r in group), 60)
            curves = [([p[key] for p in r["curve"]], [scale * p[measure] for p in r["curve"]]) for r in group]
            values = np.array([np.interp(grid, *curve) for curve in curves])
            (line,) = axis.plot(grid, values.mean(0), label=f"{label} ({len(group)})")
            axis.fill_between(grid, values.min(0), values.max(0), alpha=0.15, color=line.get_color(), linewidth=0)
    if measure == "accuracy":
        axes[0].axhline(100 * runs[0]["majority"], color="grey", linewidth=1, linestyle=":", label="majority class")
    axes[0].set_xlabel("training seconds")
    axes[1].set_xlabel("forward passes")
    unit = ", %" if measure == "accuracy" else ""
    axes[0].set_ylabel(f"validation {measure}{unit} ({runs[0]['validation_examples']} rows)")
    axes[0].legend(fontsize=8)
    fig.suptitle(f"{runs[0]['config']['model']} on {runs[0]['task']}: mean over seeds and its range")
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data")
    parser.add_argument("--recipes", choices=sorted(RECIPES), help="a named set of recipes")
    parser.add_argument("--only", nargs="+", help="labels of that set to run")
    parser.add_argument("--recipe", action="append", default=[], metavar="LABEL:OPTION=VALUE,...", help="one recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--eval-every", type=int, default=25)
    parser.add_argument("--validation-examples", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="most training seconds of a run")
    parser.add_argument("--until", type=float, help="stop a run at this validation accuracy (0 to 1)")
    parser.add_argument("--give-up", type=float, default=3.0, help="stop a run whose validation loss is above this")
    parser.add_argument("--target", type=float, default=0.65, help="accuracy that the table gives the seconds to")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--figure", type=Path, help="draw what the output file holds")
    parser.add_argument("--measure", choices=("accuracy", "loss"), default="accuracy", help="what the figure shows")
    arguments = parser.parse_args()

    recipes = dict(RECIPES.get(arguments.recipes, {}))
    if arguments.only:
        recipes = {label: recipes[label] for label in arguments.only}
    for text in arguments.recipe:
        label, _, options = text.partition(":")
        recipes[label] = dict(option.split("=", 1) for option in options.split(","))
    common = {
        "model": arguments.model,
        "task": arguments.task,
        "data": arguments.data,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "validation_examples": arguments.validation_examples,
        # The benchmark never looks at the test split.
        "test_examples": 1,
    }
    done = {(r["label"], r["seed"]) for r in read(arguments.out)}
    shared: dict[int, ActivationCache] = {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for label, options in recipes.items():
            if (label, seed) in done:
                continue
            config = RunConfig.from_mapping({**common, "seed": seed, **options}).resolved()
            record = run(label, config, arguments, shared)
            line = json.dumps({"figure": "convergence", "machine": machine(), **record})
            with arguments.out.open("a") as file:
                file.write(line + "\n")
            emit("convergence", **record)
    runs = read(arguments.out)
    if not runs:
        sys.exit("nothing to show: name --recipes or --recipe")
    summary(runs, arguments.target)
    if arguments.figure:
        figure(runs, arguments.figure, arguments.measure)


if __name__ == "__main__":
    main()
