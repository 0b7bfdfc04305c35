"""Every number of the memory estimate that is not a figure of the model: what it is and where it comes from.

The widths count numbers a token that one layer has alive, from the operations of mlx-lm's decoder layers; scores of the
attention, which grow with the square of the length, are counted apart. A GPT with dropout in half precision comes to
34 bytes a token and unit of width, and 5 a score (Korthikanti et al., arXiv 2205.05198).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..models.architecture import ModelShape

# Widths of a head for which MLX's attention on Metal never makes the scores whole in a forward pass; on the CPU, for
# other widths (Gemma's 256), and wherever a gradient is taken it does (mlx 0.32,
# `ScaledDotProductAttention::use_fallback` of each backend).
FUSED_HEAD_DIMS = (64, 80, 128)


@dataclass(frozen=True)
class Coefficient:
    """A number that does not follow from the architecture, and where it comes from."""

    value: float
    why: str


COEFFICIENTS = {
    "runtime_bytes": Coefficient(
        107e6, "measured: Python, MLX, mlx-lm, NumPy, the tokenizers library and the BLAS's buffers, after loading"
    ),
    "tokenizer_bytes_a_word": Coefficient(
        500, "measured: what a tokenizer of 49,152 and one of 262,144 words keep, after freed memory is returned"
    ),
    "default_cache_bytes": Coefficient(
        32 * 2**20, "measured: MLX's own limit for its cache of freed buffers on the CPU, where a run sets none"
    ),
    "heap_share": Coefficient(
        0.05,
        "measured: of what a step allocates and frees on the CPU the C library keeps 1 to 14 %, in holes of its heap",
    ),
    "margin": Coefficient(0.05, "a run fits if its predicted footprint and this share of it stay under the cap"),
    "made_copies": Coefficient(
        3, "a matrix w + eps z is made of the words of z, of eps z and of the sum, all of its size as float32"
    ),
    "moved_copies": Coefficient(2, "an update holds a chunk of the weights and the chunk that replaces it"),
    "rounded_copies": Coefficient(
        14, "stochastic rounding holds some 14 arrays more of a chunk's size; its chunks are smaller by a factor of 8"
    ),
    "head_copies": Coefficient(
        1.8, "reading the head holds a chunk of its rows, and part of the next one, which MLX begins before it is freed"
    ),
    "kept_scores": Coefficient(1.1, "scores [R, H, T, T] that a backward pass reads: the softmax, and a mask"),
    "ahead_layers": Coefficient(
        7,
        "layers that a backward pass without checkpointing is ahead of what it frees: gradients of weights are put off",
    ),
    "live_layers": Coefficient(2.15, "a checkpointed layer has alive what it makes forwards, and as much backwards"),
    "live_scores": Coefficient(3.1, "scores alive there: before and after the softmax, and their gradient"),
    "live_weights_remade": Coefficient(
        1.9, "a layer's weights where they are cast or dequantised for it: for the product, and for its gradient"
    ),
    "live_layers_remade": Coefficient(1.2, "a layer's activations there, while MLX waits for those weights"),
    "live_scores_remade": Coefficient(1.5, "scores alive there"),
    "kept_remade": Coefficient(2.2, "a layer's weights so made that are alive without checkpointing"),
    "logit_chunks": Coefficient(
        9.5, "chunks of the head's rows, of a quarter of 16 MB, that MLX makes room for ahead of what it computes"
    ),
    "adam_copies": Coefficient(8, "a chunk of weight, gradient and both means of Adam, as they were and as they are"),
}


def coefficient(name: str) -> float:
    return COEFFICIENTS[name].value


def mlp_width(shape: ModelShape) -> int:
    """Numbers a token that an MLP makes at its width: gate, up and their product; Gemma's activation is not fused."""
    return (4 if shape.model_type == "gemma3_text" else 3) * shape.intermediate


def attention_width(shape: ModelShape) -> int:
    """Numbers a token alive while attention computes, its scores not counted."""
    return 4 * shape.hidden + 6 * shape.queries + 4 * shape.keys


def layer_width(shape: ModelShape) -> int:
    """All numbers a token that a layer makes, scores not counted: two norms, two outputs and two sums; queries, keys,
    values and what attention gives, projected, rotated and put in order; the MLP."""
    return 6 * shape.hidden + 4 * (shape.queries + shape.keys) + mlp_width(shape)


def kept_width(shape: ModelShape) -> float:
    """Numbers a token that a backward pass reads of a layer, scores not counted."""
    mlp = (5.5 if shape.model_type == "gemma3_text" else 3) * shape.intermediate
    return (shape.layer_norms + 1) * shape.hidden + 4 * shape.queries + 3 * shape.keys + mlp


def backward_width(shape: ModelShape) -> int:
    """As `layer_width` where the layer is differentiated: every norm counts, and the parts of Gemma's activation."""
    mlp = (5 if shape.model_type == "gemma3_text" else 3) * shape.intermediate
    return (shape.layer_norms + 4) * shape.hidden + 4 * (shape.queries + shape.keys) + mlp
