"""What fits under a memory cap: a run settled to it, and a table of models and methods. Imports no MLX."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..batching import Shapes
from ..config import RunConfig
from ..errors import DoesNotFit
from ..files import format_bytes
from ..models.registry import load_registry
from .estimate import COEFFICIENTS, Data, Estimate, coefficient, estimate, runs_on_cpu
from .shape import ModelShape, of_entry

# With fewer tokens than this share of what suits the device, a micro-batch wastes its matrix products: gradient
# checkpointing, which costs a third more computation, is then the better way to save memory.
_SMALL_MICRO_BATCH = 0.25


@dataclass(frozen=True)
class Fit:
    """A run settled to a cap.

    Attributes:
        config: the run's, with `micro_batch`, `checkpointing` and `prefix_cache` settled.
        estimate: what it is predicted to take.
        cap_bytes: the cap; None: there is none, and nothing was settled but `checkpointing`.
        cache_limit_bytes: what to limit MLX's cache of freed buffers to; None leaves MLX's own.
        notes: what was settled, in words.
    """

    config: RunConfig
    estimate: Estimate
    cap_bytes: int | None
    cache_limit_bytes: int | None
    notes: tuple[str, ...] = ()


def settle(config: RunConfig, shape: ModelShape, data: Data, *, on_cpu: bool | None = None) -> Fit:
    """The run fitted to its own `memory_cap`, where it has one: what a worker calls before it loads the model.

    Args:
        config: resolved.
        data: the sizes of its encoded examples: `Data(tuple(train), tuple(validation + test))`.

    Raises:
        DoesNotFit: see `fit`.
    """
    cap = config.memory_cap_bytes
    if cap is not None:
        return fit(config, shape, data, cap, on_cpu=on_cpu)
    if config.checkpointing == "auto":
        config = dataclasses.replace(config, checkpointing="off")
    return Fit(config, estimate(shape, config, data, on_cpu=on_cpu), None, None)


def fit(config: RunConfig, shape: ModelShape, data: Data, cap_bytes: int, *, on_cpu: bool | None = None) -> Fit:
    """The run with the largest micro-batch whose predicted footprint, and a margin, stay under the cap.

    What is `auto` gives way in this order: MLX's cache of freed buffers, the prefix cache in memory, the size of a
    micro-batch down to a quarter of what suits the device, activations (gradient checkpointing), and then the
    micro-batch down to one sequence. Only the cut into micro-batches can change a MeZO loss, and that by the rounding
    of float32.

    Raises:
        DoesNotFit: no way of running it fits. The details are the components of the smallest, and what would fit.
    """
    cpu = runs_on_cpu() if on_cpu is None else on_cpu
    found = try_fit(config, shape, data, cap_bytes, on_cpu=cpu)
    if found is not None:
        return found
    smallest = _smallest(config, shape, data, cpu)
    need = needed_bytes(smallest)
    runtime = _bytes_of(smallest, "runtime", "tokenizer")
    if cap_bytes < runtime:
        message = (
            f"the cap of {format_bytes(cap_bytes)} is below what Python, MLX and the tokenizer alone take, "
            f"{format_bytes(runtime)}"
        )
    else:
        message = (
            f"{shape.name} with {describe_method(config)} needs at least {format_bytes(need)}, "
            f"and the cap is {format_bytes(cap_bytes)}"
        )
    ways = alternatives(config, shape, data, cap_bytes, on_cpu=cpu)
    return _refuse(message, ways, smallest, need)


def try_fit(config: RunConfig, shape: ModelShape, data: Data, cap_bytes: int, *, on_cpu: bool) -> Fit | None:
    """As `fit`, or None where the run does not fit."""
    most = _rows_in_a_micro_batch(config, data, on_cpu)
    enough = max(1, int(_SMALL_MICRO_BATCH * most))
    fallback: Fit | None = None
    for checkpointing in _choices(config.checkpointing, config.method == "bp"):
        for prefix_cache in _prefix_caches(config):
            tried = dataclasses.replace(config, checkpointing=checkpointing, prefix_cache=prefix_cache)
            found = _largest_micro_batch(tried, shape, data, cap_bytes, most, on_cpu)
            if found is None:
                continue
            found = dataclasses.replace(found, notes=_notes(found, config))
            rows = found.config.micro_batch or most
            if rows >= enough:
                return found
            if fallback is None or rows > (fallback.config.micro_batch or most):
                fallback = found
    return fallback


def needed_bytes(predicted: Estimate) -> int:
    """What a cap must be for a run predicted to take this much: the footprint and a margin for what is not foreseen."""
    return int(predicted.footprint_bytes * (1.0 + coefficient("margin")))


def describe_method(config: RunConfig) -> str:
    """`MeZO on full`, `backpropagation on lora with checkpointing`."""
    name = "MeZO" if config.method == "mezo" else "backpropagation"
    return f"{name} on {config.scope}" + (" with checkpointing" if config.checkpointing == "on" else "")


def component_lines(predicted: Estimate, width: int = 24) -> list[str]:
    """The components of a prediction, a line each, with a bar as long as its share."""
    total = predicted.footprint_bytes
    names = max(len(part.name) for part in predicted.components)
    lines = []
    for part in predicted.components:
        bar = "█" * max(1 if part.bytes else 0, round(width * part.bytes / total))
        lines.append(f"{part.name:<{names}} {format_bytes(part.bytes):>9} {bar:<{width}} {part.why}")
    lines.append(f"{'together':<{names}} {format_bytes(total):>9}")
    return lines


def alternatives(
    config: RunConfig, shape: ModelShape, data: Data, cap_bytes: int, *, on_cpu: bool | None = None
) -> list[str]:
    """What would fit under the cap instead, and what cap the run would fit under, a clause each."""
    cpu = runs_on_cpu() if on_cpu is None else on_cpu

    def fits(**changes: str) -> bool:
        tried = dataclasses.replace(config, **changes)
        return try_fit(tried, shape, data, cap_bytes, on_cpu=cpu) is not None

    ways = []
    if config.scope != "lora" and fits(scope="lora"):
        ways.append("--scope lora")
    if config.checkpointing == "off" and config.method == "bp" and fits(checkpointing="on"):
        ways.append("--checkpointing on")
    if config.method == "bp" and fits(method="mezo"):
        ways.append("--method mezo")
    smaller = [
        entry
        for entry in load_registry().values()
        if entry.parameters <= shape.parameters
        and entry.name != shape.name
        and (entry.quantization is None or config.scope.startswith(("lora", "scales", "norms")))
        and (entry.quantization is not None or config.scope != "scales")
    ]
    for entry in sorted(smaller, key=lambda entry: -entry.parameters):
        if try_fit(config, of_entry(entry), data, cap_bytes, on_cpu=cpu) is not None:
            ways.append(f"--model {entry.name}")
            break
    need = needed_bytes(_smallest(config, shape, data, cpu))
    ways.append(f"--memory-cap {-(-need // 10**7) / 100:.2f}GB")
    return ways


def _refuse(message: str, ways: Sequence[str], smallest: Estimate, need: int) -> Fit:
    margin = f"{COEFFICIENTS['margin'].value:.0%}"
    raise DoesNotFit(
        message,
        "any of these would fit: " + ", ".join(ways),
        [*component_lines(smallest), f"with the margin of {margin} {format_bytes(need)}"],
        needed_bytes=need,
    )


def _choices(checkpointing: str, backpropagates: bool) -> tuple[str, ...]:
    if not backpropagates:
        return (checkpointing,)
    return ("off", "on") if checkpointing == "auto" else (checkpointing,)


def _prefix_caches(config: RunConfig) -> tuple[str, ...]:
    # A cache on disk is read through a map of the file, which the system counts as the process's memory as well.
    return ("ram", "off") if config.prefix_cache == "auto" else (config.prefix_cache,)


def _rows_in_a_micro_batch(config: RunConfig, data: Data, on_cpu: bool) -> int:
    """Most sequences that a micro-batch of this run would hold without a cap."""
    shapes = Shapes.suited(on_cpu, config.micro_batch)
    shortest = min(shapes.padded(size) for size in data.train)
    rows = max(size.row_count for size in data.train)
    limit = max(1, min(shapes.tokens // shortest, shapes.rows or shapes.tokens))
    return min(limit, config.batch_size * rows)


def _largest_micro_batch(
    config: RunConfig, shape: ModelShape, data: Data, cap_bytes: int, most: int, on_cpu: bool
) -> Fit | None:
    """The run with the most sequences a micro-batch that fit, or None."""

    def attempt(rows: int | None) -> Fit | None:
        tried = dataclasses.replace(config, micro_batch=rows)
        bare = estimate(shape, tried, data, on_cpu=on_cpu, cache_limit_bytes=0)
        room = int(cap_bytes / (1.0 + coefficient("margin"))) - bare.footprint_bytes
        if room < 0:
            return None
        limit = min(room, cache_limit(bare, on_cpu))
        predicted = estimate(shape, tried, data, on_cpu=on_cpu, cache_limit_bytes=limit)
        return Fit(tried, predicted, cap_bytes, limit)

    found = attempt(config.micro_batch)
    if found is not None or most == 1:
        return found
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        tried = attempt(middle)
        if tried is None:
            high = middle
        else:
            low, found = middle, tried
    return found


def cache_limit(predicted: Estimate, on_cpu: bool) -> int:
    """A limit for MLX's cache of freed buffers that costs no time: on a GPU what a step frees again, at most a tenth of
    the footprint; on the CPU MLX's own."""
    default = int(coefficient("default_cache_bytes"))
    if on_cpu:
        return default
    resident = _bytes_of(predicted, "weights", "adapters", "optimiser state", "prefix cache")
    freed = predicted.peak_bytes - resident
    return max(default, min(freed, predicted.footprint_bytes // 10))


def _smallest(config: RunConfig, shape: ModelShape, data: Data, on_cpu: bool) -> Estimate:
    """The least that the run can be made to take."""
    ways = (
        estimate(
            shape,
            dataclasses.replace(config, micro_batch=1, checkpointing=checkpointing, prefix_cache=prefix_cache),
            data,
            on_cpu=on_cpu,
            cache_limit_bytes=0,
        )
        for checkpointing in _choices(config.checkpointing, config.method == "bp")
        for prefix_cache in _prefix_caches(config)
    )
    return min(ways, key=lambda predicted: predicted.footprint_bytes)


def _bytes_of(predicted: Estimate, *names: str) -> int:
    return sum(part.bytes for part in predicted.components if part.name in names)


def _notes(found: Fit, asked: RunConfig) -> tuple[str, ...]:
    settled, notes = found.config, []
    if settled.micro_batch != asked.micro_batch:
        notes.append(f"micro-batches of at most {settled.micro_batch} sequences")
    if settled.checkpointing == "on" and asked.checkpointing == "auto" and settled.method == "bp":
        notes.append("gradient checkpointing")
    if settled.prefix_cache == "ram" and asked.prefix_cache == "auto" and settled.method == "mezo":
        notes.append("the output of frozen layers kept in memory")
    notes.append(f"MLX's cache of freed buffers limited to {format_bytes(found.cache_limit_bytes or 0)}")
    return tuple(notes)
