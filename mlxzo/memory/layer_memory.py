"""The memory of one decoder layer, from the operations of mlx-lm's layers. Imports no MLX.

The widths count values per token; attention scores, which grow with the square of the length, and the states of a
recurrence are counted apart. A GPT with dropout in half precision comes to 34 bytes a token and unit of width, and 5 a
score (Korthikanti et al., arXiv 2205.05198).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..models.architecture import ModelShape
from ..models.layer_shapes import LayerShape
from .coefficients import coefficient

# Head widths for which MLX's attention on Metal has a fused kernel: a forward pass never holds the scores whole. On the
# CPU, for other widths (Gemma's 256), and for gradients it does (mlx 0.32,
# `ScaledDotProductAttention::use_fallback` of each backend).
FUSED_HEAD_DIMS = (64, 80, 128)


@dataclass(frozen=True)
class LayerMemory:
    """The largest layer of a model in a forward pass.

    Args:
        value_bytes: of one value in the compute dtype.
    """

    shape: ModelShape
    value_bytes: int
    on_cpu: bool

    def peak_bytes(self, rows: int, length: int, ahead: bool = False) -> int:
        """Peak bytes for one micro-batch of `rows` x `length` tokens.

        Args:
            ahead: no effective weights are made first, so that MLX allocates for operations far ahead of the finished
                ones, and frees little before the layer ends.
        """
        shape, tokens = self.shape, self.value_bytes * rows * length
        width = layer_width(shape) + 2 * shape.hidden if ahead else attention_width(shape)
        # On Metal a kernel computes the recurrence, and holds one state a row.
        states = coefficient("recurrent_ahead") * self.state_bytes(rows, length) if self.on_cpu else 0
        attention = tokens * width + max(self.score_bytes(rows, length), int(states))
        # Keys and values for later layers go through every layer, and each layer's own input waits for it.
        beside = 3 * (shape.state_width(shape.layers - 1) - shape.hidden) + 2 * shape.own_input_width
        return tokens * beside + max(tokens * (4 * shape.hidden + mlp_width(shape)), attention)

    def state_bytes(self, rows: int, length: int) -> int:
        """Bytes of a recurrent layer's float32 states, one for each token; 0 where there is no such layer."""
        return 4 * rows * length * max(layer.recurrent for layer in self.shape.layer_shapes)

    def score_bytes(self, rows: int, length: int) -> int:
        """Bytes of the attention scores; 0 where MLX has a fused kernel."""
        fused = not self.on_cpu and self.shape.head_dim in FUSED_HEAD_DIMS
        return 0 if fused else self.value_bytes * rows * self.shape.heads * length**2


def mlp_width(shape: ModelShape) -> int:
    """Values per token of an MLP at its widest: gate, up and their product; Gemma 3's activation is not fused."""
    return int(max(_mlp(shape, layer, 4) for layer in shape.layer_shapes))


def attention_width(shape: ModelShape) -> int:
    """Values per token in memory while attention computes, scores excluded."""
    return 4 * shape.hidden + max(6 * layer.queries + 4 * layer.keys for layer in shape.layer_shapes)


def layer_width(shape: ModelShape) -> int:
    """Values per token that one layer allocates, scores excluded: two norms, two outputs and two sums; queries, keys,
    values and attention outputs, projected, rotated and transposed; the MLP."""
    return 6 * shape.hidden + int(
        max(4 * (layer.queries + layer.keys) + _mlp(shape, layer, 4) for layer in shape.layer_shapes)
    )


def kept_width(shape: ModelShape) -> float:
    """Values per token of one layer that a backward pass reads, scores excluded."""
    return shape.hidden + max(
        layer.norm_width + 4 * layer.queries + 3 * layer.keys + _mlp(shape, layer, 5.5) for layer in shape.layer_shapes
    )


def backward_width(shape: ModelShape) -> int:
    """`layer_width` of a layer that is differentiated: every norm counts, and the parts of Gemma 3's activation."""
    return 4 * shape.hidden + int(
        max(layer.norm_width + 4 * (layer.queries + layer.keys) + _mlp(shape, layer, 5) for layer in shape.layer_shapes)
    )


def _mlp(shape: ModelShape, layer: LayerShape, gemma3: float) -> float:
    """Values per token of a layer's MLP: 3 for each of its width, `gemma3` in Gemma 3; each expert copies the token and
    has an output of its own."""
    return (gemma3 if shape.model_type == "gemma3_text" else 3) * layer.mlp + 3 * layer.experts * shape.hidden
