"""Optimisation methods: each makes one step of the trainable parameters per batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...core.resolved_config import ResolvedConfig
from ..batching import Batch

if TYPE_CHECKING:
    import mlx.core as mx

    from ...models.trainable import Trainable
    from ...zo.journal import Journal
    from ..distributed.communicator import Communicator
    from ..objectives import AnswerObjective
    from ..scoring import Scorer


@dataclass(frozen=True)
class PopulationResult:
    """The population of a step.

    Attributes:
        rewards: mean of each member over the batch.
        eps: scale of the perturbation.
        changed: share of answers that differ from the most frequent one to the same prompt.
        best, median: answers of the members with these rewards; empty on ranks that have not written them.
    """

    rewards: tuple[float, ...]
    eps: float
    changed: float
    best: tuple[str, ...] = ()
    median: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step.

    Attributes:
        loss: mean of the objective over the batch.
        lr: learning rate of this step.
        directional_derivative: MeZO's; the rms of several; None for backpropagation.
        ties: directions that change no value, which carry no signal.
        damping: RSGN's, for the next step; 0 for the other methods.
        passes: forward passes over the batch.
        population: of ES.
        note: a remark to the user.
    """

    loss: float
    lr: float
    directional_derivative: float | None = None
    ties: int = 0
    damping: float = 0.0
    passes: int = 1
    population: PopulationResult | None = None
    note: str = ""


class Method:
    """An optimisation method, as the trainer and the checkpoints use it.

    A method without state of its own, or without a journal, keeps the no-ops.
    """

    has_journal: ClassVar[bool] = False
    """True if a journal of the steps gives the weights of any step; otherwise a run resumes from its last snapshot."""

    def step(self, step: int, batch: Batch) -> StepResult:
        """Moves the parameters once; `step` counts from 0. A loss that is not finite moves nothing."""
        raise NotImplementedError

    def state(self) -> dict[str, mx.array]:
        """State that the next step depends on, by name, beside the parameters and the journal."""
        return {}

    def restore(self, state: Mapping[str, mx.array], step: int) -> None:
        """Takes back the state that `state` returned after `step` steps."""

    def open_journal(self, path: Path, base_sha256: str, after: Journal | None = None) -> None:
        """Records all steps from here on in a journal at `path`.

        Args:
            base_sha256: fingerprint of the weights before the first step.
            after: the journal that is already there, to be continued; None starts a new one.

        Raises:
            OSError: it cannot be written.
        """

    def resume(self, journal: Journal, step: int) -> None:
        """Brings the parameters, which are those after `step` steps, and all state to the end of the journal."""

    def replay(self, journal: Journal, start: int, stop: int) -> None:
        """Brings the parameters, which are those after `start` steps, to those after `stop` steps of a journal."""

    def sync(self) -> None:
        """Flushes the journal to the disk.

        Raises:
            OSError: it cannot be written.
        """

    def close(self) -> None:
        """Flushes and closes the journal.

        Raises:
            OSError: it cannot be written.
        """


def make_method(
    scorer: Scorer,
    trainable: Trainable,
    config: ResolvedConfig,
    of_answers: AnswerObjective | None = None,
    team: Communicator | None = None,
    *,
    find_eps: bool = False,
) -> Method:
    """Makes the method of a resolved configuration.

    Args:
        of_answers: the objective of MeZO or ES, where it is a function of generated answers.
        team: the ranks that share the work; None for a run in one process.
        find_eps: ES finds the scale of its perturbation before the first step.

    Raises:
        ConfigError: the model does not support an option of the configuration.
    """
    from .backprop import Backprop
    from .evolution import EvolutionStrategies
    from .mezo import MeZO
    from .rsgn import RSGN

    if config.method == "bp":
        return Backprop(scorer, trainable, config, team)
    if config.estimator == "rsgn":
        return RSGN(scorer, trainable, config, team)
    if config.estimator == "es":
        assert of_answers is not None, "the configuration was checked"
        return EvolutionStrategies(scorer, trainable, config, of_answers, team, find_eps=find_eps)
    return MeZO(scorer, trainable, config, of_answers, team)
