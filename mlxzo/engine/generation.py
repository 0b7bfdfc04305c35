"""Answers that a model writes: continuations of many prompts at a time, up to the end of a line.

What prompts begin with in common is read once (see `prompt_reads`), and where answers end, the next prompts take their
place. Keys and values of what was read are kept, so each further token costs one pass over the weights for all answers
under way. The same reading scores the answer that is expected of a prompt, which otherwise would be read once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.causal import CausalLM
from ..zo.perturb import View
from .batching import Shapes
from .prefill import Prefill
from .prefix_sharing import MAX_NEW_TOKENS, Prompt, Read, reads
from .sampling import Sampling, next_tokens


@dataclass(frozen=True)
class Written:
    """What became of prompts.

    Attributes:
        answers: what was written to each.
        losses: float64 [N], the mean negative log-likelihood of the tokens expected of each; nan where none are.
    """

    answers: list[str]
    losses: np.ndarray


class Generator:
    """Writes answers by the weights as they stand, or as `view` shows them.

    Args:
        tokenizer: mlx-lm's, with `decode` and `eos_token_ids`.
        shapes: bounds of what is read in one pass, and of the answers under way.
        max_new_tokens: longest answer.
        sampling: how tokens are drawn; None takes the likeliest ones.

    Attributes:
        scores: whether expected answers can be scored by the same reading. What follows a prompt must then be
            forgotten again, which a recurrent state cannot.
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
    ):
        self._causal, self._tokenizer, self._shapes = causal, tokenizer, shapes
        self._longest, self._sampling = max_new_tokens, sampling
        self._view = causal.view() if view is None else view
        self._prefill = Prefill(causal, self._view)
        self.scores = self._prefill.forgets

    def write(
        self, prompts: Sequence[Prompt], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Written:
        """The answer to each prompt: what comes before the end of the line, of the text, or of the longest answer,
        without white space around it.

        Args:
            prompts: nothing may be expected of them where `scores` is false.
            on_progress: told how many answers of how many are written.
        """
        written = Written([""] * len(prompts), np.full(len(prompts), np.nan))
        waiting, done = reads([prompt.row for prompt in prompts], self._shapes, self._longest)[::-1], 0
        under_way = _UnderWay()
        while waiting or under_way.answers:
            if waiting and self._have_room(under_way, waiting[-1], prompts):
                self._begin(waiting.pop(), prompts, under_way, written.losses)
            else:
                tokens = mx.array([[answer.tokens[-1]] for answer in under_way.answers], mx.int32)
                positions = mx.arange(len(under_way.answers))
                states = self._causal.read_on(tokens, under_way.caches, positions, self._view)
                self._lengthen(under_way.answers, states)
            for answer in under_way.take_ended():
                written.answers[answer.number] = answer.line.strip()
                done += 1
                on_progress(done, len(prompts))
        return written

    def _have_room(self, under_way: _UnderWay, read: Read, prompts: Sequence[Prompt]) -> bool:
        """Whether the answers to a read can join those under way."""
        numbers = [*read.numbers, *(answer.number for answer in under_way.answers)]
        longest = max(len(prompts[number].tokens) for number in numbers) + self._longest
        return not under_way.answers or len(numbers) <= self._shapes.written(longest)

    def _begin(self, read: Read, prompts: Sequence[Prompt], under_way: _UnderWay, losses: np.ndarray) -> None:
        """Reads prompts, scores what is expected of them, and gives each answer its first token."""
        own = [prompts[number] for number in read.numbers]
        states, caches = self._prefill.read(read.shared, [prompt.row for prompt in own])
        # Without an expected answer, only what comes first is scored.
        *firsts, _ = accumulate((max(1, len(prompt.expected)) for prompt in own), initial=0)
        answers = [_Answer(number) for number in read.numbers]
        self._lengthen(answers, states[mx.array(firsts)])
        if any(prompt.expected for prompt in own):
            targets = [token for prompt in own for token in prompt.expected or (0,)]
            values = self._causal.token_logits(states, mx.array(targets), self._view)
            values = np.array(values - self._causal.log_normaliser(states, self._view), np.float64)
            for number, prompt, part in zip(read.numbers, own, np.split(values, firsts[1:]), strict=True):
                if prompt.expected:
                    losses[number] = -part.mean()
        under_way.join(answers, caches)

    def _lengthen(self, answers: Sequence[_Answer], states: mx.array) -> None:
        """Adds a token to each answer, from the states [R, ...] that it follows, and sees whether it ends there."""
        logits = np.array(self._causal.next_logits(states, self._view))
        numbers, places = [answer.number for answer in answers], [len(answer.tokens) for answer in answers]
        for answer, token in zip(answers, next_tokens(logits, self._sampling, numbers, places), strict=True):
            if token in self._tokenizer.eos_token_ids:
                answer.ended = True
                continue
            answer.tokens.append(token)
            answer.line, newline, _ = self._tokenizer.decode(answer.tokens).partition("\n")
            answer.ended = bool(newline) or len(answer.tokens) == self._longest


@dataclass
class _Answer:
    """An answer under way: to which prompt, its tokens so far, and its line as text."""

    number: int
    tokens: list[int] = field(default_factory=list)
    line: str = ""
    ended: bool = False


@dataclass
class _UnderWay:
    """Answers under way, and the caches of keys and values of their prompts and themselves, in the same order."""

    answers: list[_Answer] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)

    def join(self, answers: Sequence[_Answer], caches: list[Any]) -> None:
        if self.answers:
            for cache, other in zip(self.caches, caches, strict=True):
                cache.extend(other)
            _settle(self.caches)
        else:
            self.caches = caches
        self.answers += answers

    def take_ended(self) -> list[_Answer]:
        """Takes out the answers that have ended."""
        ended = [answer for answer in self.answers if answer.ended]
        kept = [row for row, answer in enumerate(self.answers) if not answer.ended]
        self.answers = [self.answers[row] for row in kept]
        if not kept:
            self.caches = []
        elif ended:
            for cache in self.caches:
                cache.filter(kept)
            _settle(self.caches)
        return ended


def _settle(caches: Sequence[Any]) -> None:
    """Lets go of what the caches were made of, a layer at a time: rows that ended, or that are now in larger arrays,
    would else stay until the next token, beside all that is read before it."""
    for cache in caches:
        mx.eval(cache.state)
