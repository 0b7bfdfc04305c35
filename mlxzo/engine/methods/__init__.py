"""Optimisation methods: each takes a batch and moves the trainable parameters by one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...core.config import RunConfig
from ..batching import Batch

if TYPE_CHECKING:
    import mlx.core as mx

    from ...models.trainable import Trainable
    from ..distributed.communicator import Communicator
    from ..objectives import OfAnswers
    from ..scoring import Scorer


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step: mean loss of the batch, the learning rate used, and MeZO's directional derivative.

    Attributes:
        loss: of what is minimised, so the objective's value where that is not the loss.
        ties: directions on both sides of which the batch gave the same value: no signal.
    """

    loss: float
    lr: float
    directional_derivative: float | None = None
    ties: int = 0


class Method(Protocol):
    """What the trainer asks of an optimisation method."""

    def step(self, step: int, batch: Batch) -> StepResult:
        """Moves the parameters once; `step` counts from 0. A loss that is not finite moves nothing."""
        ...

    def state(self) -> dict[str, mx.array]:
        """What the next step depends on beside the parameters and what a journal tells, by name."""
        ...

    def restore(self, state: Mapping[str, mx.array], step: int) -> None:
        """Takes back what `state` gave after `step` steps."""
        ...


def make_method(
    scorer: Scorer,
    trainable: Trainable,
    config: RunConfig,
    of_answers: OfAnswers | None = None,
    team: Communicator | None = None,
) -> Method:
    """The method of a resolved configuration.

    Args:
        of_answers: what MeZO minimises, where the objective is of the answers that the model writes.
        team: who shares the work; None for nobody.

    Raises:
        ConfigError: the method cannot do what the configuration asks of it on this model.
    """
    from .backprop import Backprop
    from .mezo import MeZO

    if config.method == "bp":
        return Backprop(scorer, trainable, config, team)
    return MeZO(scorer, trainable, config, of_answers, team)
