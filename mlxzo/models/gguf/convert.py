"""Conversion of a GGUF file into a folder for mlx-lm: config.json, model.safetensors and the tokenizer.

Architectures: llama (SmolLM2, Llama, Mistral), qwen2, qwen3, gemma3 (text). Names and layouts are those of llama.cpp's
converter (convert_hf_to_gguf.py). Imports no MLX, and holds one piece of one tensor at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...core.errors import MlxzoError, ModelError
from ...core.files import FileProgress, Report, disk_full, ignore_progress, is_disk_full, need_free_space
from ...core.formatting import brief, format_bytes, shown
from ...core.parsing import parsing
from ..safetensors_file import TensorPlan, write_safetensors
from .quants import GROUP_SIZE, KEPT_BITS, cast, kept_plans, pieces_of, to_float32
from .reader import GgufFile, GgufTensor, read_gguf
from .tokenizer import write_tokenizer

CONVERTER_VERSION = 1  # part of the name of a converted model: raise it when the output changes

_AGAIN = "download the file again"
WEIGHTS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER_NAMES = {
    **_LAYER_NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def convert_gguf(path: Path, out_dir: Path, *, weights: str, report: Report = ignore_progress) -> None:
    """Writes the model in the GGUF file `path` to the folder `out_dir`, which is created if necessary.

    Args:
        weights: `float32` (exact for every ggml format), `float16` or `bfloat16` (rounded to nearest), or
            `quantized`: Q4_0, Q4_1 and Q8_0 tensors keep their integers as MLX triplets with group size 32,
            and MLX's `scale * q + bias` in float32 gives back the file's values bit for bit.

    Raises:
        ModelError: damaged file, unsupported architecture, number format, tokenizer or tensor.
        DoesNotFit: the disk is full.
    """
    path, out_dir = Path(path), Path(out_dir)
    if weights not in (*WEIGHTS, "quantized"):
        raise ValueError(f"weights is one of {', '.join(WEIGHTS)} or quantized, not {weights!r}")
    gguf_file = read_gguf(path)
    if gguf_file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path} holds a model of architecture {shown(gguf_file.architecture)}, which mlxzo cannot convert",
            f"use a GGUF file of {', '.join(ARCHITECTURES)}, or the model's safetensors",
        )
    with parsing(path, ModelError, _AGAIN):
        config, plans = _planned(gguf_file, weights)
    total = sum(plan.nbytes for plan in plans)
    purpose = f"the converted model ({format_bytes(total)})"
    out_dir.mkdir(parents=True, exist_ok=True)
    need_free_space(out_dir, total + (32 << 20), purpose)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report(FileProgress("Converting the model", done, total))

    try:
        _write_tokenizer(gguf_file, config, out_dir)
        (out_dir / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_safetensors(out_dir / "model.safetensors", plans, on_bytes)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(purpose) from error
        raise ModelError(f"the converted model cannot be written to {out_dir}: {error}") from error


def _planned(gguf_file: GgufFile, weights: str) -> tuple[dict, list[TensorPlan]]:
    """The content of config.json without the tokens' ids, and the tensors to be written.

    Raises:
        ModelError: see `convert_gguf`. Other exceptions: the metadata are not what they should be.
    """
    names = _names(gguf_file)
    config = _config(gguf_file)
    plans: list[TensorPlan] = []
    kept: dict[str, dict] = {}
    for tensor in gguf_file.tensors.values():
        if tensor.name == "rope_freqs.weight":  # already in the config as rope_scaling
            continue
        planned, bits = _plan(gguf_file, tensor, names[tensor.name], weights)
        plans += planned
        if bits:
            kept[names[tensor.name].removesuffix(".weight")] = {"group_size": GROUP_SIZE, "bits": bits}
    if kept:
        bits = [each["bits"] for each in kept.values()]
        common = max(sorted(set(bits)), key=bits.count)
        exceptions = {name: each for name, each in kept.items() if each["bits"] != common}
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": common, **exceptions}
    else:
        config["torch_dtype"] = weights if weights != "quantized" else "float32"
    return config, plans


def _write_tokenizer(gguf_file: GgufFile, config: dict, out_dir: Path) -> None:
    """As `write_tokenizer`, with every fault of the file as a ModelError."""
    try:
        write_tokenizer(gguf_file, config, out_dir)
    except (MlxzoError, OSError):
        raise
    except Exception as error:  # `tokenizers` raises no narrower class
        raise ModelError(f"{gguf_file.path} has a tokenizer that makes no sense: {brief(error)}", _AGAIN) from None


def natural_weights(path: Path) -> str:
    """The value of `weights` that loses least of a GGUF file in little memory.

    `quantized` if MLX can hold every format of the file; otherwise a 16-bit float: the file's own, or float16 for
    formats of 6 bits and less (bfloat16 for Gemma, whose activations overflow float16).
    """
    gguf_file = read_gguf(path)
    kinds = {tensor.kind for tensor in gguf_file.tensors.values() if len(tensor.shape) > 1}
    if kinds & KEPT_BITS.keys() and kinds <= KEPT_BITS.keys() | {"F32", "F16"}:
        return "quantized"
    if kinds <= {"F32"}:
        return "float32"
    return "bfloat16" if "BF16" in kinds or gguf_file.architecture == "gemma3" else "float16"


def _names(gguf_file: GgufFile) -> dict[str, str]:
    """mlx-lm's name of every tensor.

    Raises:
        ModelError: tensors are unknown or missing.
    """
    gemma = gguf_file.architecture == "gemma3"
    layer_names = _GEMMA_LAYER_NAMES if gemma else _LAYER_NAMES
    names, unknown = {}, []
    for name in gguf_file.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if name in _TOP_NAMES:
            names[name] = _TOP_NAMES[name]
        elif match and match[2] in layer_names:
            names[name] = f"model.layers.{match[1]}.{layer_names[match[2]]}.{match[3]}"
        elif name != "rope_freqs.weight":
            unknown.append(name)
    needed = ["token_embd.weight", "output_norm.weight"]
    optional = set() if gguf_file.architecture in ("qwen3", "gemma3") else {"attn_q_norm", "attn_k_norm"}
    # A damaged count would otherwise list billions of missing tensors.
    for layer in range(min(_figure(gguf_file, "block_count"), len(gguf_file.tensors))):
        needed += [f"blk.{layer}.{part}.weight" for part in layer_names if part not in optional]
    missing = [name for name in needed if name not in gguf_file.tensors]
    if unknown or missing:
        raise ModelError(
            f"{gguf_file.path} is not laid out as a {gguf_file.architecture} model mlxzo can convert",
            "use a GGUF file of a plain text model, or the model's safetensors",
            [f"unknown tensor {name}" for name in unknown] + [f"missing tensor {name}" for name in missing],
        )
    return names


def _figure(gguf_file: GgufFile, key: str) -> int:
    value = gguf_file.get(key)
    if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
        value = int(value[0])
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"{gguf_file.path} does not say its {gguf_file.architecture}.{key}, or not as one whole number",
            "use a GGUF file made by llama.cpp's converter",
        )
    return value


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to a float32: 9.999999747378752e-06 becomes 1e-05."""
    return float(str(np.float32(value)))


def _config(gguf_file: GgufFile) -> dict:
    """config.json in the keys of transformers, which mlx-lm reads."""
    heads, hidden = _figure(gguf_file, "attention.head_count"), _figure(gguf_file, "embedding_length")
    tensors = gguf_file.tensors
    vocabulary = tensors["token_embd.weight"].shape[0]
    config = {
        "model_type": ARCHITECTURES[gguf_file.architecture],
        "hidden_size": hidden,
        "num_hidden_layers": _figure(gguf_file, "block_count"),
        "intermediate_size": _figure(gguf_file, "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _figure(gguf_file, "attention.head_count_kv"),
        "head_dim": gguf_file.get("attention.key_length", hidden // heads),
        "rms_norm_eps": _shortest(gguf_file.get("attention.layer_norm_rms_epsilon", 1e-6)),
        "vocab_size": vocabulary,
        "max_position_embeddings": _figure(gguf_file, "context_length"),
        "rope_theta": _shortest(gguf_file.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if scaling := _rope_scaling(gguf_file, config):
        config["rope_scaling"] = scaling
    if gguf_file.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if gguf_file.architecture == "gemma3":
        # llama.cpp: only the 27B (62 layers) scales by the head width without key_length.
        config["query_pre_attn_scalar"] = hidden // heads if config["num_hidden_layers"] == 62 else config["head_dim"]
        config["sliding_window"] = gguf_file.get("attention.sliding_window", 512)
        config["sliding_window_pattern"] = 6
        config["rope_local_base_freq"] = 10000.0
    return config


def _rope_scaling(gguf_file: GgufFile, config: dict) -> dict | None:
    fix = "Use the model's safetensors."
    if "rope_freqs.weight" in gguf_file.tensors:
        factors = to_float32(gguf_file.tensors["rope_freqs.weight"].rows, "F32").reshape(-1)
        scaling = {
            "rope_type": "llama3",
            "factor": _shortest(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        expected = _llama3_factors(config["rope_theta"], config["head_dim"], scaling)
        if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
            raise ModelError(f"{gguf_file.path} scales its rotary positions in a way mlxzo does not know", fix)
        return scaling
    kind = gguf_file.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise ModelError(f"{gguf_file.path} scales its rotary positions by {shown(kind)}, which is not supported", fix)
    return {"rope_type": "linear", "factor": _shortest(gguf_file.get("rope.scaling.factor", 1.0))}


def _llama3_factors(theta: float, head_dim: int, scaling: dict) -> np.ndarray:
    """Llama 3's divisors of the rotary frequencies (transformers, _compute_llama3_parameters)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def _plan(gguf_file: GgufFile, tensor: GgufTensor, name: str, weights: str) -> tuple[list[TensorPlan], int]:
    """Plans for writing one tensor, and its bits if it stays quantised (else 0)."""
    rows = tensor.rows
    if gguf_file.architecture == "llama" and re.search(r"\.attn_[qk]\.", tensor.name):
        which = "attention.head_count" if ".attn_q." in tensor.name else "attention.head_count_kv"
        order = rotary_order(tensor.shape[0], _figure(gguf_file, which))
        # A bias is a single row: there the columns change places.
        rows = rows.reshape(tensor.shape[0], -1)[order].reshape(rows.shape)
    shift = -1.0 if gguf_file.architecture == "gemma3" and tensor.name.endswith("norm.weight") else 0.0
    _check_kind(gguf_file, tensor)

    if weights == "quantized" and tensor.kind in KEPT_BITS and len(tensor.shape) == 2:
        return kept_plans(tensor, rows, name), KEPT_BITS[tensor.kind]
    if weights == "quantized" and tensor.kind not in ("F32", "F16", "BF16"):
        raise ModelError(
            f"{gguf_file.path}: {tensor.name} is in {tensor.kind}, which MLX cannot hold as it is",
            f"convert to float16, or use a file in {', '.join(KEPT_BITS)}",
        )
    dtype = "F32" if weights == "quantized" else WEIGHTS[weights]

    def pieces() -> Iterator[np.ndarray]:
        for piece in pieces_of(rows, tensor.shape[-1]):
            yield cast(to_float32(piece, tensor.kind) + np.float32(shift), dtype)

    return [TensorPlan(name, dtype, tensor.shape, pieces)], 0


def rotary_order(rows: int, heads: int) -> np.ndarray:
    """Row order that undoes llama.cpp's permutation of q and k, shape (rows,).

    GGUF interleaves the two halves of each head for its rotary embedding; mlx-lm's llama keeps them separate.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _check_kind(gguf_file: GgufFile, tensor: GgufTensor) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        to_float32(np.zeros((1, GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]][1]), np.uint8), tensor.kind)
    except NotImplementedError as error:
        raise ModelError(
            f"{gguf_file.path}: {tensor.name} is in {tensor.kind}, a number format mlxzo cannot read",
            "use a file quantised to Q4_K_M, Q5_K_M, Q6_K or Q8_0, or one in F16 or BF16",
        ) from error
