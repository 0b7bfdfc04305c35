"""models.yaml: enough models, true figures, and mistakes that are told all at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlxzo
from mlxzo.core.errors import ModelError
from mlxzo.models import registry
from mlxzo.models.architecture import Quantization
from mlxzo.models.layer_shapes import FIGURES
from mlxzo.models.registry import find, load_registry
from tests.tiny import tiny_config

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - (1152 + 1152 * 2560),  # less the vision tower and its projector
    "phi-4-mini": 3_836_021_760,
    "mistral-7b": 7_248_023_552,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama-3.1-8b": 8_030_261_248,
    "lfm2.5-350m": 354_483_968,
    "lfm2.5-1.2b": 1_170_340_608,
}
# Architectures whose layers are all alike, counted here by a formula of their own.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "granite", "ministral3")


TINY = {
    "qwen3_5_text": "qwen3_5",
    "gemma4_text": "gemma4",
    **{kind: kind for kind in ("qwen3_moe", "lfm2", "smollm3", "ministral3", "granite", "olmo3")},
}


def test_there_are_models_to_choose_from_in_both_precisions():
    entries = load_registry()
    assert len(entries) >= 18
    for name, entry in entries.items():
        assert (entry.shape.quantization == Quantization(bits=4, group_size=64)) == name.endswith("-4bit")
        assert entry.repo.count("/") == 1
    assert [name for name, entry in entries.items() if entry.mirror] == [
        "smollm2-135m",
        "smollm2-135m-4bit",
        "gemma-3-270m",
    ]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_counts_are_the_published_ones(name):
    assert find(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name, entry in load_registry().items() if entry.shape.model_type in PLAIN])
def test_the_figures_make_the_parameter_count(name):
    entry = find(name)
    shape = entry.shape
    q, kv, h = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
    projections = [q * h, kv * h, kv * h, h * q, *[h * shape.intermediate] * 3]
    norms = {"gemma3_text": 4 * h + 2 * shape.head_dim, "qwen3": 2 * h + 2 * shape.head_dim}
    biases = q + 2 * kv if shape.model_type == "qwen2" else 0
    layer = sum(projections) + norms.get(shape.model_type, 2 * h) + biases
    embeddings = [shape.vocabulary * h] * (1 if shape.tied else 2)
    assert entry.parameters == sum(embeddings) + shape.layers * layer + h


def test_the_figures_are_those_of_a_real_model_object(tmp_path):
    """The formula agrees with mlx-lm's own classes, for every kind of model in the list."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    of_kind = {entry.shape.model_type: name for name, entry in reversed(load_registry().items())}
    for name in (*of_kind.values(), "gemma-4-e4b", "gemma-4-12b", "qwen3.5-9b"):
        entry = find(name)
        shape = entry.shape
        # What does not change the count is that of a tiny model.
        tiny = tiny_config(TINY[shape.model_type]) if shape.model_type in TINY else {}
        config = {
            **tiny.get("text_config", tiny),
            **{key: value for key, value in FIGURES[shape.model_type].items() if value},
            "layer_types": None,
            **shape.more,
            "block_dim": shape.hidden,
            "block_ff_dim": shape.intermediate,
            "block_auto_adjust_ff_dim": False,
            "no_rope_layers": None,
            "model_type": shape.model_type,
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "intermediate_size": shape.intermediate,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": shape.vocabulary,
            "tie_word_embeddings": shape.tied,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_position_embeddings": entry.context,
        }
        if shape.model_type == "qwen3_5_text":
            config["model_type"] = "qwen3_5"
        model_class, arguments = _get_classes(config)
        model = model_class(arguments.from_dict(config))  # lazy: nothing is allocated
        if shape.model_type == "gemma3_text":
            model.sanitize({})  # ties its head
        assert sum(tensor.size for _, tensor in tree_flatten(model.parameters())) == entry.parameters


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ModelError, match="smollm2-135m") as caught:
        find("smolm2-135m")
    assert "mlxzo models" in caught.value.fix
    with pytest.raises(ModelError) as caught:
        find("zzzzzzzzzzzz")
    assert "did you mean" not in caught.value.message


def test_every_mistake_in_the_file_is_listed(tmp_path):
    path = tmp_path / "models.yaml"
    text = registry.registry_path().read_text()
    first = text[text.index("- &smollm2-360m\n") : text.index("- <<: *smollm2-360m\n")]
    first = first.replace("- &smollm2-360m\n  name", "- name")
    path.write_text(
        first.replace("layers: 32", "layers: 31")
        + first.replace("  hidden: 960\n", "").replace("heads: 15", "heads: many").replace("360m", "a", 1)
        + first.replace("licence", "license").replace("360m", "b", 1)
        + "- just text\n"
    )
    with pytest.raises(ModelError) as caught:
        load_registry(path)
    told = "\n".join(caught.value.details)
    assert "smollm2-360m: parameters is 361821120, its figures make" in told
    assert "smollm2-a: hidden is missing" in told
    assert "smollm2-a: heads is 'many', not a whole number" in told
    assert "smollm2-b: unknown field 'license'" in told
    assert "smollm2-b: licence is missing" in told
    assert "entry 4: it is not a mapping" in told

    path.write_text("- {unclosed")
    with pytest.raises(ModelError, match="not valid YAML"):
        load_registry(path.rename(tmp_path / "other.yaml"))


def test_an_installed_package_carries_its_own_list(tmp_path):
    """In a wheel models.yaml lies inside the package: built here as the wheel lays it out."""
    package = Path(mlxzo.__file__).parent
    shutil.copytree(package, tmp_path / "mlxzo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(registry.registry_path(), tmp_path / "mlxzo" / "models.yaml")
    code = (
        "import sys; from mlxzo.models import registry, resolve as sources; "
        "print(registry.registry_path(), len(registry.load_registry()), "
        "sorted({'mlx', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=2) == [
        str(tmp_path / "mlxzo" / "models.yaml"),
        str(len(load_registry())),
        "[]\n",
    ]
