"""Mean and range of a value over runs or seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and range of a value over runs."""

    mean: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread | None:
        """The spread of the values that are not None; None where all are."""
        known = [value for value in values if value is not None]
        return Spread.of_known(known) if known else None

    @staticmethod
    def of_known(values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        return Spread(statistics.fmean(values), min(values), max(values), len(values))

    def to_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}
