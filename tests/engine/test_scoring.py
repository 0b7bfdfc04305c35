"""Scores from gathered hidden states agree with numpy on the model's own full logits, for every kind of model."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.core.blas import SIDE_BY_SIDE
from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache, DiskActivationCache
from mlxzo.engine.batching import Shapes, by_length, make_batch
from mlxzo.engine.distributed.communicator import Communicator
from mlxzo.engine.encoding import encode
from mlxzo.engine.evaluation import Evaluation, score
from mlxzo.engine.prefix_sharing import worth_sharing
from mlxzo.engine.scoring import Scorer
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import prepare
from mlxzo.tasks.base import Example
from mlxzo.zo.perturb import Direction
from tests.engine.examples import (
    BATCHES,
    TEXTS,
    TOKENIZER,
    losses_of,
    some_examples,
)
from tests.threads import matrix_products_with
from tests.tiny import tiny_config, tiny_model
from tests.variants import crossed, mostly_slow

MODELS = {
    "llama": {"kind": "llama"},
    "llama-untied": {"kind": "llama", "tied": False},
    "llama-4bit": {"kind": "llama", "bits": 4},
    "llama-untied-4bit": {"kind": "llama", "tied": False, "bits": 4},
    "qwen3": {"kind": "qwen3"},
    "gemma3": {"kind": "gemma3"},
    "gemma3-4bit": {"kind": "gemma3", "bits": 4},
}


def reference_scores(model, batch) -> list[list[float]]:
    """Mean log-likelihood of each candidate, by numpy in float64 from full logits, in the order of the batch."""
    scores = {}
    for part, places in zip(batch.parts, batch.places, strict=True):
        scores |= zip(places, part_scores(model, part), strict=True)
    return [scores[i] for i in range(batch.size)]


def targets(batch) -> list[int]:
    """The right candidate of each example, in the order of the batch."""
    found = {}
    for part, places in zip(batch.parts, batch.places, strict=True):
        found |= zip(places, part.target, strict=True)
    return [found[i] for i in range(batch.size)]


def part_scores(model, batch) -> list[list[float]]:
    logits = np.array(model(mx.array(batch.tokens)).astype(mx.float32), np.float64)
    logits = logits.reshape(-1, logits.shape[-1])
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    scores = []
    for row, exists in zip(batch.candidate, batch.candidate_mask, strict=True):
        example = []
        for k in row[exists]:
            length = int(batch.entry_mask[k].sum())
            places = batch.positions[batch.entry_position[k][:length]]
            example.append(logp[places, batch.entry_target[k][:length]].mean())
        scores.append(example)
    return scores


def loss(causal: CausalLM, batch) -> float:
    return float(losses_of(Scorer(causal), batch, causal.view()).mean())


def reference_loss(scores: list[list[float]], target) -> float:
    losses = []
    for example, chosen in zip(scores, target, strict=True):
        example = np.array(example)
        losses.append(-example[0] if len(example) == 1 else np.log(np.exp(example).sum()) - example[chosen])
    return float(np.mean(losses))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", BATCHES)
def test_loss_and_scores_agree_with_full_logits(name, kind):
    model = tiny_model(**MODELS[name])
    causal, batch = CausalLM(model), BATCHES[kind]()
    assert causal.exposes_hidden
    assert causal.splits
    reference = reference_scores(model, batch)
    grids = Scorer(causal).scores(batch, causal.view())
    for part, places, scores in zip(batch.parts, batch.places, grids, strict=True):
        for i, ours in zip(places, scores, strict=True):
            theirs = np.array(reference[i])
            if part.shared:
                # Up to the normaliser that all candidates share.
                ours, theirs = ours - ours[0], theirs - theirs[0]
            assert np.allclose(ours[: len(theirs)], theirs, atol=2e-4)
    assert loss(causal, batch) == pytest.approx(reference_loss(reference, targets(batch)), abs=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_candidates_that_share_a_row_score_as_each_by_itself(name):
    causal = CausalLM(tiny_model(**MODELS[name]))
    words = (" a moving story", "!", " a moving tale", ".", " a mov", " a")
    examples = [Example(f"{text} It was", words, 0) for text in TEXTS]
    encoded = [encode(example, TOKENIZER, 64) for example in examples]
    assert {e.row_count for e in encoded} == {2}
    grids = Scorer(causal).scores(batch := make_batch(encoded, Shapes()), causal.view())
    for places, grid in zip(batch.places, grids, strict=True):
        for example, ours in zip((examples[i] for i in places), grid, strict=True):
            assert np.allclose(ours, [plain_score(causal.model, example, word) for word in words], atol=2e-4)


@pytest.mark.parametrize("name", mostly_slow(MODELS, ("llama", "llama-untied-4bit", "qwen3", "gemma3")))
def test_what_candidates_and_prompts_begin_with_in_common_may_be_read_once(name):
    causal = CausalLM(tiny_model(**MODELS[name]))
    shown = "The film was a moving story. It was great\n\n" * 2
    words = (" terrible and empty", " great", "!", " a moving story", " a moving tale")
    examples = [Example(f"{shown}{text}. It was", words[: 3 + i % 3], i % 3) for i, text in enumerate(2 * TEXTS)]
    encoded = [encode(example, TOKENIZER, 200) for example in examples]
    assert worth_sharing([row for e in encoded for row in e.rows], Shapes())

    def scored(reading: Shapes | None, team: Communicator | None = None):
        make = partial(make_batch, shapes=Shapes())
        return score(Scorer(causal), encoded, rows=9, make=make, team=team, reading=reading)

    expected = scored(None)
    for shapes in (Shapes(), Shapes(tokens=64, written_share=1), Shapes(rows=1)):
        found = scored(shapes)
        for ours, theirs in zip(found.scores, expected.scores, strict=True):
            assert np.allclose(ours, theirs, rtol=0, atol=1e-4)
        assert np.allclose(found.losses, expected.losses, rtol=0, atol=1e-4)
        # Whoever computes what, the bits are the same.
        assert np.array_equal(found.losses, scored(shapes, ThreeRanks()).losses)


class ThreeRanks(Communicator):
    """Each piece is computed by itself, as by the rank that has nothing else."""

    size = 3

    def scatter_gather(self, pieces, compute, *, steady=False):
        return [compute([number])[0] for number in range(len(pieces))]


def plain_score(model, example: Example, candidate: str) -> float:
    """The mean log-likelihood of a candidate, from the logits of one whole sequence."""
    prompt, joined = (TOKENIZER.encode(text) for text in (example.prompt, example.prompt + candidate))
    start = next((i for i, (a, b) in enumerate(zip(prompt, joined, strict=False)) if a != b), len(prompt))
    logits = np.array(model(mx.array([joined]))[0].astype(mx.float32), np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(np.mean([logp[i - 1, joined[i]] for i in range(start, len(joined))]))


@pytest.mark.parametrize("kind", BATCHES)
def test_a_head_with_a_bias_counts_it(kind):
    model = tiny_model(tied=False)
    model.lm_head.bias = mx.random.normal((model.lm_head.weight.shape[0],), key=mx.random.key(3))
    causal, batch = CausalLM(model), BATCHES[kind]()
    assert causal.exposes_hidden
    expected = reference_loss(reference_scores(model, batch), targets(batch))
    assert loss(causal, batch) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_inside_a_multimodal_one_is_found(tied):
    from mlx_lm.models import gemma3
    from mlx_lm.utils import _get_classes

    text = tiny_config("gemma3", tied=tied)
    model = gemma3.Model(gemma3.ModelArgs(model_type="gemma3", text_config=text, vocab_size=text["vocab_size"]))
    inner = tiny_model("gemma3", tied=tied)
    assert isinstance(inner, _get_classes(text)[0])
    model.language_model = inner
    config = RunConfig(scope="norms/last-1").resolved()
    trainable = prepare(model, config)
    assert trainable.names[-1] == "language_model.model.norm.weight"
    assert {name.split(".")[3] for name in trainable.names[:-1]} == {"2"}
    causal, batch = CausalLM(model), BATCHES["several"]()
    assert causal.exposes_hidden
    assert causal.splits
    expected = reference_loss(reference_scores(inner, batch), targets(batch))
    assert loss(causal, batch) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("kind", BATCHES)
def test_a_model_without_hidden_states_falls_back_to_full_logits(kind):
    class Opaque(type(tiny_model())):
        """Scales its logits after the head, as some architectures do, so head times hidden is not enough."""

        def __call__(self, inputs, cache=None, input_embeddings=None):
            return 0.5 * super().__call__(inputs, cache, input_embeddings)

    model = tiny_model()
    opaque = Opaque(model.args)
    opaque.update(model.parameters())
    causal, batch = CausalLM(opaque), BATCHES[kind]()
    assert not causal.exposes_hidden
    expected = reference_loss(reference_scores(opaque, batch), targets(batch))
    assert loss(causal, batch) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("kind", "layers"), crossed([("llama",), ("qwen3",), ("gemma3",)], [(3,), (1,)]))
def test_keeping_what_frozen_layers_give_changes_no_bit_of_a_loss(kind, layers, tmp_path):
    causal, examples = CausalLM(tiny_model(kind)), some_examples()
    uncut, shared = Scorer(causal), Scorer(causal, layers)
    view = causal.view()
    batches = [
        make_batch([examples[i] for i in picked], Shapes())
        for picked in ([0, 7, 3, 12], [12], list(range(len(examples))))
    ]
    expected = [losses_of(shared, batch, view) for batch in batches]
    for batch, losses in zip(batches, expected, strict=True):
        assert np.allclose(losses_of(uncut, batch, view), losses, rtol=0, atol=1e-5)
    for cache in (ActivationCache(), DiskActivationCache(tmp_path)):
        shared.cache = cache
        # Filled in another order and company than the batches of a step.
        for _, batch in by_length(examples, 4, lambda part: make_batch(part, Shapes())):
            shared.prefix(batch)
        stored = cache.nbytes
        assert stored > 0
        for batch, losses in zip(batches, expected, strict=True):
            assert np.array_equal(losses, losses_of(shared, batch, view))
            assert shared.cache is cache and cache.nbytes == stored


@pytest.mark.parametrize("name", ("llama", "llama-untied-4bit", "gemma3"))
@pytest.mark.parametrize("words", [("!", "."), ("!", ".", "?")])
def test_a_batch_that_is_used_again_is_assembled_once_with_the_same_bits(name, words, monkeypatch):
    causal = CausalLM(tiny_model(**MODELS[name]), mx.float32)
    examples = [Example(f"{text} {'so ' * i}It was", words, i % 2) for i, text in enumerate(TEXTS)]
    encoded = [encode(example, TOKENIZER, 64) for example in examples]
    scorer = Scorer(causal, len(causal.layers))
    batch = make_batch(encoded, Shapes(rows=2))
    assert len(batch.parts) > 1
    view = causal.view(Direction(1, 2, 0, "sign", {"model.norm.weight": 1.0}), 1e-2)
    # Each candidate by itself, from the states and rows of the head that its own micro-batch reads.
    states = scorer.prefix(batch)
    expected = np.empty(batch.size)
    for part, places, own in zip(batch.parts, batch.places, states, strict=True):
        hidden = causal.finished(own, view)[mx.array(part.entry_position.reshape(-1))]
        values = causal.head.token_logits(hidden, mx.array(part.entry_target.reshape(-1)), view)
        grid = np.array(values, np.float64)[part.candidate]
        losses = np.log(np.exp(grid - grid.max(1, keepdims=True)).sum(1)) + grid.max(1)
        expected[list(places)] = losses - grid[np.arange(len(grid)), part.target]
    scorer.cache = ActivationCache()
    first = losses_of(scorer, batch, view)
    assert np.array_equal(first, expected)
    monkeypatch.setattr(scorer.frozen, "keys", lambda part: pytest.fail("the batch was assembled again"))
    assert np.array_equal(losses_of(scorer, batch, view), first)
    assert scorer.prefix(batch) is scorer.prefix(batch)
    # Without a cache nothing is kept: a run that drops it to save memory keeps no assembled states either.
    scorer.cache = None
    assert np.array_equal(losses_of(scorer, batch, view), first)


def test_a_disk_that_fills_up_costs_the_cache_and_not_the_run(tmp_path, monkeypatch):
    causal, examples = CausalLM(tiny_model()), some_examples()
    scorer, batch = Scorer(causal, 2), make_batch(examples, Shapes())
    expected = losses_of(scorer, batch, causal.view())
    scorer.cache = DiskActivationCache(tmp_path)

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scorer.cache, "_file", SimpleNamespace(write=full, seek=lambda *_: 0))
    assert np.array_equal(losses_of(scorer, batch, causal.view()), expected)
    assert scorer.cache is None


@pytest.mark.parametrize("name", ["single", "completion"])
def test_micro_batches_side_by_side_have_the_bits_of_one_after_the_other(name):
    causal, batch = CausalLM(tiny_model(), mx.float32), BATCHES[name]()
    for layers in (0, 2):
        alone = losses_of(Scorer(causal, layers), batch, causal.view())
        with matrix_products_with(SIDE_BY_SIDE):
            assert len(batch.parts) > 1
            assert np.array_equal(losses_of(Scorer(causal, layers), batch, causal.view()), alone)


@pytest.mark.parametrize(("kind", "bits"), crossed([("llama",), ("qwen3",), ("gemma3",)], [(None,), (4,)]))
def test_the_loss_of_an_example_does_not_depend_on_its_company(kind, bits):
    causal, examples = CausalLM(tiny_model(kind, bits=bits), mx.float32), some_examples()
    scorer = Scorer(causal)
    together = losses_of(scorer, make_batch(examples, Shapes()), causal.view())
    for shapes in (Shapes(rows=1), Shapes(rows=3), Shapes(tokens=40), Shapes(32, 10_000)):
        # To the rounding of float32: matrix products choose their kernels by shape.
        assert np.allclose(together, losses_of(scorer, make_batch(examples, shapes), causal.view()), rtol=0, atol=1e-5)
    again = losses_of(scorer, make_batch(examples, Shapes()), causal.view())
    assert np.array_equal(together, again)


@pytest.mark.parametrize("cache", ("ram", "disk"))
@pytest.mark.parametrize("dtype", (mx.float32, mx.bfloat16))
def test_the_activation_cache_gives_back_what_was_put(cache, dtype, tmp_path):
    kept = ActivationCache() if cache == "ram" else DiskActivationCache(tmp_path)
    states = [mx.random.normal((n, 64), key=mx.random.key(n)).astype(dtype) for n in (3, 5)]
    kept.put(["a"], states[:1])
    assert kept.get(["a", "b"]) is None
    kept.put(["b"], states[1:])
    found = kept.get(["b", "a", "b"])
    for state, number in zip(found, (1, 0, 1), strict=True):
        assert state.dtype == dtype
        assert mx.array_equal(state, states[number]).item()
    assert kept.nbytes == dtype.size * 64 * 8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama-4bit", "llama-untied-4bit", "gemma3-4bit"])
def test_quantised_layers_dequantised_on_the_cpu_say_what_they_say_packed(name):
    batch = BATCHES["several"]()
    packed, whole = CausalLM(tiny_model(**MODELS[name])), CausalLM(tiny_model(**MODELS[name]), mx.float32)
    modules = [id(module) for _, module in whole.model.named_modules()]
    ours, theirs = (losses_of(Scorer(causal), batch, causal.view()) for causal in (whole, packed))
    assert np.allclose(ours, theirs, atol=1e-4)
    assert [id(module) for _, module in whole.model.named_modules()] == modules


def test_half_precision_weights_are_computed_with_in_float32():
    model = tiny_model(dtype=mx.bfloat16)
    causal, batch = CausalLM(model, mx.float32), BATCHES["several"]()
    exact = tiny_model()
    exact.update(model.parameters())
    exact.set_dtype(mx.float32)
    reference = CausalLM(exact)
    assert loss(causal, batch) == pytest.approx(loss(reference, batch), abs=1e-5)
    assert causal.slots["model.layers.0.mlp.gate_proj.weight"].get().dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        # 78 of 100 against 75 is within the standard error of 4.3 points: the loss decides.
        ((0.78, 0.53), (0.75, 0.51), False),
        ((0.75, 0.51), (0.78, 0.53), True),
        ((0.85, 0.60), (0.75, 0.51), True),
        ((0.65, 0.40), (0.75, 0.51), False),
        ((0.75, 0.51), (0.75, 0.51), False),
    ],
)
def test_the_better_of_two_evaluations_is_not_decided_by_luck(new, old, better):
    first, second = (Evaluation("accuracy", value, loss, 100, 0.5, 1.0) for value, loss in (new, old))
    assert first.better_than(second) == better
    assert first.better_than(None)


def test_completions_are_compared_by_their_loss():
    first, second = (Evaluation("loss", loss, loss, 100, None, 1.0) for loss in (0.4, 0.5))
    assert first.better_than(second)
    assert not second.better_than(first)
