"""Answers that a model writes: greedy continuations of many prompts at a time, up to the end of a line.

Prompts of similar length are read together, and where an answer ends, the next prompt takes its place (mlx-lm's
`BatchGenerator`). Keys and values of what was read are kept, so each further token costs one pass over the weights
for all answers under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import mlx.core as mx

from .models.causal import CausalLM
from .zo.perturb import View

MAX_NEW_TOKENS = 50
"""Longest answer (Malladi et al. 2023, Appendix E.4)."""

# Prompts are read in groups of this spread of lengths: short ones take more company than long ones.
_GROUP_TOKENS = 128


class _Reader:
    """The model as mlx-lm's generator calls it, its weights seen through a view."""

    def __init__(self, causal: CausalLM, view: View):
        self._causal, self._view = causal, view
        self.layers = causal.model.layers
        if hasattr(causal.model, "make_cache"):
            self.make_cache = causal.model.make_cache

    def __call__(self, tokens: mx.array, cache: Sequence[Any]) -> mx.array:
        return self._causal.read_on(tokens, cache, self._view)


def write_answers(
    causal: CausalLM,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    tokens_at_once: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    view: View | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """The greedy answer to each prompt, by the weights as they stand or as `view` shows them: what comes before the
    end of the line, of the text, or of `max_new_tokens`, without white space around it.

    Args:
        tokenizer: mlx-lm's, with `decode` and `eos_token_ids`.
        prompts: their tokens.
        tokens_at_once: how many tokens the answers under way may come to, prompts included: what the caches of keys
            and values take is in proportion. One answer may take more.
        on_progress: told how many answers of how many are written.
    """
    answers: dict[int, str] = {}
    for _, group in groupby(sorted(range(len(prompts)), key=lambda i: len(prompts[i])), lambda i: _group(prompts[i])):
        numbers = list(group)
        longest = len(prompts[numbers[-1]]) + max_new_tokens
        rows = max(1, tokens_at_once // longest)
        reader = _Reader(causal, causal.view() if view is None else view)
        for number, answer in _written(reader, tokenizer, prompts, numbers, rows, max_new_tokens):
            answers[number] = answer
            on_progress(len(answers), len(prompts))
    return [answers[i] for i in range(len(prompts))]


def _group(prompt: Sequence[int]) -> int:
    return len(prompt) // _GROUP_TOKENS


def _written(
    reader: _Reader,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    rows: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, str]]:
    """The answers to the prompts of these numbers, each with its number when it is written, `rows` at a time."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        reader,
        max_tokens=max_new_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=rows,
        prefill_batch_size=rows,
        stream=mx.default_stream(mx.default_device()),
    )
    try:
        number_of = dict(zip(generator.insert([list(prompts[i]) for i in numbers]), numbers, strict=True))
        written: dict[int, list[int]] = {uid: [] for uid in number_of}
        while responses := generator.next_generated():
            for response in responses:
                tokens = written[response.uid]
                if response.finish_reason != "stop":
                    tokens.append(response.token)
                line, newline, _ = (tokenizer.decode(tokens) if tokens else "").partition("\n")
                if newline and response.finish_reason is None:
                    generator.remove([response.uid])
                if newline or response.finish_reason is not None:
                    yield number_of[response.uid], line.strip()
    finally:
        generator.close()
