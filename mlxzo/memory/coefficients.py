"""The constants of the memory estimate that no dimension of the model gives, each with its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Coefficient:
    """A constant and its source."""

    value: float
    why: str


COEFFICIENTS = {
    "runtime_bytes": Coefficient(
        107e6, "measured: Python, MLX, mlx-lm, NumPy, the tokenizers library and the BLAS's buffers, after loading"
    ),
    "tokenizer_bytes_a_word": Coefficient(
        500, "measured: memory of tokenizers of 49,152 and of 262,144 words, after freed memory is returned"
    ),
    "default_cache_bytes": Coefficient(
        32 * 2**20,
        "measured: MLX's own limit for its cache of freed buffers on the CPU; on a GPU the least that is set",
    ),
    "cache_share": Coefficient(
        0.05,
        "chosen: most of the machine's memory for this cache on a GPU without a cap, where MLX's own limit is 95 %",
    ),
    "heap_share": Coefficient(
        0.05,
        "measured: the C library keeps 1 to 14 % of the memory that a step allocates and frees on the CPU",
    ),
    "written_heap_share": Coefficient(
        0.15,
        "measured: more of it where answers are written, as the caches of their keys and values grow by being copied",
    ),
    "second_layer": Coefficient(
        0.25,
        "measured on tiny models: a CPU computes a layer of two micro-batches at once, and MLX bounds the operations "
        "that are under way in all streams together",
    ),
    "margin": Coefficient(0.05, "a run fits if its predicted footprint and this share of it stay under the cap"),
    "made_copies": Coefficient(
        3, "a matrix w + eps z is made from the random words, eps z and the sum, all of its size in float32"
    ),
    "moved_copies": Coefficient(2, "an update holds a chunk of the weights and the chunk that replaces it"),
    "rounded_copies": Coefficient(
        14, "stochastic rounding holds some 14 more arrays of a chunk's size; its chunks are smaller by a factor of 8"
    ),
    "head_copies": Coefficient(
        1.8, "reading the head holds a chunk of its rows, and part of the next one, which MLX begins early"
    ),
    "kept_scores": Coefficient(1.1, "scores [R, H, T, T] that a backward pass reads: the softmax, and a mask"),
    "ahead_layers": Coefficient(
        7,
        "layers whose activations a backward pass without checkpointing frees late, as weight gradients are deferred",
    ),
    "live_layers": Coefficient(2.15, "a checkpointed layer holds its forward activations, and as much backwards"),
    "live_scores": Coefficient(3.1, "its scores: before and after the softmax, and their gradient"),
    "live_weights_remade": Coefficient(
        1.9, "a layer's weights where they are cast or dequantised: for the product, and for its gradient"
    ),
    "live_layers_remade": Coefficient(1.2, "a layer's activations in that case, while MLX waits for those weights"),
    "live_scores_remade": Coefficient(1.5, "its scores in that case"),
    "kept_remade": Coefficient(2.2, "a layer's cast or dequantised weights without checkpointing"),
    "recurrent_ahead": Coefficient(
        1.2, "states of a gated delta rule, one a token, whose products MLX makes before the recurrence needs them"
    ),
    "recurrent_kept": Coefficient(2.7, "such states while the rule is differentiated, which has no kernel anywhere"),
    "logit_chunks": Coefficient(
        9.5, "chunks of the head's rows, of a quarter of 16 MB, that MLX allocates ahead of its computation"
    ),
    "adam_copies": Coefficient(8, "a chunk of weight, gradient and both means of Adam, before and after the update"),
}


def coefficient(name: str) -> float:
    return COEFFICIENTS[name].value
