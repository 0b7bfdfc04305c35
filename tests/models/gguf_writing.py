"""Writing tiny GGUF files the way llama.cpp's converter lays them out, for the tests of the way back."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize
from mlx.utils import tree_flatten

from tests.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_config, tiny_model, tiny_tokenizer

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PLAIN_NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's LlamaModel.permute: the two halves of every head are interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str, kind: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    norms = GEMMA_NORMS if kind == "gemma3" else PLAIN_NORMS
    return f"blk.{layer}.{(LAYER_NAMES | norms)[part]}.weight"


def write_tiny_gguf(
    path: Path,
    kind: str = "llama",
    *,
    tied: bool = True,
    layers: int = 3,
    hidden: int = 64,
    number_format: str = "F32",
    embedding_format: str | None = None,
    pre: str = "gpt-2",
    add_bos: bool | None = False,
    split_after: int = 0,
):
    """Write `tiny_model(kind)` as a GGUF file, matrices in `number_format`; returns the mlx-lm model.

    Args:
        pre: name of the pre-tokenizer.
        add_bos: what the file says of a first token; None to say nothing.
        split_after: as several files, each of so many tensors; 0 for one.
    """
    model = tiny_model(kind, tied=tied, layers=layers, hidden=hidden)
    config = tiny_config(kind, tied=tied, layers=layers, hidden=hidden)
    writer = gguf.GGUFWriter(path, kind, split_max_tensors=split_after)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if kind == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
    add_byte_level_tokenizer(writer, pre, add_bos)
    for name, tensor in tree_flatten(model.parameters()):
        array = np.array(tensor)
        if kind == "gemma3" and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if kind == "llama" and ".q_proj." in name:
            array = permuted(array, config["num_attention_heads"])
        if kind == "llama" and ".k_proj." in name:
            array = permuted(array, config["num_key_value_heads"])
        matrices = embedding_format or number_format if "embed_tokens" in name else number_format
        stored = gguf.GGMLQuantizationType[matrices if array.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name, kind), quantize(array, stored), raw_dtype=stored)
    finish(writer)
    return model


def add_byte_level_tokenizer(writer: gguf.GGUFWriter, pre: str = "gpt-2", add_bos: bool | None = False) -> None:
    content = json.loads(tiny_tokenizer().to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
