"""The table of a plan: models against ways of training, the largest model of each way under a cap, a recommendation.

Imports no MLX and loads no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.config import RunConfig
from ..core.device import computes_as_cpu
from ..core.formatting import format_bytes
from ..models.architecture import ModelShape
from .components import Component
from .estimate import Predictor
from .plan import smallest, try_fit
from .sizes import Data
from .step_time import Calibration, seconds_per_step


@dataclass(frozen=True)
class Way:
    """A way of training a model.

    Attributes:
        name: in tables.
        quantised: True if it needs a quantised model, False a floating one, None either.
    """

    name: str
    method: str
    scope: str
    checkpointing: str = "off"
    quantised: bool | None = None

    def suits(self, shape: ModelShape) -> bool:
        return self.quantised in (None, shape.quantised)

    def config(self, base: RunConfig) -> RunConfig:
        """The run of `base` trained this way."""
        changes = {"method": self.method, "scope": self.scope, "checkpointing": self.checkpointing}
        # Step sizes depend on method and scope; the memory does not depend on them.
        return dataclasses.replace(base, **changes, lr=None, eps=None, update=None, queries=None).resolved()


WAYS = (
    Way("MeZO full", "mezo", "full", quantised=False),
    Way("MeZO LoRA", "mezo", "lora"),
    Way("MeZO scales", "mezo", "scales", quantised=True),
    Way("BP full", "bp", "full", quantised=False),
    Way("BP full, checkpointing", "bp", "full", "on", quantised=False),
    Way("BP LoRA", "bp", "lora", quantised=False),
    Way("BP LoRA, checkpointing", "bp", "lora", "on", quantised=False),
    Way("BP QLoRA", "bp", "lora", quantised=True),
    Way("BP QLoRA, checkpointing", "bp", "lora", "on", quantised=True),
)


@dataclass(frozen=True)
class PlanRow:
    """One model trained one way.

    Attributes:
        fits: under the cap. All figures are then those of the run with the largest micro-batch that fits, else those
            of the smallest run.
        micro_batch: sequences in the largest micro-batch.
        seconds_per_step: estimate; None without a calibration.
        components: parts of the footprint.
    """

    model: str
    parameters: int
    weights: str
    quantised: bool
    way: Way
    fits: bool
    footprint_bytes: int
    peak_bytes: int
    micro_batch: int
    seconds_per_step: float | None
    components: tuple[Component, ...]
    assumed: tuple[str, ...] = ()

    def hours(self, steps: int) -> float | None:
        return None if self.seconds_per_step is None else steps * self.seconds_per_step / 3600


def table(
    shapes: Iterable[ModelShape],
    base: RunConfig,
    data: Data,
    cap_bytes: int,
    *,
    on_cpu: bool | None = None,
    calibration: Calibration | None = None,
    ways: Sequence[Way] = WAYS,
) -> list[PlanRow]:
    """Every model trained in every way that suits it, in the order given.

    Args:
        base: the options that the runs have in common: batch size, optimiser, rank, dtype.
    """
    cpu = computes_as_cpu() if on_cpu is None else on_cpu
    configs = [(way, way.config(base)) for way in ways]
    return [
        _row(shape, way, config, data, cap_bytes, cpu, calibration)
        for shape in shapes
        for way, config in configs
        if way.suits(shape)
    ]


def _row(
    shape: ModelShape,
    way: Way,
    config: RunConfig,
    data: Data,
    cap_bytes: int,
    on_cpu: bool,
    calibration: Calibration | None,
) -> PlanRow:
    predictor = Predictor(shape, config, data, on_cpu)
    found = try_fit(predictor, cap_bytes)
    predicted = found.estimate if found else smallest(predictor)
    settled = found.config if found else config
    return PlanRow(
        model=shape.name,
        parameters=shape.parameters,
        weights=shape.number_format(config.dtype),
        quantised=shape.quantised,
        way=way,
        fits=found is not None,
        footprint_bytes=predicted.footprint_bytes,
        peak_bytes=predicted.peak_bytes,
        micro_batch=predicted.micro_batch_rows,
        seconds_per_step=seconds_per_step(shape, settled, data, calibration) if calibration else None,
        components=predicted.components,
        assumed=shape.assumed,
    )


def largest(rows: Iterable[PlanRow]) -> dict[str, PlanRow]:
    """The largest model that fits, by the name of the way; of models of equal size the one with larger weights."""
    found: dict[str, PlanRow] = {}
    for row in rows:
        before = found.get(row.way.name)
        if row.fits and (before is None or _size(row) > _size(before)):
            found[row.way.name] = row
    return found


@dataclass(frozen=True)
class ProbeRow:
    """The ridge probe of a model, or any other evaluation of it: one forward pass an example."""

    model: str
    footprint_bytes: int
    peak_bytes: int


def largest_probe(
    shapes: Iterable[ModelShape], base: RunConfig, data: Data, cap_bytes: int, *, on_cpu: bool | None = None
) -> ProbeRow | None:
    """The largest model whose ridge probe fits under a cap; None where none does."""
    cpu = computes_as_cpu() if on_cpu is None else on_cpu
    found = {shape: Predictor(shape, base, data, cpu).evaluation() for shape in shapes}
    fitting = [shape for shape, predicted in found.items() if predicted.footprint_bytes <= cap_bytes]
    if not fitting:
        return None
    shape = max(fitting, key=lambda shape: (shape.parameters, not shape.quantised))
    return ProbeRow(shape.name, found[shape].footprint_bytes, found[shape].peak_bytes)


def recommend(rows: Sequence[PlanRow], cap_bytes: int) -> str:
    """A recommendation for the cap, in one sentence.

    Backpropagation on LoRA adapters takes nearly as little memory as MeZO and converges far faster (arXiv 2510.03425,
    2506.21833), so it is recommended wherever it fits; MeZO is for models that only it fits, and for all weights
    where the gradients of backpropagation do not fit.
    """
    fitting = [row for row in rows if row.fits]
    cap = format_bytes(cap_bytes)
    if not fitting:
        least = min(rows, key=lambda row: row.footprint_bytes)
        need = format_bytes(least.footprint_bytes)
        return f"Nothing fits under {cap}: the least is {least.model} with {least.way.name}, at {need}."
    backward = [row for row in fitting if row.way.method == "bp" and row.way.scope == "lora"]
    forward = [row for row in fitting if row.way.method == "mezo"]
    if not backward:
        return (
            f"{_named(max(forward, key=_preference))}: under {cap} backpropagation fits no model, not even on adapters "
            "with checkpointing."
        )
    best = max(backward, key=_preference)
    beyond = max(forward, key=_preference, default=best)
    if beyond.parameters > best.parameters:
        return (
            f"{_named(beyond)}, which is larger than any that backpropagation fits under {cap}; up to {_named(best)}, "
            "backpropagation converges far faster."
        )
    sentence = f"{_named(best)}: backpropagation fits, and converges far faster than MeZO"
    sentence += " at nearly the same memory" if best.way.checkpointing == "on" else ""
    mezo, bp = (
        max((row for row in fitting if row.way.method == method and row.way.scope == "full"), key=_size, default=None)
        for method in ("mezo", "bp")
    )
    if mezo is not None and (bp is None or mezo.parameters > bp.parameters):
        sentence += f"; to tune all weights, MeZO fits {mezo.model}"
        sentence += f", and backpropagation no more than {bp.model}" if bp else ""
    return sentence + "."


def _named(row: PlanRow) -> str:
    return f"{row.model} with {row.way.name} ({format_bytes(row.footprint_bytes)})"


def _size(row: PlanRow) -> tuple[int, bool]:
    return row.parameters, not row.quantised


def _preference(row: PlanRow) -> tuple[int, bool, bool]:
    """Larger models first, then floating weights, then what needs no checkpointing."""
    return *_size(row), row.way.checkpointing != "on"
