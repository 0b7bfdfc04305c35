"""Show which models and training methods fit in a memory cap, predicted without loading a model.

  mlxzo plan --memory-cap 8GB
  mlxzo plan --memory-cap 8GB --model qwen3-1.7b --tokens 1024 --batch-size 8
  mlxzo plan --memory-cap 4GB --task sst2 --data sst2_rows --figure plan.svg

Each figure is the predicted footprint of a run with the largest micro-batch that fits, everything included: weights,
activations, gradients, the optimiser's state, MLX's cache and the Python process itself. `x` marks runs that do not
fit, with the least memory that they would take. One --model prints the components for each method.

Times are estimates from rates that --calibrate measures once on this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.config import RunConfig
from ...core.defaults import DEFAULT_STEPS
from ...core.errors import EXIT_DONE, ConfigError, DoesNotFit
from ...core.formatting import format_bytes, format_count, format_seconds, parse_bytes
from ..options import add_config_options, add_json, config_values
from ..printing import print_json, say

if TYPE_CHECKING:
    from ...memory.plan_table import PlanRow, ProbeRow
    from ...memory.sizes import Data
    from ...memory.step_time import Calibration
    from ...models.architecture import ModelShape

# Share of the machine's memory that is the default cap, unless the GPU can hold less; the rest is for the system and
# other programs.
_SHARE = 0.75
_OPTIONS = (
    *("task", "data", "train_examples", "train_per_label", "max_tokens"),
    *("batch_size", "steps", "dtype", "optimizer", "lora_rank"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory-cap",
        dest="cap",
        metavar="SIZE",
        help=f"such as 8GB (default: {_SHARE:.0%} of this machine's memory, or less "
        "where the GPU of a Mac can hold less)".replace("%", "%%"),
    )
    parser.add_argument(
        "--model",
        dest="models",
        metavar="NAME",
        action="append",
        default=[],
        help="a name from `mlxzo models` or a folder; repeatable",
    )
    parser.add_argument(
        "--tokens", metavar="N", type=int, help="length of every example (default: 512, or that of the task's examples)"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="first measure this machine's speed, and store it for later plans"
    )
    parser.add_argument(
        "--figure", metavar="FILE", type=Path, help="plot model size against memory: .svg, .png or .pdf"
    )
    add_json(parser)
    add_config_options(parser, _OPTIONS)


_BASE = {"steps": DEFAULT_STEPS, "batch_size": 16}


def run(arguments: argparse.Namespace) -> int:
    from ...memory.plan_table import largest_probe, recommend, table
    from ...memory.step_time import calibrate, load_calibration

    # All ways are compared at the same number of steps and examples.
    base = RunConfig.from_mapping({**_BASE, **config_values(arguments)})
    cap = _cap(arguments.cap)
    _check_figure(arguments.figure)
    data, source = _data(arguments, base)
    shapes = _shapes(arguments.models)
    calibration = calibrate() if arguments.calibrate else load_calibration()
    rows = table(shapes, base, data, cap, calibration=calibration)
    _need_room(rows, cap)
    probe = largest_probe(shapes, base, data, cap)
    plan = _Plan(rows, probe, cap, base, source, recommend(rows, cap), calibration)
    if arguments.figure:
        from ...memory.plan_figure import draw

        draw(rows, cap, source, arguments.figure)
    if arguments.json:
        print_json(_document(plan))
        return EXIT_DONE
    _print(plan, one=len(arguments.models) == 1)
    if arguments.figure:
        say(f"\nFigure: {arguments.figure}")
    return EXIT_DONE


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that the command shows: the predictions under a cap in bytes, where they come from, and the advice."""

    rows: Sequence[PlanRow]
    probe: ProbeRow | None
    cap: int
    base: RunConfig
    source: str
    advice: str
    calibration: Calibration | None

    @property
    def steps(self) -> int:
        return self.base.steps or DEFAULT_STEPS


def _cap(text: str | None) -> int:
    """The cap in bytes.

    Raises:
        ConfigError: the text is not a size.
    """
    if text is None:
        from ...core.meter import gpu_working_set_bytes, system_memory

        share = int(_SHARE * system_memory()[0])
        return min(share, gpu_working_set_bytes() or share)
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--memory-cap: {error}", "give a number and a unit: --memory-cap 8GB") from None


def _check_figure(path: Path | None) -> None:
    if path is not None and path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--figure: {path} is none of .svg, .png and .pdf", "end the file's name with one of them")


def _data(arguments: argparse.Namespace, base: RunConfig) -> tuple[Data, str]:
    """Sizes of the examples, and a text that says where they come from.

    Raises:
        ConfigError: --tokens is out of range or goes with a task; DataError: the task's rows cannot be read.
    """
    from ...memory.sizes import Data

    given = config_values(arguments)
    if arguments.tokens is not None and ("task" in given or "data" in given):
        raise ConfigError("--tokens is the length of made-up examples, and a task has its own", "give one of the two")
    if "task" in given or "data" in given:
        from ...memory.forecast import CHARACTERS_A_TOKEN, sizes_of
        from ...tasks.registry import load_task

        loaded = load_task(base)
        data = sizes_of(loaded, base.max_tokens, base.objective)
        longest = max(size.length for size in data.train)
        return data, f"{loaded.task.name}: up to {longest} tokens, at {CHARACTERS_A_TOKEN:g} characters each"
    tokens = base.max_tokens if arguments.tokens is None else arguments.tokens
    if not 1 <= tokens <= 2**20:
        raise ConfigError(f"--tokens: expected a whole number from 1 to {2**20}, not {tokens}", "try --tokens 512")
    return Data.uniform(tokens), f"examples of {tokens} tokens"


def _shapes(names: Sequence[str]) -> list[ModelShape]:
    from ...models.registry import load_registry
    from ...models.resolve import shape_of

    return [shape_of(name) for name in names or load_registry()]


def _need_room(rows: Sequence[PlanRow], cap: int) -> None:
    """Raises DoesNotFit if the process needs more than the cap before a model is loaded."""
    runtime = min(sum(p.bytes for p in row.components if p.name in ("runtime", "tokenizer")) for row in rows)
    if cap < runtime:
        raise DoesNotFit(
            f"the cap of {format_bytes(cap)} is below what Python, MLX and a tokenizer take before a model is loaded: "
            f"{format_bytes(runtime)}",
            "give a larger --memory-cap: the smallest models need about 1GB",
        )


def _document(plan: _Plan) -> dict[str, Any]:
    from ...memory.coefficients import COEFFICIENTS

    steps = plan.steps
    return {
        "memory_cap_bytes": plan.cap,
        "data": plan.source,
        "batch_size": plan.base.batch_size,
        "steps": steps,
        "recommendation": plan.advice,
        "calibration": dataclasses.asdict(plan.calibration) if plan.calibration else None,
        "rows": [{**dataclasses.asdict(row), "hours": row.hours(steps)} for row in plan.rows],
        "ridge_probe": dataclasses.asdict(plan.probe) if plan.probe else None,
        "coefficients": {name: dataclasses.asdict(c) for name, c in COEFFICIENTS.items()},
    }


def _print(plan: _Plan, *, one: bool) -> None:
    from ...memory.plan import above_working_set
    from ..console import listing, output

    console, rows, steps = output(), plan.rows, plan.steps
    console.print(f"Cap {format_bytes(plan.cap)}; {plan.source}; batches of {plan.base.batch_size}")
    for warning in above_working_set(plan.cap):
        console.print(f"Note: {warning}.")
    if one:
        _print_components(rows)
    else:
        say()
        _print_models(rows, console)
    say()
    numbers = ("footprint", "MLX peak", "micro-batch", "step")
    columns = ["way", "model" if one else "largest model", *numbers, f"{steps} steps"]
    console.print(listing(columns, [*_best(rows, steps), _probe_line(plan.probe)], right=numbers))
    say(
        "\nThe ridge probe is part of `mlxzo eval --baselines`: one forward pass an example, at the memory of "
        "inference.\nIt says what a frozen model's features give, before a night is spent on more."
    )
    if plan.calibration is None:
        say("\nTimes are unknown: `mlxzo plan --calibrate` measures this machine once, in a few seconds.")
    for assumed in {f"{row.model}: {text}" for row in rows for text in row.assumed}:
        console.print(f"Assumed of {assumed}.")
    console.print(f"\nChoose {plan.advice}" if any(row.fits for row in rows) else f"\n{plan.advice}")


def _print_models(rows: Sequence[PlanRow], console: Any) -> None:
    """One table per group: models that backpropagation fits, that only MeZO fits, that nothing fits."""
    from ...memory.plan_table import WAYS
    from ..console import listing

    columns = list(dict.fromkeys(_column(way.name) for way in WAYS))
    models: dict[str, dict[str, PlanRow]] = {}
    for row in rows:
        models.setdefault(row.model, {})[_column(row.way.name)] = row
    groups: dict[str, list[list[str]]] = {}
    for name, ways in sorted(models.items(), key=lambda item: next(iter(item[1].values())).parameters):
        first = next(iter(ways.values()))
        cells = [
            "" if (row := ways.get(column)) is None else ("" if row.fits else "x ") + format_bytes(row.footprint_bytes)
            for column in columns
        ]
        backward = any(row.fits for row in ways.values() if row.way.method == "bp")
        forward = any(row.fits for row in ways.values() if row.way.method == "mezo")
        title = "backpropagation fits" if backward else "only MeZO fits" if forward else "nothing fits"
        groups.setdefault(title, []).append([name, format_count(first.parameters), first.weights, *cells])
    for title in ("backpropagation fits", "only MeZO fits", "nothing fits"):
        if title in groups:
            console.print(title[0].upper() + title[1:], style="bold")
            console.print(listing(["model", "size", "weights", *columns], groups[title], right=("size", *columns)))
            say()


def _column(way: str) -> str:
    """The column of a way of training: quantised and floating models share those of LoRA."""
    return way.replace("QLoRA", "LoRA").replace(", checkpointing", " ckpt")


def _print_components(rows: Sequence[PlanRow]) -> None:
    from ...memory.components import component_lines

    for row in rows:
        verdict = "fits" if row.fits else "does not fit; at the least"
        say(f"\n{row.model}, {row.way.name}: {verdict} {format_bytes(row.footprint_bytes)}")
        for line in component_lines(row.components):
            say(f"  {line}")


def _probe_line(probe: ProbeRow | None) -> list[str]:
    """The row of the ridge probe, which has no steps and no micro-batches to choose."""
    if probe is None:
        return ["ridge probe", "none fits", "", "", "", "", ""]
    sizes = [format_bytes(probe.footprint_bytes), format_bytes(probe.peak_bytes)]
    return ["ridge probe", probe.model, *sizes, "", "", "one pass"]


def _best(rows: Sequence[PlanRow], steps: int) -> list[list[str]]:
    """One row per way of training: the largest model that fits."""
    from ...memory.plan_table import WAYS, largest

    found = largest(rows)
    lines = []
    for way in WAYS:
        row = found.get(way.name)
        if row is None:
            if any(other.way == way for other in rows):
                lines.append([way.name, "none fits", "", "", "", "", ""])
            continue
        seconds = row.seconds_per_step
        lines.append(
            [
                way.name,
                row.model,
                format_bytes(row.footprint_bytes),
                format_bytes(row.peak_bytes),
                str(row.micro_batch),
                format_seconds(seconds),
                format_seconds(None if seconds is None else steps * seconds),
            ]
        )
    return lines
