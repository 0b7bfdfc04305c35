"""Answers that a model writes: many at a time they are those of one at a time, without a cache."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest

from mlxzo.generation import write_answers
from mlxzo.models.causal import CausalLM
from mlxzo.models.loading import load_model
from tests.tiny import VOCABULARY, tiny_folder

LONGEST = 12


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Tokens that no special one is among, of many lengths: 1, beyond gemma3's window, and beyond a group's spread."""
    rng = random.Random(seed)
    lengths = [1, 40, 150, *(rng.randrange(2, 30) for _ in range(count - 3))]
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def alone(causal: CausalLM, tokenizer, prompt: list[int]) -> str:
    """The greedy answer by whole forward passes, one a token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + LONGEST:
        token = int(causal.logits(mx.array([tokens]), causal.view())[0, -1].argmax())
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[len(prompt) :]).split("\n")[0].strip() if len(tokens) > len(prompt) else ""


@pytest.mark.parametrize(
    ("kind", "bits", "dtype"),
    [
        ("llama", None, mx.float32),
        ("llama", None, mx.bfloat16),
        ("qwen3", 4, mx.float32),
        ("gemma3", None, mx.float32),
        ("gemma3", None, mx.bfloat16),
    ],
)
def test_answers_written_together_are_those_written_alone(tmp_path, kind, bits, dtype):
    tiny_folder(tmp_path, kind, bits=bits, dtype=dtype)
    loaded = load_model(tmp_path)
    causal = CausalLM(loaded.model, mx.float32)
    asked, told = prompts(10), []
    written = write_answers(
        causal,
        loaded.tokenizer,
        asked,
        tokens_at_once=160,
        max_new_tokens=LONGEST,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert written == [alone(causal, loaded.tokenizer, prompt) for prompt in asked]
    assert len(set(written)) > 1
    assert told == [(done, len(asked)) for done in range(1, len(asked) + 1)]


def test_an_answer_ends_with_its_line_its_text_or_its_length(tmp_path):
    tiny_folder(tmp_path)
    loaded = load_model(tmp_path)
    newline, end, word = (loaded.tokenizer.encode(text)[0] for text in ("\n", "<|im_end|>", " the"))

    class Scripted(CausalLM):
        """Says what the last token of the prompt asks for: a word, then a newline or the end, or words without end."""

        def read_on(self, tokens, caches, view):
            super().read_on(tokens, caches, view)
            followed_by = {11: word, 12: word, 13: newline, 14: end, 15: word, word: self.after_word}
            rows = [mx.arange(VOCABULARY) == followed_by.get(last, word) for last in tokens[:, -1].tolist()]
            return mx.stack(rows)[:, None].astype(mx.float32)

    causal = Scripted(loaded.model, mx.float32)

    def answers(after_word: int, *last: int) -> list[str]:
        causal.after_word = after_word
        return write_answers(
            causal, loaded.tokenizer, [[3, token] for token in last], tokens_at_once=64, max_new_tokens=4
        )

    assert answers(newline, 11, 12) == ["the", "the"]
    assert answers(end, 11, 14, 13) == ["the", "", ""]
    assert answers(word, 15) == ["the the the the"]
    assert answers(word) == []
