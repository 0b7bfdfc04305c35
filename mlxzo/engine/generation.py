"""Batched generation of answers: continuations of many prompts at a time, up to the end of a line.

Shared prefixes of prompts are read once (see `prefix_sharing`), and new prompts take the place of answers that end.
Keys and values are cached, so that each further token costs one pass over the weights for all answers in flight. The
pass over a prompt can score its expected answer as well, which saves reading the prompt again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.causal import CausalLM
from ..zo.perturb import Population, View
from .batching import Shapes
from .prefill import PopulationPrefill, Prefill
from .prefix_sharing import MAX_NEW_TOKENS, Prompt, Read, reads
from .sampling import Sampling, next_tokens


@dataclass(frozen=True)
class Written:
    """Answers and losses, in the order of the prompts.

    Attributes:
        answers: the generated text.
        losses: mean negative log-likelihood of each prompt's expected tokens, float64 [N]; nan where there are none.
    """

    answers: list[str]
    losses: np.ndarray


class Generator:
    """Generates answers with the current weights, or with those of `view`.

    Args:
        tokenizer: mlx-lm's, with `decode` and `eos_token_ids`.
        shapes: bounds of the tokens of one pass, and of the answers in flight.
        max_new_tokens: longest answer, in tokens.
        view: the weights; where it is a population, each member answers every prompt, all in one batch.
        sampling: how tokens are drawn; None: greedily.
        frozen_layers: number of first layers in which the members of a population do not differ.

    Attributes:
        can_score: true if the pass over a prompt can score its expected answer. The caches must then drop the tokens
            after the prompt, which a recurrent state does not support.
    """

    def __init__(
        self,
        causal: CausalLM,
        tokenizer: Any,
        shapes: Shapes,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        view: View | None = None,
        sampling: Sampling | None = None,
        frozen_layers: int = 0,
    ):
        self._causal, self._tokenizer, self._shapes = causal, tokenizer, shapes
        self._longest, self._sampling = max_new_tokens, sampling
        self._view = causal.view() if view is None else view
        self._prefill = Prefill(causal, self._view)
        self._population: PopulationPrefill | None = None
        if isinstance(self._view, Population):
            self._population = PopulationPrefill(causal, self._view, frozen_layers, shapes.tokens)
        self.can_score = self._prefill.supports_trim

    def write(
        self, prompts: Sequence[Prompt], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Written:
        """Generates an answer to each prompt, up to the end of the line or text or the longest answer, and strips it.

        The answers of a population are in the order of its members, one after the other.

        Args:
            prompts: without expected tokens unless `can_score`.
            on_progress: called with the number of finished answers and of all.
        """
        self._prompts, prompts = len(prompts), [*prompts] * self._members
        written = Written([""] * len(prompts), np.full(len(prompts), np.nan))
        waiting, done = reads([prompt.row for prompt in prompts], self._shapes, self._longest)[::-1], 0
        in_flight = _InFlight()
        while waiting or in_flight.answers:
            if waiting and self._have_room(in_flight, waiting[-1], prompts):
                self._begin(waiting.pop(), prompts, in_flight, written.losses)
            else:
                tokens = mx.array([[answer.tokens[-1]] for answer in in_flight.answers], mx.int32)
                positions = mx.arange(len(in_flight.answers))
                view = self._view_of([answer.number for answer in in_flight.answers])
                states = self._causal.read_on(tokens, in_flight.caches, positions, view)
                self._lengthen(in_flight.answers, states)
            for answer in in_flight.take_ended():
                written.answers[answer.number] = answer.line.strip()
                done += 1
                on_progress(done, len(prompts))
        return written

    @property
    def _members(self) -> int:
        return self._view.size if isinstance(self._view, Population) else 1

    def _member_of(self, numbers: Sequence[int]) -> list[int]:
        """The members of the population that write the answers with these numbers."""
        return [number // self._prompts for number in numbers]

    def _view_of(self, numbers: Sequence[int]) -> View:
        """The weights for a batch of the answers with these numbers."""
        return self._view.of_rows(self._member_of(numbers)) if isinstance(self._view, Population) else self._view

    def _have_room(self, in_flight: _InFlight, read: Read, prompts: Sequence[Prompt]) -> bool:
        """True if the answers to a read fit beside those in flight."""
        numbers = [*read.numbers, *(answer.number for answer in in_flight.answers)]
        longest = max(len(prompts[number].tokens) for number in numbers) + self._longest
        return not in_flight.answers or len(numbers) <= self._shapes.written(longest)

    def _begin(self, read: Read, prompts: Sequence[Prompt], in_flight: _InFlight, losses: np.ndarray) -> None:
        """Reads prompts, scores their expected tokens, and adds the first token of each answer."""
        own = [prompts[number] for number in read.numbers]
        rows = [prompt.row for prompt in own]
        if self._population is None:
            states, caches = self._prefill.read(read.shared, rows)
        else:
            states, caches = self._population.read(read.shared, rows, self._member_of(read.numbers))
        # Each prompt has one state for every expected token, or one alone for its first token.
        *firsts, _ = accumulate((max(1, len(prompt.expected)) for prompt in own), initial=0)
        answers = [_Answer(number) for number in read.numbers]
        self._lengthen(answers, states[mx.array(firsts)])
        if any(prompt.expected for prompt in own):
            targets = [token for prompt in own for token in prompt.expected or (0,)]
            values = self._causal.head.token_logits(states, mx.array(targets), self._view)
            values = np.array(values - self._causal.head.log_normaliser(states, self._view), np.float64)
            for number, prompt, part in zip(read.numbers, own, np.split(values, firsts[1:]), strict=True):
                if prompt.expected:
                    losses[number] = -part.mean()
        in_flight.join(answers, caches)

    def _lengthen(self, answers: Sequence[_Answer], states: mx.array) -> None:
        """Adds the next token to each answer, from its last states [R, ...], and marks those that end."""
        logits = np.array(self._causal.next_logits(states, self._view))
        # All members draw alike.
        numbers = [answer.number % self._prompts for answer in answers]
        places = [len(answer.tokens) for answer in answers]
        for answer, token in zip(answers, next_tokens(logits, self._sampling, numbers, places), strict=True):
            if token in self._tokenizer.eos_token_ids:
                answer.ended = True
                continue
            answer.tokens.append(token)
            answer.line, newline, _ = self._tokenizer.decode(answer.tokens).partition("\n")
            answer.ended = bool(newline) or len(answer.tokens) == self._longest


@dataclass
class _Answer:
    """An answer in flight: number of its prompt, its tokens so far, and its first line as text."""

    number: int
    tokens: list[int] = field(default_factory=list)
    line: str = ""
    ended: bool = False


@dataclass
class _InFlight:
    """The answers in flight, and the caches of their keys and values, prompts included, in the same order."""

    answers: list[_Answer] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)

    def join(self, answers: Sequence[_Answer], caches: list[Any]) -> None:
        if self.answers:
            for cache, other in zip(self.caches, caches, strict=True):
                cache.extend(other)
            _evaluate(self.caches)
        else:
            self.caches = caches
        self.answers += answers

    def take_ended(self) -> list[_Answer]:
        """Removes the answers that have ended and returns them."""
        ended = [answer for answer in self.answers if answer.ended]
        kept = [row for row, answer in enumerate(self.answers) if not answer.ended]
        self.answers = [self.answers[row] for row in kept]
        if not kept:
            self.caches = []
        elif ended:
            for cache in self.caches:
                cache.filter(kept)
            _evaluate(self.caches)
        return ended


def _evaluate(caches: Sequence[Any]) -> None:
    """Evaluates the caches layer by layer, so that the arrays they were built from are freed now and not at the next
    token."""
    for cache in caches:
        mx.eval(cache.state)
