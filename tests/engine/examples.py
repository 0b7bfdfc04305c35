"""Examples and batches for the engine's tests, over the tiny models' byte-level vocabulary."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxzo.engine.batching import Batch, Shapes, make_batch
from mlxzo.engine.encoding import EncodedExample, encode
from mlxzo.engine.scoring import Scorer, by_example
from mlxzo.tasks.base import Example
from mlxzo.zo.perturb import View
from tests.tiny import VOCABULARY, tiny_tokenizer


class Tokenizer:
    """The tiny tokenizer, with `encode` as mlx-lm's wrapper has it."""

    bos_token_id = None
    eos_token_id, eos_token_ids = 2, {2}

    def __init__(self) -> None:
        self._tokenizer = tiny_tokenizer(VOCABULARY)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text).ids


TOKENIZER = Tokenizer()
TEXTS = ("The old clock struck nine", "a dull story", "The children ran out into the garden", "wet grass", "good book!")


def single_token_examples() -> list[Example]:
    return [Example(f"{text} It was", ("!", "."), i % 2) for i, text in enumerate(TEXTS)]


def several_token_examples() -> list[Example]:
    """Of two rows each; every second one with candidates that are read off these."""
    words = (" terrible and empty", " a moving story", "!", " terrible")
    return [Example(f"{text} It was", words[: 2 + 2 * (i % 2)], i % 2) for i, text in enumerate(TEXTS)]


def completion_examples() -> list[Example]:
    return [Example(f"{text}\n", (f"Answer: seven {i}",), 0) for i, text in enumerate(TEXTS)]


def batch_of(examples: list[Example], max_tokens: int = 64) -> Batch:
    return make_batch([encode(example, TOKENIZER, max_tokens) for example in examples], Shapes())


BATCHES = {
    "single": lambda: batch_of(single_token_examples()),
    "several": lambda: batch_of(several_token_examples()),
    "completion": lambda: batch_of(completion_examples()),
}


def some_examples() -> list[EncodedExample]:
    examples = single_token_examples() + several_token_examples() + completion_examples()
    return [encode(example, TOKENIZER, 64) for example in examples]


def losses_of(scorer: Scorer, batch: Batch, view: View) -> np.ndarray:
    """Loss of each example under a view: float64 [B]."""
    return by_example(batch, scorer.scores(batch, view))


def parameters(causal) -> dict[str, mx.array]:
    return {name: slot.get() for name, slot in causal.slots.items()}
