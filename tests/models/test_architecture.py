"""A model's figures without its weights, from models.yaml or config.json, and what is said where some are missing."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxzo.core.errors import ModelError
from mlxzo.models.architecture import of_config, of_folder
from mlxzo.models.loading import load_model
from mlxzo.models.registry import load_registry
from mlxzo.models.resolve import shape_of, shape_of_entry
from tests.tiny import ARCHITECTURES, tiny_config, tiny_folder, tiny_model
from tests.variants import slow

FIGURES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "torch_dtype": "float16",
}


def test_every_model_of_the_registry_has_as_many_parameters_as_its_entry_says():
    for entry in load_registry().values():
        shape = shape_of_entry(entry)
        assert entry.parameters == shape.parameters == sum(tensor.size for tensor in shape.tensors)


@pytest.mark.parametrize(
    ("kind", "tied", "bits"),
    [
        *((kind, tied, bits) for kind in ("llama", "gemma3") for tied in (True, False) for bits in (None, 4)),
        *((kind, True, None) for kind in ("qwen3", *ARCHITECTURES)),
        *(slow(kind, True, 4) for kind in ARCHITECTURES),
    ],
)
def test_tensors_and_bytes_are_those_of_the_loaded_model(kind, tied, bits):
    config = tiny_config(kind, tied=tied)
    if bits:
        config["quantization"] = {"bits": bits, "group_size": 32}
    shape = of_config(config, "tiny")
    parameters = dict(tree_flatten(tiny_model(kind, tied=tied, bits=bits).parameters()))
    named = {n.removeprefix("language_model.") for n in parameters if not n.endswith((".scales", ".biases"))}
    assert {t.name for t in shape.tensors} == named and shape.assumed == ()
    assert shape.weight_bytes() == sum(p.nbytes for p in parameters.values())


def test_a_folder_with_weights_is_taken_at_the_size_of_its_files(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    stored = sum(p.nbytes for _, p in tree_flatten(tiny_model().parameters()))
    assert of_folder(folder).weight_bytes() == stored
    assert of_folder(folder).weight_bytes("bfloat16") == stored // 2


def test_a_folder_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**FIGURES, "model_type": "llama"}))
    shape = shape_of(str(tmp_path))
    assert (shape.kv_heads, shape.head_dim, shape.dtype) == (4, 16, "float16")


def test_an_unknown_architecture_says_what_is_assumed():
    shape = of_config({**FIGURES, "model_type": "mamba9", "num_local_experts": 8, "intermediate_size": None}, "x")
    text = "; ".join(shape.assumed)
    for said in ("'mamba9'", "llama-like", "experts", "intermediate_size", "num_key_value_heads", "two matrices"):
        assert said in text
    assert shape.intermediate == 256


def test_figures_that_are_missing_or_wrong_are_named_in_one_sentence():
    config = {"model_type": "llama", "hidden_size": "wide", "num_attention_heads": 4}
    with pytest.raises(ModelError) as caught:
        of_config(config, "x", "config.json")
    assert caught.value.message == (
        "config.json lacks what the memory follows from: num_hidden_layers, hidden_size (it is 'wide'), vocab_size"
    )


def test_figures_of_one_architecture_are_checked_as_well():
    config = tiny_config("qwen3_5")["text_config"] | {"linear_num_key_heads": None, "full_attention_interval": 0}
    with pytest.raises(ModelError, match=r"full_attention_interval \(it is 0\), linear_num_key_heads$"):
        of_config(config, "x")
    config = tiny_config("lfm2") | {"num_hidden_layers": 4}
    with pytest.raises(ModelError, match="4 layers, and layer_types names 3"):
        of_config(config, "x")


def test_towers_of_a_multimodal_model_are_not_loaded_and_not_counted(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    stored = of_folder(folder).weight_bytes()
    mx.save_safetensors(str(folder / "model-2.safetensors"), {"vision_tower.patch.weight": mx.zeros((8, 8))})
    assert of_folder(folder).weight_bytes() == stored


def test_layers_beyond_all_that_there_are_and_those_without_weights_are_refused_before_they_are_made(tmp_path):
    with pytest.raises(ModelError, match=r"num_hidden_layers \(it is 100000\)"):
        of_config({**FIGURES, "num_hidden_layers": 100_000}, "deep")
    folder = tiny_folder(tmp_path / "model", layers=1, hidden=16)
    config = json.loads((folder / "config.json").read_text())
    for wrong in ({"num_hidden_layers": 100_000}, {"text_config": {"num_hidden_layers": 100_000}}):
        (folder / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ModelError, match="has 100000 layers, and the weight files have 11 tensors"):
            load_model(folder)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), ("{", "is not valid JSON"), ("[]", "holds no JSON object")]
)
def test_a_folder_without_a_usable_config_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=said):
        of_folder(tmp_path)


def test_the_text_part_of_a_multimodal_model_counts():
    shape = of_config({"model_type": "gemma3", "text_config": {**FIGURES, "model_type": "gemma3_text"}}, "x")
    assert (shape.model_type, shape.layers, shape.tied) == ("gemma3_text", 2, True)


def test_a_hub_repository_that_was_never_downloaded_is_not_guessed_at():
    with pytest.raises(ModelError, match="not known before"):
        shape_of("somebody/something")
