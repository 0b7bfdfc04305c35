"""How much larger a model MeZO fits under a cap than backpropagation does, in closed form.

The question is that of Katti et al. (arXiv 2511.11362): a fixed memory, and the largest model that each method trains
in it. The body of that paper was not available here, so nothing below is taken from it: neither formulas nor figures.

Derivation
    A decoder of L layers of width D whose MLP is r times as wide has about P = k L D^2 parameters, k = 4 + 3 r (four
    attention matrices and three of the MLP; embeddings are left out, since their share vanishes as P grows). Models are
    scaled at a constant aspect a = D / L, so with x = P^(1/3)

        D = (a / k)^(1/3) x,    L = D / a,    L D = D^2 / a.

    With n tokens a micro-batch in sequences of T, heads of width h, and c bytes a number that is computed with, a run
    takes, beside what does not grow with the model:

        MeZO        w P            weights at rest, w bytes each; z is made in chunks and never stored
                  + c n A D        one layer's activations at its widest; on a GPU without scores
        BP, full    (w + s) P      weights, and the optimiser's state: 8 bytes a weight for Adam, none for SGD
                  + the larger of
                    c n L (K D + q T D / h)          activations that the backward pass reads, scores included, and
                                                     the gradients of j layers, g k D^2 each
                    g P + j c n (K D + q T D / h)    all gradients, g bytes each, and the activations of j layers
                    or with checkpointing of
                    c n L D + c n (V D + v T D / h)  the layers' inputs, and the one layer at work
                    g P + c n (V D + v T D / h)

    A, K and V are the widths of `mlxzo.memory.layer_memory`, q, v and j copies of `mlxzo.memory.coefficients`. Each is
    a cubic in x with no negative coefficient, so it meets the cap M at one positive x, which Cardano's formula gives.
    The ratio of the largest models is the ratio of the cubes.

Limits
    Where weights are all that counts (short context, large cap) the ratio is (w + s + g) / w: 6 with Adam on half
    precision weights, 4 in float32, 2 with SGD. Where activations count, BP without checkpointing falls behind further,
    as its term grows like P^(2/3) n; with checkpointing by much less. This is the O(N^(1/c)) memory of recomputation
    against O(1) in Malladi et al. (arXiv 2305.17333, Appendix C), here with constants. Korthikanti et al.
    (arXiv 2205.05198) give 34 + 5 a s / h bytes for what K and q count, in half precision and with dropout.
    On adapters (LoRA) g P and s P vanish, and with checkpointing the ratio is close to 1: MeZO then saves little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlxzo.memory.coefficients import coefficient
from mlxzo.memory.layer_memory import attention_width, backward_width, kept_width, mlp_width
from mlxzo.models.architecture import DTYPE_BYTES, ModelShape

_STATE_BYTES = {"sgd": 0, "adam": 8, "adamw": 8}


@dataclass(frozen=True)
class Family:
    """Models scaled at a constant aspect.

    Attributes:
        aspect: D / L; 128 is that of Llama-7B.
        mlp_ratio: MLP width over D.
        head_dim: width of one head; queries, keys and values have D / head_dim heads.
    """

    aspect: float = 128.0
    mlp_ratio: float = 8 / 3
    head_dim: int = 128

    @property
    def parameters_a_width(self) -> float:
        """k of P = k L D^2."""
        return 4 + 3 * self.mlp_ratio

    @property
    def width(self) -> float:
        """D of a model of one parameter: D = width * P^(1/3)."""
        return (self.aspect / self.parameters_a_width) ** (1 / 3)

    def per_width(self, count) -> float:
        """A width of `coefficients`, which is linear in D, for D = 1."""
        unit = 3 * self.head_dim
        heads = unit // self.head_dim
        shape = ModelShape("", "llama", 1, unit, round(self.mlp_ratio * unit), heads, heads, self.head_dim, 1, True)
        return count(shape) / unit


@dataclass(frozen=True)
class Setting:
    """What is trained with: tokens a micro-batch (batch times context), context T, dtype at rest, and how.

    Attributes:
        adapters: what trains is so small that its gradients and state do not count (LoRA).
    """

    tokens: int
    context: int
    dtype: str = "bfloat16"
    optimizer: str = "adam"
    checkpointing: bool = False
    adapters: bool = False


@dataclass(frozen=True)
class Cubic:
    """Memory in bytes of a model of x^3 parameters: cubic x^3 + square x^2 + linear x."""

    cubic: float
    square: float
    linear: float

    def bytes(self, parameters: float) -> float:
        x = parameters ** (1 / 3)
        return ((self.cubic * x + self.square) * x + self.linear) * x

    def largest(self, cap: float) -> float:
        """The parameters whose memory is `cap` bytes, by Cardano's formula."""
        a, b, c = self.cubic, self.square, self.linear
        p = (3 * a * c - b * b) / (3 * a * a)
        q = (2 * b**3 - 9 * a * b * c - 27 * a * a * cap) / (27 * a**3)
        discriminant = (q / 2) ** 2 + (p / 3) ** 3
        if discriminant >= 0:
            root = math.sqrt(discriminant)
            t = math.cbrt(-q / 2 + root) + math.cbrt(-q / 2 - root)
        else:  # three real roots, of which the largest is the positive one
            t = 2 * math.sqrt(-p / 3) * math.cos(math.acos(3 * q / (2 * p) * math.sqrt(-3 / p)) / 3)
        return (t - b / (3 * a)) ** 3


def mezo(setting: Setting, family: Family = Family()) -> Cubic:
    """Memory of a MeZO step on a GPU, whatever trains."""
    w = DTYPE_BYTES[setting.dtype]
    widest = family.per_width(lambda s: max(4 * s.hidden + mlp_width(s), attention_width(s)))
    return Cubic(w, 0.0, w * setting.tokens * widest * family.width)


def backpropagation(setting: Setting, family: Family = Family()) -> tuple[Cubic, Cubic]:
    """Memory where a backward pass begins and where it ends: the larger of the two counts."""
    w, trains = DTYPE_BYTES[setting.dtype], 0 if setting.adapters else 1
    resting = w + trains * _STATE_BYTES[setting.optimizer]
    gradients = trains * w
    tokens = w * setting.tokens
    scores = setting.context / family.head_dim
    # D = width x, hence L D = width^2 x^2 / a, and a layer's parameters k D^2 = k width^2 x^2.
    width, square = family.width, family.width**2
    if setting.checkpointing:
        live = coefficient("live_layers") * family.per_width(backward_width) + coefficient("live_scores") * scores
        at_work = tokens * live * width
        begins = Cubic(resting, tokens * square / family.aspect, at_work)
        return begins, Cubic(resting + gradients, 0.0, at_work)
    kept = tokens * (family.per_width(kept_width) + coefficient("kept_scores") * scores)
    ahead = coefficient("ahead_layers")
    of_layers = ahead * gradients * family.parameters_a_width * square
    begins = Cubic(resting, kept * square / family.aspect + of_layers, 0.0)
    return begins, Cubic(resting + gradients, 0.0, ahead * kept * width)


def largest_ratio(cap: float, setting: Setting, family: Family = Family()) -> float:
    """The largest model under MeZO over the largest under backpropagation, in parameters, for `cap` bytes beside what
    does not grow with the model."""
    forward = mezo(setting, family).largest(cap)
    backward = min(law.largest(cap) for law in backpropagation(setting, family))
    return forward / backward
