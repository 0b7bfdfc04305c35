"""Scores from gathered hidden states agree with numpy on the model's own full logits, for every kind of model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.config import RunConfig
from mlxzo.evaluate import Evaluation
from mlxzo.models.causal import CausalLM
from mlxzo.models.scope import prepare
from mlxzo.scoring import Prefix, batch_loss, candidate_scores
from tests.engine.examples import BATCHES
from tests.tiny import tiny_config, tiny_model

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
    """Mean log-likelihood of each candidate, by numpy in float64 from full logits."""
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
    scores = np.array(candidate_scores(causal, batch, causal.view()))
    for ours, theirs in zip(scores, reference, strict=True):
        if batch.shared:
            # Up to the normaliser that all candidates share.
            ours, theirs = ours - ours[0], np.array(theirs) - theirs[0]
        assert np.allclose(ours[: len(theirs)], theirs, atol=2e-4)
    assert batch_loss(causal, batch, causal.view()).item() == pytest.approx(
        reference_loss(reference, batch.target), abs=2e-4
    )


@pytest.mark.parametrize("kind", BATCHES)
def test_a_head_with_a_bias_counts_it(kind):
    model = tiny_model(tied=False)
    model.lm_head.bias = mx.random.normal((model.lm_head.weight.shape[0],), key=mx.random.key(3))
    causal, batch = CausalLM(model), BATCHES[kind]()
    assert causal.exposes_hidden
    expected = reference_loss(reference_scores(model, batch), batch.target)
    assert batch_loss(causal, batch, causal.view()).item() == pytest.approx(expected, abs=2e-4)


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
    expected = reference_loss(reference_scores(inner, batch), batch.target)
    assert batch_loss(causal, batch, causal.view()).item() == pytest.approx(expected, abs=2e-4)


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
    expected = reference_loss(reference_scores(opaque, batch), batch.target)
    assert batch_loss(causal, batch, causal.view()).item() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("kind", ("llama", "qwen3", "gemma3"))
@pytest.mark.parametrize("layers", (1, 2))
def test_sharing_frozen_layers_changes_no_bit(kind, layers):
    causal, batch = CausalLM(tiny_model(kind)), BATCHES["several"]()
    prefix = Prefix(causal, layers)
    whole = candidate_scores(causal, batch, causal.view())
    cut = candidate_scores(causal, batch, causal.view(), prefix.hidden(batch), prefix.layers)
    assert mx.array_equal(whole, cut).item()


def test_the_prefix_cache_gives_back_what_was_put_whatever_the_padding():
    causal, batch = CausalLM(tiny_model()), BATCHES["several"]()
    prefix = Prefix(causal, 2)
    assert list(prefix.fill([batch])) == [len(batch.rows)]
    direct = causal.prefix(mx.array(batch.tokens), causal.view(), 2)
    for i, row in enumerate(batch.rows):
        kept = prefix.cache.get([row], 64)
        assert kept.shape == (1, 64, causal.hidden_size)
        assert mx.array_equal(kept[0, : len(row)], direct[i, : len(row)]).item()
        assert not kept[0, len(row) :].any().item()
    scores = candidate_scores(causal, batch, causal.view(), prefix.hidden(batch), prefix.layers)
    assert mx.allclose(scores, candidate_scores(causal, batch, causal.view()), atol=1e-5).item()
    assert prefix.cache.nbytes == sum(4 * causal.hidden_size * len(row) for row in set(batch.rows))


@pytest.mark.parametrize("name", ["llama-4bit", "llama-untied-4bit", "gemma3-4bit"])
def test_quantised_layers_dequantised_on_the_cpu_say_what_they_say_packed(name):
    batch = BATCHES["several"]()
    packed, whole = CausalLM(tiny_model(**MODELS[name])), CausalLM(tiny_model(**MODELS[name]), mx.float32)
    assert whole.dequantised
    layers = [slot.get() for slot, _ in whole.dequantised]
    ours = candidate_scores(whole, batch, whole.view())
    assert mx.allclose(ours, candidate_scores(packed, batch, packed.view()), atol=1e-4).item()
    assert all(slot.get() is layer for (slot, _), layer in zip(whole.dequantised, layers, strict=True))


def test_half_precision_weights_are_computed_with_in_float32():
    model = tiny_model(dtype=mx.bfloat16)
    causal, batch = CausalLM(model, mx.float32), BATCHES["several"]()
    exact = tiny_model()
    exact.update(model.parameters())
    exact.set_dtype(mx.float32)
    reference = CausalLM(exact)
    assert batch_loss(causal, batch, causal.view()).item() == pytest.approx(
        batch_loss(reference, batch, reference.view()).item(), abs=1e-5
    )
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
