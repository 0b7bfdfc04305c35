"""The metrics that a run may report: whether more is better, and whether a value is a share from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric; `is_share`: its values lie in [0, 1] and are shown as percentages."""

    name: str
    higher_is_better: bool = True
    is_share: bool = True

    def merit(self, value: float) -> float:
        """A value to compare by: the higher, the better."""
        return value if self.higher_is_better else -value


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


def metric_named(name: str) -> Metric:
    """The metric of this name; one that a newer version wrote is taken for a share."""
    return _METRICS.get(name) or Metric(name)
