"""A full-scope MeZO step of mlxzo beside the textbook one, on the same weights and the same batches.

    python -m bench.textbook
    python -m bench.textbook --model smollm2-135m --batch-size 16 --rounds 5

The textbook step is Algorithm 1 of MeZO (arXiv 2305.17333) as its reference implementation does it, in MLX: Gaussian
directions remade from a seed, the weights perturbed in place (+eps, -2 eps, +eps back), a fourth pass for the update,
and full logits for every position. Both take the same prompts of the embedded task, score the same label words, and
take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time

from mlxzo.blas import load_fast_blas

load_fast_blas()

import mlx.core as mx
import numpy as np

from bench.report import emit, machine, table
from mlxzo.batching import Batch, batch_indices, collate
from mlxzo.config import RunConfig
from mlxzo.methods.mezo import MeZO
from mlxzo.models.causal import CausalLM
from mlxzo.session import open_session


def textbook_step(causal: CausalLM, batch: Batch, seed: int, eps: float, lr: float) -> float:
    """One in-place MeZO step over all weights; returns the mean loss of the two sides."""

    def add_noise(scale: float) -> None:
        keys = mx.random.split(mx.random.key(seed), len(causal.slots))
        for slot, key in zip(causal.slots.values(), keys, strict=True):
            weight = slot.get()
            slot.set(weight + scale * mx.random.normal(weight.shape, weight.dtype, key=key))
            del weight
            mx.eval(slot.get())

    def loss() -> float:
        logits = causal.model(mx.array(batch.tokens)).astype(mx.float32)
        logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        rows = logp.reshape(-1, logp.shape[-1])[mx.array(batch.positions)]
        scores = rows[mx.array(batch.entry_position), mx.array(batch.entry_target)].mean(-1)[mx.array(batch.candidate)]
        chosen = mx.take_along_axis(scores, mx.array(batch.target)[:, None], axis=1)[:, 0]
        return (mx.logsumexp(scores, axis=1) - chosen).mean().item()

    add_noise(eps)
    plus = loss()
    add_noise(-2 * eps)
    minus = loss()
    add_noise(eps)
    add_noise(-lr * (plus - minus) / (2 * eps))
    return (plus + minus) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each, after one untimed")
    arguments = parser.parse_args()
    # Rates so small that both stay at the same weights: what is timed is the step, not what it learns.
    config = RunConfig(
        model=arguments.model, scope="full", batch_size=arguments.batch_size, update="sgd", lr=1e-9, dtype="float32"
    ).resolved()
    session = open_session(config, lambda event: None)
    method = MeZO(session.causal, session.trainable, session.prefix, config)
    examples = session.splits["train"]

    seconds: dict[str, list[float]] = {"mlxzo": [], "textbook": [], "two forward passes": []}
    losses: dict[str, list[float]] = {"mlxzo": [], "textbook": []}
    peaks: dict[str, int] = {}
    tokens = []
    for step in range(arguments.rounds + 1):
        batch = collate([examples[i] for i in batch_indices(len(examples), config.batch_size, 0, step)])
        tokens.append(batch.tokens.size)

        def forward(batch: Batch = batch) -> None:
            for _ in range(2):
                mx.eval(session.causal.hidden(mx.array(batch.tokens), session.causal.view()))

        contestants = {
            "two forward passes": forward,
            "mlxzo": lambda step=step, batch=batch: method.step(step, batch).loss,
            "textbook": lambda step=step, batch=batch: textbook_step(
                session.causal, batch, step, config.eps, config.lr
            ),
        }
        for name, run in contestants.items():
            mx.clear_cache()
            mx.reset_peak_memory()
            started = time.perf_counter()
            loss = run()
            elapsed = time.perf_counter() - started
            peaks[name] = max(peaks.get(name, 0), mx.get_peak_memory())
            if step:
                seconds[name].append(elapsed)
                if loss is not None:
                    losses[name].append(loss)

    emit("machine", **machine())
    rows = []
    baseline = statistics.median(seconds["textbook"])
    for name, values in seconds.items():
        median = statistics.median(values)
        ratios = [t / s for t, s in zip(seconds["textbook"], values, strict=True)]
        emit(
            "step",
            contestant=name,
            model=arguments.model,
            batch_size=arguments.batch_size,
            median_padded_tokens=statistics.median(tokens),
            seconds=values,
            median_seconds=median,
            median_ratio_to_textbook=statistics.median(ratios),
            peak_bytes=peaks[name],
        )
        rows.append([name, f"{median:.2f} s", f"{statistics.median(ratios):.1f}x", f"{peaks[name] / 1e6:.0f} MB"])
    emit("largest loss difference", value=float(np.abs(np.subtract(losses["mlxzo"], losses["textbook"])).max()))
    print(
        f"\nFull scope, batch {arguments.batch_size}, medians of {arguments.rounds} rounds; textbook {baseline:.2f} s"
    )
    table(["step", "time", "speed against textbook", "peak"], rows)


if __name__ == "__main__":
    main()
