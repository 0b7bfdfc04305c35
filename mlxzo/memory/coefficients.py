"""Every number of the memory estimate that is not a figure of the model: what it is and where it comes from.

The widths count numbers a token that one layer has alive, from the operations of mlx-lm's decoder layers; scores of the
attention, which grow with the square of the length, are counted apart. A GPT with dropout in half precision comes to
34 bytes a token and unit of width, and 5 a score (Korthikanti et al., arXiv 2205.05198).
"""

from __future__ import annotations

from dataclasses import dataclass

from .shape import ModelShape

# As in mlxzo.inplace, which imports MLX; a test holds the two equal.
CHUNK_BYTES = 16 * 2**20
HALF_PRECISION_CHUNK_BYTES = CHUNK_BYTES // 8


@dataclass(frozen=True)
class Coefficient:
    """A number that does not follow from the architecture, and where it comes from."""

    value: float
    why: str


COEFFICIENTS = {
    "runtime_bytes": Coefficient(
        100e6, "measured: Python, MLX, mlx-lm, NumPy, the tokenizers library and the BLAS's buffers, after loading"
    ),
    "tokenizer_bytes_a_word": Coefficient(
        500, "measured: what a tokenizer of 49,152 and one of 262,144 words keep, after freed memory is returned"
    ),
    "default_cache_bytes": Coefficient(
        32 * 2**20, "measured: MLX's own limit for its cache of freed buffers on the CPU, where a run sets none"
    ),
    "margin": Coefficient(0.05, "a run fits if its predicted footprint and this share of it stay under the cap"),
    "made_copies": Coefficient(
        3, "a matrix w + eps z is made of the words of z, of eps z and of the sum, all of its size as float32"
    ),
    "moved_copies": Coefficient(2, "an update holds a chunk of the weights and the chunk that replaces it"),
    "rounded_copies": Coefficient(
        16, "stochastic rounding holds some 16 arrays of a chunk's size; its chunks are smaller by a factor of 8"
    ),
    "head_copies": Coefficient(
        1.8, "reading the head holds a chunk of its rows, and part of the next one, which MLX begins before it is freed"
    ),
    "kept_scores": Coefficient(1.1, "scores [R, H, T, T] that it reads: the softmax, and a mask"),
    "live_layers": Coefficient(
        3.8, "a layer's worth of activations alive while a checkpointed layer is computed again and passed backwards"
    ),
    "live_scores": Coefficient(2, "scores alive there: the softmax and its gradient"),
    "logit_copies": Coefficient(3, "logits over the vocabulary, their exponentials and their gradient"),
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


def kept_width(shape: ModelShape) -> int:
    """Numbers a token that a backward pass reads of a layer, scores not counted."""
    return 3 * shape.hidden + 4 * shape.queries + 3 * shape.keys + mlp_width(shape)
