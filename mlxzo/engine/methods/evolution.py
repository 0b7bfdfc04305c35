"""Evolution strategies: a population writes answers to the same prompts, and its rewards make the step.

See `zo.evolution` for the step. What a population writes is one batch where the scope allows it (`Evaluator.write`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import mlx.core as mx
import numpy as np

from ...core.lr_schedule import learning_rate
from ...core.resolved_config import ResolvedConfig
from ...models.trainable import Trainable
from ...tasks.base import Example
from ...zo.evolution import changed_share, evolution_factors
from ...zo.journal import Journal, JournalStep, as_float32
from ...zo.perturb import Direction, View
from ..batching import Batch
from ..distributed.communicator import Communicator, Piece, members_at_once
from ..objectives import AnswerObjective, sources
from ..scoring import Scorer
from . import PopulationResult, StepResult
from .zeroth_order import ZerothOrder, rms

# The share of answers that the perturbation is to change: with fewer most rewards are equal, with more the members
# have little in common with the weights in between.
_LEAST_CHANGED, _MOST_CHANGED = 0.2, 0.5
# Of the search for such a scale: directions and prompts that it looks at, and the most scales that it tries.
_DIRECTIONS, _PROMPTS, _TRIALS = 2, 16, 10


class EvolutionStrategies(ZerothOrder):
    """Steps along z-scored rewards, each followed by a pull towards the start.

    Args:
        answers: the objective.
        find_eps: find the scale of the perturbation before the first step, so that 20 to 50 % of the answers change.
    """

    def __init__(
        self,
        scorer: Scorer,
        trainable: Trainable,
        config: ResolvedConfig,
        answers: AnswerObjective,
        team: Communicator | None = None,
        *,
        find_eps: bool = False,
    ):
        super().__init__(scorer, trainable, config, team)
        self.answers = answers
        self.eps = None if find_eps else config.eps
        if config.pull:
            # Kept by reference: a step makes new arrays.
            self.start: Mapping[str, mx.array] = {name: self.causal.slots[name].get() for name in trainable.names}

    def step(self, step: int, batch: Batch) -> StepResult:
        config, passes = self.config, self.passes
        note = ""
        if self.eps is None:
            self.eps, note = self._found_eps(step, batch)
        lr = learning_rate(config.lr, config.schedule, step, config.steps, config.warmup_steps)
        directions = self.directions(step)
        scores, identities, texts = self._written(sources(batch), self._members(directions, self.eps))
        rewards = scores.mean(axis=1)
        slopes = (rewards[1::2] - rewards[::2]) / (2.0 * self.eps)
        # Rounded to the precision of the journal, so that a replay computes the same update.
        loss, *derivatives = as_float32([1.0 - float(rewards.mean()), *slopes.tolist()])
        *factors, pull = as_float32([*evolution_factors(rewards, lr, self.eps).tolist(), config.pull])
        if not any(factors):
            pull = 0.0
        if math.isfinite(loss):
            if self.journal is not None:
                state = (self.eps, pull, 0.0)
                self.journal.append(JournalStep(tuple(derivatives), tuple(factors), loss, state=state))
            self.apply_updates(list(zip(directions, factors, strict=True)), step, pull=pull)
        order = np.argsort(rewards, kind="stable")
        population = PopulationResult(
            tuple(rewards.tolist()),
            self.eps,
            changed_share(identities),
            texts.get(int(order[-1]), ()),
            texts.get(int(order[len(order) // 2]), ()),
        )
        ties = sum(slope == 0.0 for slope in derivatives)
        return StepResult(
            loss, lr, rms(derivatives), ties, passes=self.passes - passes, population=population, note=note
        )

    def resume(self, journal: Journal, step: int) -> None:
        super().resume(journal, step)
        if len(journal):
            self.eps = journal[0].state[0]

    def _members(self, directions: Sequence[Direction], eps: float) -> list[View]:
        """The weights of the population, the two members of a direction side by side."""
        return [self.causal.view(direction, signed) for direction in directions for signed in (eps, -eps)]

    def _written(
        self, examples: Sequence[Example], views: Sequence[View], judged: bool = True
    ) -> tuple[np.ndarray, np.ndarray, dict[int, tuple[str, ...]]]:
        """What members write to the prompts of examples, the ranks together.

        Returns:
            Scores (zeros unless `judged`) and identities of the answers, float64 [members, B] each,
            and the answers of those members that this rank wrote.
        """
        self.passes += len(views)
        together = members_at_once(self.config)
        groups = [range(first, min(first + together, len(views))) for first in range(0, len(views), together)]
        texts: dict[int, tuple[str, ...]] = {}

        def of_groups(numbers: Sequence[int]) -> list[np.ndarray]:
            found = []
            for number in numbers:
                group = groups[number]
                written = self.answers.write(examples, [views[member] for member in group])
                texts.update(zip(group, map(tuple, written), strict=True))
                scores = np.zeros((len(group), len(examples)))
                if judged:
                    asked = [answer for own in written for answer in own]
                    flat = np.array(self.answers.judge([*examples] * len(group), asked), np.float64)
                    scores = flat.reshape(scores.shape)
                found.append(np.stack([scores, [[_identity(answer) for answer in own] for own in written]]))
            return found

        pieces = [Piece(float(len(group)), (2, len(group), len(examples))) for group in groups]
        scores, identities = np.concatenate(self.team.scatter_gather(pieces, of_groups), axis=1)
        return scores, identities, texts

    def _found_eps(self, step: int, batch: Batch) -> tuple[float, str]:
        """A scale of the perturbation that changes 20 to 50 % of the answers, or of those tried the one that comes
        closest, and a remark about it.

        The search doubles and halves the default of the scope, and bisects between a scale that is too small and one
        that is too large. It depends on the seed and the prompts alone.
        """
        eps = self.config.eps
        directions = self.directions(step)[:_DIRECTIONS]
        some = sources(batch)[:_PROMPTS]
        low, high = 0.0, math.inf
        tried: list[tuple[float, float, float]] = []
        middle = (_LEAST_CHANGED + _MOST_CHANGED) / 2
        for _ in range(_TRIALS):
            (eps,) = as_float32([eps])
            _, identities, _ = self._written(some, self._members(directions, eps), judged=False)
            changed = changed_share(identities)
            tried.append((abs(changed - middle), eps, changed))
            if changed < _LEAST_CHANGED:
                low = eps
            elif changed > _MOST_CHANGED:
                high = eps
            else:
                break
            if low == 0.0 or high == math.inf:
                eps = eps / 2 if low == 0.0 else eps * 2
            else:
                eps = math.sqrt(low * high)
        _, eps, changed = min(tried)
        remark = f"eps is {eps:.3g}: with it {100 * changed:.0f} % of the answers change"
        if not _LEAST_CHANGED <= changed <= _MOST_CHANGED:
            remark += f", the closest to {100 * _LEAST_CHANGED:.0f} to {100 * _MOST_CHANGED:.0f} % that was found"
        return eps, remark


def _identity(answer: str) -> float:
    """A number that stands for a text: 52 bits of its hash, which float64 holds."""
    return float(int.from_bytes(blake2b(answer.encode(errors="surrogatepass"), digest_size=8).digest(), "little") >> 12)
