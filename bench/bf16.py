"""Derivatives in bfloat16, as a GPU computes them, beside those in float32, for each scope at several eps.

    python -m bench.bf16
    python -m bench.bf16 --scopes full --eps 1e-3 4e-3 1.6e-2 --directions 8

On a GPU the weights of a model compute in their own dtype; here, on a CPU, that is emulated: every operation rounds to
bfloat16, and products accumulate in float32, as those of Metal and CUDA do. Both dtypes see the same weights, rows and
directions. `float32` is the two-sided difference of all scores in float32 at a quarter of the scope's eps, the nearest
that we have to the derivative. Beside it stand, in bfloat16:

    sign        share of derivatives of the loss of 16 rows (spsa, two-sided) that have the sign of the float32 one
    derivative  rms error of that derivative, in its own rms
    Jacobian    rms error of the derivatives of the scores, centred over the candidates, in their own rms (rsgn)
    decrease    what a damped Gauss-Newton step of that Jacobian lowers the loss by, in the float32 quadratic model, as
                a share of what the float32 step does; two-sided with half of the directions, for as many passes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

import mlx.core as mx
import numpy as np

from bench.report import emit, machine, table
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.resolved_config import ResolvedConfig
from mlxzo.engine.batching import Batch, make_batch
from mlxzo.engine.encoding import encode_all
from mlxzo.engine.scoring import Scorer, by_example
from mlxzo.engine.session import load_data, micro_batch_shapes, open_model
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import Trainable, prepare
from mlxzo.zo.gauss_newton import Part, System, make_system
from mlxzo.zo.perturb import Direction

SCOPES = ("norms/last-0", "norms/last-6", "gains/last-6", "biases/last-6", "lora/last-6", "last-4", "full")
# Multiples of the scope's eps.
FACTORS = (1.0, 2.0, 4.0, 8.0)
# The batch size of spsa.
_SPSA_ROWS = 16
# The damping that RSGN starts with where batches change.
_DAMPING = 4.0

Scores = list[np.ndarray]
"""Of each micro-batch, float64 [B, C]."""


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Products of bfloat16 arrays accumulate in float32 and round once; on a CPU MLX would take a slow way."""
    product, attention = mx.array.__matmul__, mx.fast.scaled_dot_product_attention

    def in_float32(a: mx.array, b: mx.array) -> mx.array:
        if a.dtype != mx.bfloat16 or b.dtype != mx.bfloat16:
            return product(a, b)
        return product(a.astype(mx.float32), b.astype(mx.float32)).astype(mx.bfloat16)

    def fused(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        return attention(*(a.astype(mx.float32) for a in (q, k, v)), **options).astype(q.dtype)

    mx.array.__matmul__, mx.fast.scaled_dot_product_attention = in_float32, fused
    try:
        yield
    finally:
        mx.array.__matmul__, mx.fast.scaled_dot_product_attention = product, attention


class Passes:
    """Scores of one batch at w and at w + eps z and w - eps z for some directions."""

    def __init__(self, causal: CausalLM, trainable: Trainable, batch: Batch, count: int, seed: int):
        self.scorer, self.batch = Scorer(causal, trainable.frozen_layers), batch
        scales = {name: trainable.scales.get(name, 1.0) for name in trainable.names}
        self.directions = [Direction(seed, 0, index, "sign", scales) for index in range(count)]
        self.prefix = self.scorer.prefix(batch)
        self.clean = self._scores(None, 0.0)

    def sides(self, eps: float) -> list[tuple[Scores, Scores]]:
        """Of each direction, the scores on both sides."""
        return [(self._scores(z, eps), self._scores(z, -eps)) for z in self.directions]

    def _scores(self, direction: Direction | None, eps: float) -> Scores:
        return self.scorer.scores(self.batch, self.scorer.causal.view(direction, eps), self.prefix)


def system(batch: Batch, clean: Scores, slopes: Sequence[Scores]) -> System:
    """The Gauss-Newton system of derivatives of the scores along some directions."""
    return make_system(
        [
            Part(at_w, np.stack([at_w + slope[i] for slope in slopes]), part.target, part.answer_tokens)
            for i, (at_w, part) in enumerate(zip(clean, batch.parts, strict=True))
        ],
        eps=1.0,
    )


def differences(passes: Passes, sides: list[tuple[Scores, Scores]], eps: float, *, two_sided: bool) -> list[Scores]:
    """The derivative of every score along each direction."""
    found = []
    for after, before in sides:
        start, length = (before, 2.0 * eps) if two_sided else (passes.clean, eps)
        found.append([(a - b) / length for a, b in zip(after, start, strict=True)])
    return found


def of_losses(batch: Batch, sides: list[tuple[Scores, Scores]], eps: float) -> np.ndarray:
    """The derivative of the mean loss of each `_SPSA_ROWS` examples along each direction, two-sided, [k, batches]."""
    losses = np.array([[by_example(batch, scores) for scores in both] for both in sides])
    means = losses.reshape(len(sides), 2, -1, min(_SPSA_ROWS, batch.size)).mean(axis=-1)
    return (means[:, 0] - means[:, 1]) / (2.0 * eps)


def centred(clean: Scores, slopes: Sequence[Scores]) -> np.ndarray:
    """The derivatives without what all candidates of an example have in common: [k, numbers]."""
    chances = [np.exp(s - s.max(1, keepdims=True)) for s in clean]
    chances = [c / c.sum(1, keepdims=True) for c in chances]
    return np.stack(
        [
            np.concatenate([(s - (s * p).sum(1, keepdims=True)).ravel() for s, p in zip(slope, chances, strict=True)])
            for slope in slopes
        ]
    )


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))


def measure(config: ResolvedConfig, batch_rows: int, count: int, factors: Sequence[float]) -> list[dict[str, Any]]:
    """The figures of one scope, at each multiple of its eps."""
    resolved, loaded = open_model(config, events.ignore)
    data = load_data(config, events.ignore)
    rows = encode_all({"train": data.train[:batch_rows]}, loaded.tokenizer, config.max_tokens)["train"]
    batch = make_batch(rows, micro_batch_shapes(config))
    trainable = prepare(loaded.model, config)
    exact = Passes(CausalLM(loaded.model, mx.float32), trainable, batch, count, config.seed)
    eps = config.eps / 4
    sides = exact.sides(eps)
    gradients, slopes = of_losses(batch, sides, eps), differences(exact, sides, eps, two_sided=True)
    truth = system(batch, exact.clean, slopes)
    jacobian = centred(exact.clean, slopes)
    best = truth.decrease(truth.step(_DAMPING))
    half = count // 2
    found = []
    with as_on_a_gpu():
        rounded = Passes(CausalLM(loaded.model, None), trainable, batch, count, config.seed)
        for factor in factors:
            began, eps = time.perf_counter(), factor * config.eps
            sides = rounded.sides(eps)
            one, two = (differences(rounded, sides, eps, two_sided=both) for both in (False, True))
            derivatives = of_losses(batch, sides, eps)
            values = {
                "sign": float((np.sign(derivatives) == np.sign(gradients)).mean()),
                "derivative": error(derivatives, gradients),
                "jacobian_one_sided": error(centred(rounded.clean, one), jacobian),
                "jacobian_two_sided": error(centred(rounded.clean, two), jacobian),
            }
            for name, slopes, used in (("one", one, count), ("two", two, half)):
                step = np.zeros(count)
                step[:used] = system(batch, rounded.clean, slopes[:used]).step(_DAMPING)
                values[f"decrease_{name}_sided"] = truth.decrease(step) / best
            found.append({"eps": eps, **values})
            seconds = time.perf_counter() - began
            emit("bf16", model=resolved.name, scope=config.scope, seconds=seconds, default=config.eps, **found[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--scopes", nargs="+", default=SCOPES)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--eps", type=float, nargs="+", help="default: 1 to 8 times that of the scope")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    emit("machine", **machine(), rows=arguments.rows, directions=arguments.directions)
    lines = []
    for scope in arguments.scopes:
        named = {"model": arguments.model, "task": arguments.task, "scope": scope, "seed": arguments.seed}
        config = ResolvedConfig.of(RunConfig(dtype="bfloat16", **named))
        factors = [eps / config.eps for eps in arguments.eps] if arguments.eps else FACTORS
        for values in measure(config, arguments.rows, arguments.directions, factors):
            lines.append([f"`{scope}`", f"{values['eps']:g}", *(f"{100 * values[name]:.0f} %" for name in _COLUMNS)])
    table(["scope", "eps", *_COLUMNS.values()], lines)


_COLUMNS = {
    "sign": "sign",
    "derivative": "derivative, error",
    "jacobian_one_sided": "Jacobian, error",
    "jacobian_two_sided": "two-sided",
    "decrease_one_sided": "decrease",
    "decrease_two_sided": "two-sided, half the directions",
}

if __name__ == "__main__":
    main()
