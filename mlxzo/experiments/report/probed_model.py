"""The ridge probe of one model as a line of a report: mean and range over the seeds that it was measured with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...core.formatting import format_seconds
from ...core.metrics import metric_named
from ..model_probe import ModelProbe
from .spread import Spread


@dataclass(frozen=True)
class ProbedModel:
    """The probes of one model, one a seed.

    Attributes:
        results: the split and the fields of a `LayerProbe`, by seed.
    """

    model: str
    results: dict[int, dict[str, Any]]

    @property
    def name(self) -> str:
        return f"ridge probe, {self.model}"

    @property
    def metric(self) -> str:
        return self._values("metric")[0]

    @property
    def split(self) -> str:
        return self._values("split")[0]

    @property
    def value(self) -> Spread:
        return Spread.of_known(self._values("value"))

    @property
    def seconds(self) -> Spread:
        return Spread.of_known(self._values("seconds"))

    @property
    def standard_error(self) -> float:
        """The largest of all seeds; their rows are the same, so that a mean over seeds has no smaller one."""
        return max(self._values("standard_error"))

    def sentence(self) -> str:
        """Accuracy and its standard error, layers, seeds and time."""
        layers = ", ".join(str(layer) for layer in sorted(set(self._values("layer"))))
        seeds = ", ".join(str(seed) for seed in self.results)
        rows, depth = self._values("train_examples")[0], self._values("model_layers")[0]
        return (
            f"The ridge probe of {self.model} has a {self.split} {self.metric} of "
            f"{metric_named(self.metric).text(self.value.mean)}, with a standard error of "
            f"{100 * self.standard_error:.1f} points: a linear map from the states after layer {layers} of {depth}, "
            f"chosen on {rows:,} training rows (seed {seeds}), in {format_seconds(self.seconds.mean)} without training."
        )

    def to_dict(self) -> dict[str, Any]:
        """All values, as comparison.json holds them."""
        return {
            "model": self.model,
            "value": self.value.to_dict(),
            "standard_error": self.standard_error,
            "seconds": self.seconds.to_dict(),
            "seeds": [{"seed": seed, **result} for seed, result in self.results.items()],
        }

    def _values(self, key: str) -> list[Any]:
        return [result[key] for result in self.results.values()]


def probed_models(probes: Iterable[ModelProbe]) -> list[ProbedModel]:
    """The probes that were measured, by model."""
    found: dict[str, ProbedModel] = {}
    for probe in probes:
        if (result := probe.result) is not None:
            of_model = found.setdefault(probe.config.model, ProbedModel(probe.model_name, {}))
            of_model.results[probe.config.seed] = result
    return list(found.values())
