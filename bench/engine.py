"""What a MeZO step costs: beside forward passes, a textbook step, PyTorch's and backpropagation, in time and memory.

    python -m bench.engine --quick --torch
    python -m bench.engine --torch
    python -m bench.engine --models gemma-3-270m --scopes full --lengths 64 --batch-sizes 1 8 --contestants textbook

Every cell is a model and a batch of random tokens without padding. In each round all contestants take one turn after
another on the same weights and the same batch, so that a busy machine slows them all; the first round is not counted.
A ratio is taken within each round, and the median over the rounds is what counts. Peaks are MLX's own, weights
included. The contestants (bench/contestants.py, bench/reference_torch.py):

    forward            one pass over the stored weights; a step is held against two of them
    step SCOPE         one MeZO step of mlxzo; beside it the scope's own `forward` (which starts from the cached output
                       of frozen layers), its `noise` in both passes, and its `update`
    rsgn SCOPE         one step of RSGN along four directions
    textbook           one step of the algorithm as published, in MLX, over all weights
    bp lora            one Adam step of mlxzo on LoRA adapters, and once more with gradient checkpointing
    mlx-lm lora        the same with the loss and the compiled step of mlx-lm's trainer, without and with its
                       checkpointing; with one answer token its loss is another, over the whole vocabulary
    torch ...          with --torch: the reference algorithm in PyTorch over all weights, and its forward pass, with the
                       logits of all positions and of the answer's only

One row more has an answer of several tokens, for which the whole head must be read.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

import mlx.core as mx
import numpy as np

from bench.contestants import (
    LEARNING_RATE,
    RSGN_QUERIES,
    Backpropagation,
    MlxLmTrainer,
    ScopedModel,
    Shape,
    Turn,
    forward,
    ordinary_tokens,
    synthetic_examples,
    textbook_step,
    whole_batch,
)
from bench.reference_torch import EPS, Reference
from bench.report import emit, machine, table
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.device import computes_as_cpu
from mlxzo.core.errors import ConfigError, MlxzoError
from mlxzo.core.formatting import describe, format_seconds
from mlxzo.core.meter import system_memory
from mlxzo.engine.batching import make_batch
from mlxzo.engine.scoring import Scorer
from mlxzo.engine.session import compute_dtype, micro_batch_shapes, open_model
from mlxzo.models.causal import CausalLM

# Threads that wait for work spin for a while: the next contestant starts when they have gone to sleep.
PAUSE_SECONDS = 0.1
TRAINERS = {"bp": Backpropagation, "mlx-lm": MlxLmTrainer}
# Of full logits in float32 there are about so many copies at one time: logits, log-likelihoods, gradients.
LOGIT_COPIES = 3


def threads() -> int:
    """How many threads matrix products use; OpenBLAS reads the same variables."""
    chosen = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return int(chosen or os.cpu_count() or 1)


def run_config(model: str, scope: str) -> RunConfig:
    return RunConfig(
        model=model, scope=scope, update="sgd", lr=LEARNING_RATE, eps=EPS, schedule="constant", dtype="float32"
    ).resolved()


@dataclass
class Measured:
    """What a contestant's turns took, a value a round; no bytes for a contestant outside MLX."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    resting_change_bytes: list[int] = field(default_factory=list)
    loss: float | None = None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Cell:
    """The contestants of one model and batch, by name."""

    model: str
    shape: Shape
    measured: dict[str, Measured]

    def time_ratio(self, one: str, other: str, times: int = 1) -> list[float]:
        """Seconds of `one` over `times` the seconds of `other`, a value a round."""
        pairs = zip(self.measured[one].seconds, self.measured[other].seconds, strict=True)
        return [a / (times * b) for a, b in pairs]

    def peak_ratio(self, one: str, other: str) -> list[float]:
        """The peak of `one` over that of `other`, a value a round."""
        pairs = zip(self.measured[one].peak_bytes, self.measured[other].peak_bytes, strict=True)
        return [a / b for a, b in pairs]

    def scopes(self) -> list[str]:
        return [name.removeprefix("step ") for name in self.measured if name.startswith("step ")]

    def own_forward(self, scope: str) -> str:
        name = f"forward {scope}"
        return name if name in self.measured else "forward"


class OpenModel:
    """A model in memory with everything that can take a turn on it.

    Args:
        scopes: those that take MeZO steps; what a model cannot do is printed as `skipped`.
        contestants: further ones: `textbook`, `bp`.
        reference: run the reference algorithm in PyTorch too.
    """

    def __init__(self, name: str, scopes: list[str], contestants: list[str], reference: bool):
        self.name = name
        self._stack = ExitStack()
        self.resolved, loaded = open_model(run_config(name, "full"), _say_progress)
        self.loaded = loaded
        self.plain = CausalLM(loaded.model, compute_dtype())
        self.scorer = Scorer(self.plain)
        self.ids = ordinary_tokens(loaded, self.plain.vocabulary)
        self.scoped: dict[str, ScopedModel] = {}
        adapters: dict[str, ScopedModel] = {}
        for scope in scopes:
            if model := self._scoped(scope):
                self.scoped[scope] = model
        quantised = any("scales" in module for _, module in loaded.model.named_modules())
        self.textbook = "textbook" in contestants
        if self.textbook and quantised:
            self.textbook = self._skip("textbook", "it moves every weight, and these are quantised")
        if "bp" in contestants:
            adapters = {scope: model for scope, model in self.scoped.items() if scope.startswith("lora")}
            if not adapters and (model := self._scoped("lora")):
                adapters = {"lora": model}
        slow = "bp" in contestants and quantised and computes_as_cpu()
        if slow:
            self._skip("mlx-lm", "quantised products on the CPU are too slow in mlx-lm's own layers")
        self.backpropagation = {
            f"{trainer} {scope}{', checkpointing' if checkpointing else ''}": make(model, checkpointing)
            for scope, model in adapters.items()
            for checkpointing in (False, True)
            for trainer, make in ({"bp": Backpropagation} if slow else TRAINERS).items()
        }
        self.reference: Reference | None = None
        if reference and quantised:
            self._skip("torch", "the reference knows no quantised weights")
        elif reference:
            self.reference = self._stack.enter_context(Reference(loaded.path, threads()))
            self._check_reference()

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turns(self, shape: Shape) -> dict[str, Turn]:
        """The contestants for one batch, in the order in which they take turns."""
        examples = synthetic_examples(shape, self.ids)
        config = run_config(self.name, "full")
        batch = make_batch(examples, micro_batch_shapes(config))
        turns: dict[str, Turn] = {"forward": lambda step: forward(self.scorer, batch)}
        for scope, model in self.scoped.items():
            for part, turn in model.turns(examples).items():
                # Where all weights train and nothing is added, the scope's own forward pass is the plain one.
                if part != "forward" or scope != "full":
                    turns[f"{part} {scope}"] = turn
        whole = whole_batch(examples)
        logits = LOGIT_COPIES * 4 * shape.tokens * self.plain.vocabulary
        room = system_memory()[1]
        too_large = f"full logits take about {logits / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free"
        if self.textbook and (logits <= room or self._skip("textbook", too_large, shape)):
            turns["textbook"] = lambda step: textbook_step(self.plain, whole, EPS, step)
        for name, trainer in self.backpropagation.items():
            if name.startswith("bp ") or logits <= room or self._skip(name, too_large, shape):
                turns[name] = trainer.turn(examples)
        if self.reference and (logits <= room or self._skip("torch", too_large, shape)):
            ask = self.reference.ask
            arrays = ("tokens", "positions", "entry_position", "entry_target", "candidate", "target")
            attention = ask("use", **{name: getattr(whole, name).tolist() for name in arrays})
            emit("torch attention", model=self.name, **_shape_fields(shape), faster=attention)
            turns |= {
                "torch forward": lambda step: ask("forward"),
                "torch forward, answers": lambda step: ask("forward_answers"),
                "torch step": lambda step: ask("step", seed=step),
            }
        return turns

    def _scoped(self, scope: str) -> ScopedModel | None:
        try:
            return ScopedModel(self.loaded, run_config(self.name, scope))
        except ConfigError as error:
            self._skip(f"step {scope}", error.message)
            return None

    def _skip(self, contestant: str, reason: str, shape: Shape | None = None) -> bool:
        emit("skipped", model=self.name, contestant=contestant, reason=reason, **_shape_fields(shape))
        return False

    def _check_reference(self) -> None:
        """Prints how far PyTorch's logits are from ours, on the same weights and tokens."""
        tokens = np.random.default_rng(0).choice(self.ids, (1, 16))
        logits = np.array(self.plain.logits(mx.array(tokens), self.plain.view()).astype(mx.float32))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "logits.npy"
            np.save(path, logits)
            difference = self.reference.ask("largest_difference", tokens=tokens.tolist(), logits=str(path))
        emit("torch logits", model=self.name, largest_relative_difference=difference, **self.reference.versions)
        if difference > 1e-3:
            raise RuntimeError(f"PyTorch computes another model: logits differ by {difference:.1e} of the largest")


def measure(name: str, turn: Turn, step: int, measured: Measured) -> None:
    """One turn, its figures added to `measured`."""
    mx.clear_cache()
    time.sleep(PAUSE_SECONDS)
    resting = mx.get_active_memory()
    mx.reset_peak_memory()
    started = time.perf_counter()
    measured.loss = turn(step)
    mx.synchronize()
    measured.seconds.append(time.perf_counter() - started)
    if not name.startswith("torch"):
        measured.peak_bytes.append(mx.get_peak_memory())
        measured.resting_change_bytes.append(mx.get_active_memory() - resting)


def run_model(arguments: argparse.Namespace, name: str, shapes: list[Shape], eta: Eta) -> list[Cell]:
    """All cells of a model, their figures printed as they come; the model is gone afterwards."""
    cells = []
    with OpenModel(name, arguments.scopes, arguments.contestants, arguments.torch) as model:
        for shape in shapes:
            cells.append(run_cell(model, shape, arguments.rounds, eta))
            for figure, values in figures(cells[-1]):
                emit(figure, **values)
    return cells


def run_cell(model: OpenModel, shape: Shape, rounds: int, eta: Eta) -> Cell:
    turns = model.turns(shape)
    warm_up = {name: Measured() for name in turns}
    measured = {name: Measured() for name in turns}
    for step in range(rounds + 1):
        for name, turn in turns.items():
            measure(name, turn, step, measured[name] if step else warm_up[name])
        eta.add(shape.tokens, f"{model.name}, {shape}: round {step} of {rounds}")
    return Cell(model.name, shape, measured)


def figures(cell: Cell) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything that is told of a cell, as the kind of figure and its values."""
    where = {"model": cell.model, **_shape_fields(cell.shape)}
    for name, measured in cell.measured.items():
        yield (
            "contestant",
            {
                **where,
                "contestant": name,
                "seconds": measured.seconds,
                "median_seconds": measured.median_seconds,
                "peak_bytes": max(measured.peak_bytes, default=None),
                "resting_change_bytes": max(measured.resting_change_bytes, key=abs, default=None),
                "loss": measured.loss,
            },
        )
    for quantity, one, other, times, values in ratios(cell):
        yield (
            "ratio",
            {
                **where,
                "quantity": quantity,
                "of": one,
                "to": other,
                "times": times,
                "median": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
            },
        )
    for scope in cell.scopes():
        yield "shares", {**where, "scope": scope, **shares(cell, scope)}


def ratios(cell: Cell) -> Iterator[tuple[str, str, str, int, list[float]]]:
    """The comparisons of a cell: quantity, `one`, `other`, how many of the other, and a ratio a round."""
    names = cell.measured
    for scope in cell.scopes():
        step = f"step {scope}"
        for other in dict.fromkeys(("forward", cell.own_forward(scope))):
            yield "time", step, other, 2, cell.time_ratio(step, other, 2)
        yield "peak", step, "forward", 1, cell.peak_ratio(step, "forward")
        rsgn, own = f"rsgn {scope}", cell.own_forward(scope)
        # The pass at w, the directions', a trial, and from the second step on the judge's.
        passes = RSGN_QUERIES + 3
        yield "time", rsgn, own, passes, cell.time_ratio(rsgn, own, passes)
        yield "peak", rsgn, "forward", 1, cell.peak_ratio(rsgn, "forward")
        if scope != "full" and "step full" in names:
            yield "time", step, "step full", 1, cell.time_ratio(step, "step full")
    pairs = [(other, "step full") for other in ("textbook", "torch step")]
    pairs += [(f"torch {kind}", "forward") for kind in ("forward", "forward, answers")]
    for bp in (name for name in names if name.startswith("bp ")):
        pairs += [(bp, f"step {bp.removeprefix('bp ').removesuffix(', checkpointing')}"), (bp, "step full")]
        pairs.append((bp, bp.replace("bp", "mlx-lm", 1)))
    for one, other in pairs:
        if one in names and other in names:
            yield "time", one, other, 1, cell.time_ratio(one, other)
            if names[one].peak_bytes:
                yield "peak", one, other, 1, cell.peak_ratio(one, other)


def shares(cell: Cell, scope: str) -> dict[str, float]:
    """Parts of a step, each measured alone in the same round, as shares of its time. What is left is adding the noise
    to the weights, and whatever the parts gain from running together (then it is below zero)."""
    step = f"step {scope}"
    parts = {
        "forward": cell.time_ratio(cell.own_forward(scope), step),
        "noise": cell.time_ratio(f"noise {scope}", step),
        "update": cell.time_ratio(f"update {scope}", step),
    }
    parts["forward"] = [2 * value for value in parts["forward"]]
    medians = {name: statistics.median(values) for name, values in parts.items()}
    return {**medians, "rest": 1.0 - sum(medians.values())}


def tables(cells: list[Cell]) -> None:
    """The figures for people."""

    def ratio(values: list[float], unit: str = "") -> str:
        return f"{statistics.median(values):.2f}{unit}"

    rows = []
    for cell in cells:
        for name, m in cell.measured.items():
            if name.startswith(("noise", "update")):
                continue
            memory = ["", "", ""]
            if m.peak_bytes:
                change = max(m.resting_change_bytes, key=abs)
                memory = [f"{max(m.peak_bytes) / 1e6:.0f} MB", ratio(cell.peak_ratio(name, "forward")), f"{change} B"]
            against = ratio(cell.time_ratio(name, "forward", 2))
            rows.append([cell.model, str(cell.shape), name, f"{m.median_seconds:.3f} s", against, *memory])
    print("\nMedians; ratios are taken within a round. Batches are sequences x tokens.\n")
    header = ["time", "over two forward passes", "peak", "over forward peak", "resting memory changes by"]
    table(["model", "batch", "contestant", *header], rows)

    rows = [
        [cell.model, str(cell.shape), scope, *(f"{100 * share:.0f} %" for share in shares(cell, scope).values())]
        for cell in cells
        for scope in cell.scopes()
    ]
    if rows:
        print("\nWhere the time of a step goes\n")
        table(["model", "batch", "scope", "two forward passes", "noise in them", "update", "rest"], rows)

    rows = []
    for cell in cells:
        if "step full" not in cell.measured or not {"textbook", "torch step"} & set(cell.measured):
            continue
        row = [cell.model, str(cell.shape), f"{cell.measured['step full'].median_seconds:.3f} s"]
        for other in ("textbook", "torch step"):
            row.append(ratio(cell.time_ratio(other, "step full"), "x") if other in cell.measured else "")
        for name in ("forward", "torch forward", "torch forward, answers"):
            row.append(f"{cell.measured[name].median_seconds:.3f} s" if name in cell.measured else "")
        rows.append(row)
    if rows:
        print("\nThe full-scope step beside the published algorithm\n")
        speeds = ["faster than textbook in MLX", "faster than PyTorch"]
        forwards = ["MLX forward", "PyTorch forward", "PyTorch forward, answers only"]
        table(["model", "batch", "mlxzo step", *speeds, *forwards], rows)


def backpropagation_table(cells: list[Cell]) -> None:
    """mlxzo's backpropagation beside that of mlx-lm."""
    rows = []
    for cell in cells:
        for bp in (name for name in cell.measured if name.startswith("bp ")):
            theirs = bp.replace("bp", "mlx-lm", 1)
            if theirs in cell.measured:
                time, peak = (statistics.median(ratio(bp, theirs)) for ratio in (cell.time_ratio, cell.peak_ratio))
                rows.append([cell.model, str(cell.shape), bp, f"{time:.2f}", f"{peak:.2f}"])
    if rows:
        print("\nBackpropagation beside mlx-lm's trainer\n")
        table(["model", "batch", "contestant", "time over mlx-lm's", "peak over mlx-lm's"], rows)


class Eta:
    """Tells on stderr what is done and about how long the rest takes."""

    def __init__(self, shapes: list[Shape], models: int, rounds: int):
        self.total = models * (rounds + 1) * sum(self._work(shape.tokens) for shape in shapes)
        self.done = 0
        self.started = time.perf_counter()

    def add(self, tokens: int, what: str) -> None:
        self.done += self._work(tokens)
        left = (time.perf_counter() - self.started) * (self.total - self.done) / self.done
        print(f"{what}; about {format_seconds(left)} left", file=sys.stderr, flush=True)

    @staticmethod
    def _work(tokens: int) -> int:
        # A step's passes over the weights take about as long as a few hundred tokens.
        return tokens + 300


def _say_progress(event: events.Event) -> None:
    if isinstance(event, events.Phase):
        print(f"{event.phase} {event.detail}", file=sys.stderr, flush=True)


def _shape_fields(shape: Shape | None) -> dict[str, int]:
    if shape is None:
        return {}
    return {"length": shape.length, "batch_size": shape.batch_size, "answer_tokens": shape.answer_tokens}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_models = ["smollm2-135m", "gemma-3-270m", "smollm2-135m-4bit"]
    parser.add_argument("--models", nargs="+", default=default_models, help="as `mlxzo train --model`")
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128], help="tokens of a sequence")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 16], help="sequences of a batch")
    parser.add_argument("--scopes", nargs="+", default=["full", "lora", "last-6", "scales"], help="what trains")
    parser.add_argument(
        "--contestants", nargs="*", choices=["textbook", "bp"], default=["textbook", "bp"], help="others in MLX"
    )
    parser.add_argument("--torch", action="store_true", help="and the reference algorithm in PyTorch")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each, after one untimed")
    parser.add_argument(
        "--answer-tokens", type=int, default=4, help="answer of the row that reads the whole head; 1: no such row"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only smollm2-135m at 16x64, scopes full and last-6, 3 rounds"
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.models, arguments.scopes = ["smollm2-135m"], ["full", "last-6"]
        arguments.lengths, arguments.batch_sizes = [64], [16]
        arguments.rounds, arguments.answer_tokens = 3, 1
    if arguments.rounds < 1 or min(arguments.batch_sizes) < 1:
        parser.error("--rounds and --batch-sizes start at 1")
    if min(arguments.lengths) < max(2, arguments.answer_tokens):
        parser.error("--lengths must be at least 2 and hold the answer's tokens")
    if arguments.torch and importlib.util.find_spec("torch") is None:
        parser.error("--torch needs PyTorch, which is not installed: pip install '.[torch]'")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    shapes = [Shape(*pair) for pair in itertools.product(arguments.lengths, arguments.batch_sizes)]
    if arguments.answer_tokens > 1:
        middle = shapes[len(shapes) // 2]
        shapes.append(Shape(middle.length, middle.batch_size, arguments.answer_tokens))
    emit("machine", **machine(), threads=threads(), device=str(mx.default_device()))
    eta = Eta(shapes, len(arguments.models), arguments.rounds)
    cells = []
    try:
        for name in arguments.models:
            cells += run_model(arguments, name, shapes, eta)
            # A compiled step and its closures refer to each other.
            gc.collect()
    except MlxzoError as error:
        print(describe(error), file=sys.stderr)
        return error.exit_code
    tables(cells)
    backpropagation_table(cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
