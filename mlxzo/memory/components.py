"""A predicted footprint as a sum of named components, in bytes. Imports no MLX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.formatting import format_bytes

# Components that MLX's counter of the peak does not include.
_OUTSIDE = ("runtime", "tokenizer", "buffer cache", "saving", "heap")
_PEAK = "predicted peak"


@dataclass(frozen=True)
class Component:
    """One part of the predicted footprint: its name, its bytes, and a description in words."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a run is predicted to take.

    Attributes:
        components: parts of the footprint, which is their sum.
        phase: the phase of the run with the highest peak, whose components these are.
        phases: MLX's peak in each phase, in bytes.
        cache_limit_bytes: limit of MLX's cache of freed buffers.
        micro_batch_rows: sequences in the largest micro-batch of training.
    """

    components: tuple[Component, ...]
    phase: str
    phases: dict[str, int] = field(default_factory=dict)
    cache_limit_bytes: int = 0
    micro_batch_rows: int = 0

    @property
    def footprint_bytes(self) -> int:
        return sum_bytes(self.components)

    @property
    def peak_bytes(self) -> int:
        """MLX's peak."""
        return sum(c.bytes for c in self.components if c.name not in _OUTSIDE)

    def bytes_of(self, *names: str) -> int:
        """Bytes of the components with these names."""
        return sum(part.bytes for part in self.components if part.name in names)


def sum_bytes(components: Sequence[Component]) -> int:
    """Bytes of all components."""
    return sum(part.bytes for part in components)


def larger(*choices: list[Component]) -> list[Component]:
    """The choice with most bytes."""
    return max(choices, key=sum_bytes)


def merged(components: Sequence[Component]) -> tuple[Component, ...]:
    """Components of one name added up, components of 0 bytes left out."""
    found: dict[str, Component] = {}
    for part in components:
        before = found.get(part.name)
        if before is not None and part.bytes:
            part = Component(part.name, before.bytes + part.bytes, f"{before.why}; {part.why}")
        if part.bytes:
            found[part.name] = part
    return tuple(found.values())


def component_lines(components: Sequence[Component], width: int = 24) -> list[str]:
    """The components of a footprint, one line each, with a bar of the length of its share."""
    total = sum_bytes(components)
    names = max(len(name) for name in (_PEAK, *(part.name for part in components)))
    lines = []
    for part in components:
        bar = "█" * max(1, round(width * part.bytes / total))
        lines.append(f"{part.name:<{names}} {format_bytes(part.bytes):>9} {bar:<{width}} {part.why}")
    return [*lines, f"{_PEAK:<{names}} {format_bytes(total):>9}"]
