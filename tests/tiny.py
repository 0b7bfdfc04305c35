"""Real models, far too small to be useful: what the tests run on instead of mocks.

`tiny_model` gives an mlx-lm model object with random weights, `tiny_folder` the same model on the disk with a
tokenizer, as `mlx_lm.load` reads it. Both are deterministic in their arguments.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

VOCABULARY = 512
MAX_TOKENS = 8192
GROUP_SIZE = 32
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """
The old clock in the hall struck nine, and the rain that had been falling since the morning stopped at last. Two
children ran out into the garden to see whether the river had come over the stones. It had not, but the grass was
wet, the path was dark and the little bridge looked as though it might float away. They found a green bottle, a
broken cup and three white feathers, and they put them all in a box under the stairs.
This film is a great and moving story, told with wit, and the actors are wonderful. This film is a dull and empty
story, told without wit, and the actors are terrible. What a good book! What a bad book! I liked the music; I did
not like the ending. Is it true? Yes. Is it false? No. Review: it was great. Sentiment: positive. Review: it was
terrible. Sentiment: negative. Question: what is the capital of France? Answer: Paris. Question: how many days are
in a week? Answer: seven. The quick brown fox jumps over the lazy dog, and 1 2 3 4 5 6 7 8 9 0 follow each other.
A model reads numbers and words; it learns from examples, and it forgets what it does not see again and again.
"""


def tiny_config(
    kind: str,
    *,
    tied: bool = True,
    vocabulary: int = VOCABULARY,
    layers: int = 3,
    hidden: int = 64,
    dtype: str = "float32",
) -> dict:
    """config.json of a tiny `llama`, `qwen3`, `gemma3` (text) or one of `ARCHITECTURES`: 4 heads of 16, 2 key-value
    heads at hidden 64."""
    if kind not in ("llama", "qwen3", "gemma3", *ARCHITECTURES):
        raise ValueError(f"no tiny model of kind {kind!r}")
    config = {
        "model_type": "gemma3_text" if kind == "gemma3" else kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
        "max_position_embeddings": MAX_TOKENS,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "gemma3":
        # mlx-lm looks at the cache of layer `pattern - 1`, so there must be that many layers.
        pattern = 6 if layers >= 6 else min(layers, 2)
        config |= {"query_pre_attn_scalar": hidden // 4, "sliding_window": 16, "sliding_window_pattern": pattern}
    config |= ARCHITECTURES.get(kind, {})
    if kind == "lfm2":
        config["block_dim"] = hidden
    if kind in MULTIMODAL:
        outer = {key: config[key] for key in ("vocab_size", "tie_word_embeddings", "torch_dtype", "eos_token_id")}
        return {"model_type": MULTIMODAL[kind], "text_config": config, **outer}
    return config


# What their configurations have beside that of a llama, for 3 layers of hidden 64 if nothing else is said.
ARCHITECTURES = {
    "qwen3_5": {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    },
    # As E2B and E4B: inputs of each layer by token, and layers that read keys and values of earlier ones.
    "gemma4": {
        "model_type": "gemma4_text",
        "num_hidden_layers": 5,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": VOCABULARY,
        "sliding_window": 16,
        "final_logit_softcapping": 5.0,
    },
    # As 12B: keys of full attention are its values.
    "gemma4-keys-as-values": {
        "model_type": "gemma4_text",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "attention_k_eq_v": True,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 16,
        "final_logit_softcapping": 5.0,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"],
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_ff_dim": 192,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    "smollm3": {"no_rope_layers": [1, 1, 0]},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
            # Within the lengths of the tests, so that later positions are scaled.
            "original_max_position_embeddings": 16,
        },
    },
    "granite": {
        "logits_scaling": 8.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 4.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "olmo3": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}
# Those whose configuration has the language model's inside it.
MULTIMODAL = {"qwen3_5": "qwen3_5", "gemma4": "gemma4", "gemma4-keys-as-values": "gemma4"}


def tiny_model(
    kind: str = "llama",
    *,
    tied: bool = True,
    bits: int | None = None,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    layers: int = 3,
    hidden: int = 64,
    dtype: mx.Dtype = mx.float32,
) -> nn.Module:
    """An mlx-lm model with random weights, whose logits spread over a few units.

    Args:
        bits: quantise linear layers and the embedding to so many bits, group size 32; None for floating weights.
        dtype: of the floating weights; the random values are drawn in float32 and then cast.
    """
    from mlx_lm.utils import _get_classes

    config = tiny_config(kind, tied=tied, vocabulary=vocabulary, layers=layers, hidden=hidden)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if kind == "gemma3" and tied:
        model.sanitize({})  # a Gemma without lm_head ties its head when it reads its weights
    named = sorted(tree_flatten(model.parameters()))
    keys = mx.random.split(mx.random.key(seed), len(named))
    weights = []
    for (name, old), key in zip(named, keys, strict=True):
        noise = mx.random.normal(old.shape, key=key)
        if "norm" in name or "scalar" in name:
            value = 0.1 * noise + (0.0 if kind == "gemma3" else 1.0)
        elif "embed_tokens" in name:
            value = noise * (1.5 * hidden**-0.5)
        else:
            value = noise * (1.5 * old.shape[-1] ** -0.5)
        weights.append((name, value.astype(dtype)))
    model.update(tree_unflatten(weights))
    if bits is not None:
        nn.quantize(model, group_size=GROUP_SIZE, bits=bits)
    model.eval()
    mx.eval(model.parameters())
    return model


def tiny_tokenizer(vocabulary: int = VOCABULARY):
    """A byte-level BPE `tokenizers.Tokenizer` trained on `TEXT`, with three special tokens as ids 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.strip().splitlines(), trainer)
    return tokenizer


def tiny_folder(
    path: Path,
    kind: str = "llama",
    *,
    tied: bool = True,
    bits: int | None = None,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    layers: int = 3,
    hidden: int = 64,
    dtype: mx.Dtype = mx.float32,
) -> Path:
    """Write `tiny_model(kind, ...)` as an mlx-lm folder, tokenizer included; returns the folder."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    figures = {"tied": tied, "vocabulary": vocabulary, "layers": layers, "hidden": hidden}
    model = tiny_model(kind, bits=bits, seed=seed, dtype=dtype, **figures)
    config = tiny_config(kind, dtype=str(dtype).removeprefix("mlx.core."), **figures)
    if bits is not None:
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": bits}
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config, indent=2))
    tiny_tokenizer(vocabulary).save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_TOKENS,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return path
