"""Answers that a model writes: many at a time they are those of one at a time, without a cache."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import batch_generate, generate

from mlxzo.engine.batching import Shapes
from mlxzo.engine.generation import Generator
from mlxzo.engine.prefix_sharing import Prompt
from mlxzo.engine.sampling import Sampling
from mlxzo.models.causal import CausalLM
from mlxzo.models.loading import load_model
from mlxzo.models.resolve import resolve
from mlxzo.tasks.registry import get_task
from tests.tiny import VOCABULARY, tiny_folder
from tests.variants import slow

LONGEST = 12
SHAPES = Shapes(tokens=160, written_share=2)


def some(rng: random.Random, count: int) -> list[int]:
    """Tokens that no special one is among."""
    return [rng.randrange(3, VOCABULARY) for _ in range(count)]


def prompts(seed: int = 0) -> list[tuple[int, ...]]:
    """Of many lengths: 1, beyond gemma3's window of 16, beyond a micro-batch; and some that begin alike, with less and
    with more than the window."""
    rng = random.Random(seed)
    lengths = [1, 40, 190, *(rng.randrange(2, 30) for _ in range(6))]
    apart = [some(rng, length) for length in lengths]
    alike = [[*beginning, *some(rng, rng.randrange(1, 9))] for beginning in (some(rng, 12), some(rng, 70)) * 4]
    mixed = [tuple(tokens) for tokens in (*apart, *alike, apart[1])]
    rng.shuffle(mixed)
    return mixed


def alone(causal: CausalLM, tokenizer, prompt: tuple[int, ...]) -> str:
    """The greedy answer by whole forward passes, one a token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + LONGEST:
        token = int(causal.logits(mx.array([tokens]), causal.view())[0, -1].argmax())
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[len(prompt) :]).split("\n")[0].strip() if len(tokens) > len(prompt) else ""


def loss_of(causal: CausalLM, prompt: Prompt) -> float:
    """The mean negative log-likelihood of what is expected, by one forward pass."""
    logits = causal.logits(mx.array([prompt.tokens + prompt.expected]), causal.view())[0].astype(mx.float32)
    likelihoods = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    first = len(prompt.tokens) - 1
    return -np.mean([likelihoods[first + i, token] for i, token in enumerate(prompt.expected)])


@pytest.mark.parametrize(
    ("kind", "bits", "dtype"),
    [
        ("llama", None, mx.float32),
        slow("llama", None, mx.bfloat16),
        slow("qwen3", 4, mx.float32),
        slow("gemma3", None, mx.float32),
        ("gemma3", None, mx.bfloat16),
    ],
)
def test_answers_written_together_are_those_written_alone(tmp_path, kind, bits, dtype):
    tiny_folder(tmp_path, kind, bits=bits, dtype=dtype)
    loaded = load_model(tmp_path)
    causal = CausalLM(loaded.model, mx.float32)
    rng, told = random.Random(1), []
    # Some are expected to be answered at length, some briefly, and of some nothing is expected.
    asked = [Prompt(tokens, tuple(some(rng, rng.choice((0, 1, 5, 30))))) for tokens in prompts()]
    writer = Generator(causal, loaded.tokenizer, SHAPES, max_new_tokens=LONGEST)
    written = writer.write(asked, lambda done, total: told.append((done, total)))
    assert writer.can_score
    assert written.answers == [alone(causal, loaded.tokenizer, prompt.tokens) for prompt in asked]
    assert len(set(written.answers)) > 1
    losses = [loss_of(causal, prompt) if prompt.expected else np.nan for prompt in asked]
    np.testing.assert_allclose(written.losses, losses, rtol=1e-4)
    assert told == [(done, len(asked)) for done in range(1, len(asked) + 1)]


def test_answers_are_those_of_mlx_lm(tmp_path):
    """Its own batched generation, without stops at the end of a line."""
    tiny_folder(tmp_path, "gemma3", layers=6)
    loaded = load_model(tmp_path)
    asked = prompts(seed=3)
    theirs = batch_generate(loaded.model, loaded.tokenizer, [list(tokens) for tokens in asked], max_tokens=LONGEST)
    writer = Generator(CausalLM(loaded.model, mx.float32), loaded.tokenizer, SHAPES, max_new_tokens=LONGEST)
    written = writer.write([Prompt(tokens) for tokens in asked])
    assert written.answers == [text.split("\n")[0].strip() for text in theirs.texts]


def test_an_answer_that_is_drawn_is_the_same_in_any_company(tmp_path):
    tiny_folder(tmp_path)
    loaded = load_model(tmp_path)
    asked = [Prompt(tokens) for tokens in prompts()]

    def answers(shapes: Shapes, seed: int) -> list[str]:
        causal, sampling = CausalLM(loaded.model, mx.float32), Sampling(0.8, 0.9, (seed,))
        return (
            Generator(causal, loaded.tokenizer, shapes, max_new_tokens=LONGEST, sampling=sampling).write(asked).answers
        )

    together = answers(SHAPES, seed=1)
    assert together == answers(Shapes(tokens=1, written_share=1), seed=1)
    assert together != answers(SHAPES, seed=2)
    # One prompt is asked twice: its answers are drawn apart.
    twice = [number for number, prompt in enumerate(asked) if asked.count(prompt) == 2]
    assert len({together[number] for number in twice}) == 2


def test_an_answer_ends_with_its_line_its_text_or_its_length(tmp_path):
    tiny_folder(tmp_path)
    loaded = load_model(tmp_path)
    newline, end, word = (loaded.tokenizer.encode(text)[0] for text in ("\n", "<|im_end|>", " the"))

    class Scripted(CausalLM):
        """Says what the last token of the prompt asks for: a word, then a newline or the end, or words without end."""

        def read_on(self, tokens, caches, positions, view):
            self.last = tokens.reshape(-1)[positions].tolist()
            return super().read_on(tokens, caches, positions, view)

        def next_logits(self, states, view):
            followed_by = {11: word, 12: word, 13: newline, 14: end, 15: word, word: self.after_word}
            rows = [mx.arange(VOCABULARY) == followed_by.get(last, word) for last in self.last]
            return mx.stack(rows).astype(mx.float32)

    causal = Scripted(loaded.model, mx.float32)

    def answers(after_word: int, *last: int) -> list[str]:
        causal.after_word = after_word
        asked = [Prompt((3, token)) for token in last]
        return Generator(causal, loaded.tokenizer, SHAPES, max_new_tokens=4).write(asked).answers

    assert answers(newline, 11, 12) == ["the", "the"]
    assert answers(end, 11, 14, 13) == ["the", "", ""]
    assert answers(word, 15) == ["the the the the"]
    assert answers(word) == []


@pytest.mark.slow
def test_a_real_model_answers_questions_about_a_passage_as_mlx_lm_has_it_answer_them():
    loaded = load_model(resolve("smollm2-135m"))
    task = get_task("squad")
    questions = ("What did the lighthouse burn at first?", "When was it built?", "What was built in 1869?")
    prompts = [task.example_from_row({**task.sample_row, "question": question}).prompt for question in questions]
    asked = [tuple(loaded.tokenizer.encode(prompt)) for prompt in prompts]
    theirs = [generate(loaded.model, loaded.tokenizer, list(tokens), max_tokens=LONGEST) for tokens in asked]
    written = Generator(CausalLM(loaded.model, mx.float32), loaded.tokenizer, Shapes(), max_new_tokens=LONGEST)
    found = written.write([Prompt(tokens) for tokens in asked]).answers
    assert found == [text.split("\n")[0].strip() for text in theirs]
    assert len(set(found)) > 1
