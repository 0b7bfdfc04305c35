"""The metrics that a run may report: whether more is better, and whether a value is a share from 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric; `is_share`: its values lie in [0, 1] and are shown as percentages."""

    name: str
    higher_is_better: bool = True
    is_share: bool = True

    @property
    def scale(self) -> float:
        """The factor of values on an axis: 100 for a share, which is drawn in percent."""
        return 100.0 if self.is_share else 1.0

    def merit(self, value: float) -> float:
        """A value to compare by: the higher, the better."""
        return value if self.higher_is_better else -value

    def text(self, value: float | None) -> str:
        """A share in percent, any other value with three decimals; `n/a` for None."""
        if value is None:
            return "n/a"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.3f}"

    def gain_text(self, before: float, after: float) -> str:
        """The gain in words, as `+17.0 points`; empty where lower values are better."""
        if not self.higher_is_better:
            return ""
        return f"{100 * (after - before):+.1f} points" if self.is_share else f"{after - before:+.3f}"


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy"),
        Metric("f1"),
        Metric("exact_match"),
        Metric("loss", higher_is_better=False, is_share=False),
        # On the scale of the user's own function.
        Metric("reward", is_share=False),
    )
}


def metric_named(name: object) -> Metric:
    """The metric of this name; one that a newer version wrote is taken for a share."""
    return _METRICS.get(str(name)) or Metric(str(name))


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent examples (binomial); 0 for what is no share."""
    return math.sqrt(max(0.0, share * (1.0 - share)) / max(1, count))
