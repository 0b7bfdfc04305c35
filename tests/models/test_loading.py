"""Loading keeps what is stored, casts on request, runs no foreign code, and knows one model from another."""

from __future__ import annotations

import json
import os

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxzo.core.errors import ModelError
from mlxzo.models.loading import count_parameters, load_model, weights_fingerprint
from tests.tiny import tiny_folder, tiny_model


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(("tied", "bits"), [(True, None), (False, None), (True, 4)])
def test_what_was_saved_is_what_is_loaded(tmp_path, kind, tied, bits):
    loaded = load_model(tiny_folder(tmp_path / "model", kind, tied=tied, bits=bits))
    original = tiny_model(kind, tied=tied, bits=bits)
    ids = mx.array([loaded.tokenizer.encode("What a good book! What a bad book!")])
    assert mx.array_equal(loaded.model(ids), original(ids))
    assert weights_fingerprint(loaded.model) == weights_fingerprint(original)


def test_a_folder_with_a_pipe_in_it_is_refused_unopened(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    os.mkfifo(folder / "generation_config.json")
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read: it is no regular file"):
        load_model(folder)


def test_dtype_casts_floating_weights_and_leaves_packed_integers(tmp_path):
    folder = tiny_folder(tmp_path / "model", bits=4, dtype=mx.bfloat16)
    kept = {str(tensor.dtype) for _, tensor in tree_flatten(load_model(folder).model.parameters())}
    assert kept == {"mlx.core.bfloat16", "mlx.core.uint32"}
    cast = load_model(folder, dtype="float32").model
    for name, tensor in tree_flatten(cast.parameters()):
        packed = name.endswith(("proj.weight", "embed_tokens.weight"))
        assert tensor.dtype == (mx.uint32 if packed else mx.float32), name


def test_the_fingerprint_follows_every_bit_and_the_layout():
    model = tiny_model(dtype=mx.bfloat16)
    first = weights_fingerprint(model)
    assert first == weights_fingerprint(tiny_model(dtype=mx.bfloat16))
    assert first != weights_fingerprint(tiny_model(dtype=mx.bfloat16, seed=1))
    assert first != weights_fingerprint(tiny_model())
    norm = model.model.norm.weight
    model.model.norm.weight = norm.at[0].add(2**-7)
    assert weights_fingerprint(model) != first
    model.model.norm.weight = norm
    # The order in memory does not count, only the values: a transposed view of a transposed copy is the same.
    model.update(tree_map(lambda p: mx.contiguous(p.T).T if p.ndim == 2 else p, model.parameters()))
    assert weights_fingerprint(model) == first


def test_a_model_that_brings_code_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "evil.py"}))
    with pytest.raises(ModelError, match=r"evil\.py.*never runs"):
        load_model(folder)

    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps({**config, **code}))
    load_model(folder)  # mlx-lm has the architecture itself: the code is not needed and not run
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mambo"}, "type 'mambo'"),
        ({"hidden_size": 96}, "do not fit together"),
        ({"num_hidden_layers": 4}, "do not fit together"),
    ],
)
def test_a_config_that_does_not_fit_is_explained(tmp_path, changes, said):
    folder = tiny_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=said) as caught:
        load_model(folder)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("file", "said"), [("adapter_config.json", "is an adapter, not a model"), ("events.jsonl", "is a run, not a model")]
)
def test_what_is_tuned_is_not_taken_for_a_damaged_model(tmp_path, file, said):
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=said) as caught:
        load_model(tmp_path)
    assert "mlxzo export RUN --to fused" in caught.value.fix


def test_a_broken_tokenizer_is_explained(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer") as caught:
        load_model(folder)
    assert "tokenizer.json" in caught.value.fix


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_quantised_weights_count_as_what_they_stand_for(bits):
    floating = sum(value.size for _, value in tree_flatten(tiny_model().parameters()))
    assert count_parameters(tiny_model(bits=bits)) == floating
