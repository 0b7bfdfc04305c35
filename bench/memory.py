"""Predicted memory against measured: each cell of a grid of models, methods and batches runs in a process of its own.

    OPENBLAS_NUM_THREADS=1 python -m bench.memory --results bench/results/memory.jsonl
    OPENBLAS_NUM_THREADS=1 python -m bench.memory --results bench/results/memory.jsonl --only 'gemma.*bp'
    python -m bench.memory --results bench/results/memory.jsonl --report

A cell does what a run does: it loads the model, evaluates a few examples (and writes answers to them, where its name
says so), takes two steps, saves what it trained and
loads that again.
The examples are random tokens of one length. Measured are MLX's peak and the footprint: on Linux the highest RSS that
the kernel saw, on macOS phys_footprint, read every 5 ms. A cell holds if its measured footprint is within the smallest
cap that the planner would have let it run under.

Measured cells are kept in the results file, and a second call goes on where the first one ended. Predictions are made
anew whenever the table is printed (--report measures nothing).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import emit, machine, table
from mlxzo.core.child_process import worker_environment
from mlxzo.core.config import RunConfig
from mlxzo.core.meter import FootprintReader, footprint_bytes
from mlxzo.engine.prefix_sharing import MAX_NEW_TOKENS, Prompt
from mlxzo.memory.coefficients import coefficient
from mlxzo.memory.components import MemoryEstimate
from mlxzo.memory.estimate import estimate
from mlxzo.memory.plan import needed_bytes
from mlxzo.memory.sizes import Data
from mlxzo.models.resolve import shape_of

STEPS = 2
SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Cell:
    """One run of the grid: `batch_size` sequences of `tokens` tokens a step, and `evaluated` in the evaluation."""

    model: str
    method: str
    scope: str
    batch_size: int
    tokens: int
    checkpointing: str = "off"
    answer_tokens: int = 1
    micro_batch: int | None = None
    dtype: str = "auto"
    evaluated: int = 8
    written: bool = False

    @property
    def name(self) -> str:
        parts = [self.model, self.method, self.scope, f"{self.batch_size}x{self.tokens}"]
        parts += [f"answer{self.answer_tokens}"] if self.answer_tokens > 1 else []
        parts += [f"micro{self.micro_batch}"] if self.micro_batch else []
        parts += [self.dtype] if self.dtype != "auto" else []
        parts += [f"writing{self.evaluated}"] if self.written else []
        parts += ["checkpointing"] if self.checkpointing == "on" else []
        return " ".join(parts)

    @property
    def config(self) -> RunConfig:
        return RunConfig(
            model=self.model,
            method=self.method,
            scope=self.scope,
            batch_size=self.batch_size,
            checkpointing=self.checkpointing,
            micro_batch=self.micro_batch,
            dtype=self.dtype,
            steps=STEPS,
            max_tokens=max(self.tokens + (MAX_NEW_TOKENS if self.written else 8), 64),
            activation_cache="off",
        ).resolved()

    def predict(self) -> MemoryEstimate:
        data = Data.uniform(self.tokens, self.batch_size, self.evaluated, self.answer_tokens, self.written)
        return estimate(shape_of(self.model), self.config, data)


def grid() -> list[Cell]:
    """All cells, the quick ones of each model first."""
    small, gemma, quantised = "smollm2-135m", "gemma-3-270m", "smollm2-135m-4bit"
    cells = [
        Cell(model, method, scope, batch_size, tokens, checkpointing)
        for model, method, scope, checkpointing, shapes in (
            (small, "mezo", "full", "off", [(1, 64), (4, 128), (16, 64), (8, 256), (2, 512)]),
            (small, "mezo", "lora", "off", [(4, 64), (8, 128), (1, 512)]),
            (small, "mezo", "last-6", "off", [(4, 128), (16, 128)]),
            (small, "mezo", "norms/last-6", "off", [(16, 64), (4, 256)]),
            (small, "bp", "lora", "off", [(1, 64), (4, 128), (16, 32), (1, 512)]),
            (small, "bp", "lora", "on", [(4, 128), (16, 64), (2, 512), (8, 256)]),
            (small, "bp", "full", "off", [(1, 64), (4, 128)]),
            (small, "bp", "full", "on", [(1, 64), (8, 128)]),
            (small, "bp", "last-6", "off", [(4, 128)]),
            (small, "bp", "last-6", "on", [(4, 128), (16, 64)]),
            (gemma, "mezo", "full", "off", [(1, 32), (4, 128), (8, 128)]),
            (gemma, "mezo", "lora", "off", [(4, 64), (1, 512)]),
            (gemma, "mezo", "last-6", "off", [(8, 64)]),
            (gemma, "mezo", "norms/last-6", "off", [(16, 64)]),
            (gemma, "bp", "lora", "off", [(4, 64), (1, 256)]),
            (gemma, "bp", "lora", "on", [(4, 128), (8, 128)]),
            (gemma, "bp", "last-6", "off", [(4, 64)]),
            (gemma, "bp", "last-6", "on", [(4, 128)]),
            (gemma, "bp", "full", "off", [(1, 64)]),
            (gemma, "bp", "full", "on", [(4, 64)]),
            (quantised, "mezo", "scales", "off", [(1, 64), (8, 128), (1, 512)]),
            (quantised, "mezo", "lora", "off", [(4, 128), (16, 32)]),
            (quantised, "mezo", "norms/last-6", "off", [(8, 64)]),
            (quantised, "bp", "lora", "off", [(1, 64), (4, 128)]),
            (quantised, "bp", "lora", "on", [(4, 128), (8, 128), (1, 512)]),
        )
        for batch_size, tokens in shapes
    ]
    return [
        *cells,
        Cell(small, "mezo", "full", 4, 128, micro_batch=1),
        Cell(small, "bp", "lora", 4, 128, micro_batch=1),
        Cell(small, "mezo", "full", 4, 64, answer_tokens=8),
        Cell(small, "bp", "lora", 4, 64, "on", answer_tokens=8),
        Cell(small, "mezo", "full", 4, 128, dtype="bfloat16"),
        Cell(small, "bp", "lora", 4, 128, "on", dtype="bfloat16"),
        Cell(small, "mezo", "norms/last-6", 4, 200, answer_tokens=8, evaluated=32, written=True),
        Cell(small, "mezo", "norms/last-6", 4, 200, answer_tokens=8, micro_batch=1, evaluated=32, written=True),
        Cell(gemma, "mezo", "norms/last-6", 4, 200, answer_tokens=8, evaluated=32, written=True),
    ]


def measure(cell: Cell) -> dict[str, Any]:
    """Runs one cell in this process, which has done nothing else."""
    highest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            highest[0] = max(highest[0], footprint_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    figures = _run(cell)
    stop.set()
    watcher.join()
    # Linux remembers what was there between two readings. (getrusage would count the process that started this one.)
    highest.append(FootprintReader().read()[1] or 0)
    return {**figures, "footprint_bytes": max(highest), "seconds": round(time.perf_counter() - began, 1)}


def _run(cell: Cell) -> dict[str, int]:
    from mlxzo.core.mlx_startup import prepare_mlx

    prepare_mlx()
    import mlx.core as mx

    from bench.contestants import Shape, ordinary_tokens, synthetic_examples
    from mlxzo.engine.batching import SCORED_AT_ONCE, make_batch
    from mlxzo.engine.checkpoint_file import load_state, save_state
    from mlxzo.engine.evaluation import score
    from mlxzo.engine.generation import Generator
    from mlxzo.engine.methods import make_method
    from mlxzo.engine.scoring import Scorer
    from mlxzo.engine.session import compute_dtype, micro_batch_shapes, open_model
    from mlxzo.models.causal import CausalLM
    from mlxzo.models.trainable import prepare

    mx.set_cache_limit(int(coefficient("default_cache_bytes")))
    config = cell.config
    _, loaded = open_model(config, lambda event: None)
    trainable = prepare(loaded.model, config)
    causal = CausalLM(loaded.model, compute_dtype())
    scorer = Scorer(causal, trainable.frozen_layers)
    ids, shapes = ordinary_tokens(loaded, causal.vocabulary), micro_batch_shapes(config)
    examples = synthetic_examples(Shape(cell.tokens, cell.evaluated, cell.answer_tokens), ids, seed=1)
    score(scorer, examples, rows=SCORED_AT_ONCE, make=partial(make_batch, shapes=shapes))
    if cell.written:
        prompts = [Prompt(e.rows[0].tokens[: 1 - cell.answer_tokens or None], e.targets[0]) for e in examples]
        Generator(causal, loaded.tokenizer, shapes).write(prompts)
    method = make_method(scorer, trainable, config)
    for step in range(STEPS):
        shape = Shape(cell.tokens, cell.batch_size, cell.answer_tokens)
        method.step(step, make_batch(synthetic_examples(shape, ids, seed=step), shapes))
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.safetensors"
        save_state(state, {name: causal.slots[name].get() for name in trainable.names})
        load_state(state, causal.slots, trainable.names)
    return {
        "peak_bytes": mx.get_peak_memory(),
        "active_bytes": mx.get_active_memory(),
        "cache_bytes": mx.get_cache_memory(),
    }


def measure_in_child(cell: Cell) -> dict[str, Any]:
    """Measures a cell in a fresh process.

    Raises:
        RuntimeError: with the last lines that a process which failed has written.
    """
    command = [sys.executable, "-m", "bench.memory", "--cell", json.dumps(asdict(cell))]
    child = subprocess.run(command, capture_output=True, text=True, env=worker_environment())
    if child.returncode:
        raise RuntimeError(f"{cell.name} ended with {child.returncode}: " + " | ".join(child.stderr.splitlines()[-3:]))
    return json.loads(child.stdout.splitlines()[-1])


def report(measured: dict[str, dict[str, Any]], cells: list[Cell]) -> None:
    """The table of all cells measured so far, and what it comes to."""
    rows: list[list[str]] = []
    errors: dict[str, list[tuple[float, float]]] = {}
    exceeded = []
    for cell in cells:
        figures = measured.get(cell.name)
        if figures is None:
            continue
        predicted = cell.predict()
        cap = needed_bytes(predicted)
        peak, footprint = (
            (guess - figures[key]) / figures[key]
            for guess, key in ((predicted.peak_bytes, "peak_bytes"), (predicted.footprint_bytes, "footprint_bytes"))
        )
        if figures["footprint_bytes"] > cap:
            exceeded.append(cell.name)
        errors.setdefault(f"{cell.method} {cell.scope.split('/')[0]}", []).append((peak, footprint))
        emit(cell.name, **figures, predicted_peak=predicted.peak_bytes, predicted_footprint=predicted.footprint_bytes)
        rows.append(
            [
                cell.name,
                predicted.phase,
                *(f"{value / 1e6:,.1f}" for value in (predicted.peak_bytes, figures["peak_bytes"])),
                f"{peak:+.1%}",
                *(f"{value / 1e6:,.1f}" for value in (predicted.footprint_bytes, figures["footprint_bytes"])),
                f"{footprint:+.1%}",
            ]
        )
    print()
    print(json.dumps(machine()), "\n")
    header = ["cell", "phase of the peak", "peak predicted MB", "measured", "error"]
    table([*header, "footprint predicted MB", "measured", "error"], rows)
    print()
    everything = [pair for pairs in errors.values() for pair in pairs]
    summary = [
        [name, str(len(pairs)), *_median_and_worst([p for p, _ in pairs]), *_median_and_worst([f for _, f in pairs])]
        for name, pairs in [*sorted(errors.items()), ("all", everything)]
        if pairs
    ]
    table(["method", "cells", "peak: median error", "worst", "footprint: median error", "worst"], summary)
    print(f"\nCells that took more than the smallest cap they were said to fit: {', '.join(exceeded) or 'none'}")


def _median_and_worst(errors: list[float]) -> list[str]:
    sizes = [abs(error) for error in errors]
    return [f"{statistics.median(sizes):.1%}", f"{max(errors, key=abs):+.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("bench/results/memory.jsonl"), help="measured cells")
    parser.add_argument("--only", default="", metavar="REGEX", help="measure only cells whose name fits")
    parser.add_argument("--report", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(Cell(**json.loads(arguments.cell)))))
        return
    cells = grid()
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    measured = {figures.pop("cell"): figures for figures in map(json.loads, lines)}
    if not arguments.report:
        for cell in cells:
            if cell.name in measured or not re.search(arguments.only, cell.name):
                continue
            print(f"measuring {cell.name}", file=sys.stderr, flush=True)
            measured[cell.name] = measure_in_child(cell)
            with arguments.results.open("a") as file:
                file.write(json.dumps({"cell": cell.name, **measured[cell.name]}) + "\n")
    report(measured, cells)


if __name__ == "__main__":
    main()
