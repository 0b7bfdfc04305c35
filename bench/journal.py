"""What it costs that nothing is lost, and what replaying a journal takes beside training.

    python -m bench.journal
    python -m bench.journal --models smollm2-135m gemma-3-270m --scopes full lora --steps 20

A run of `--steps` steps on synthetic batches keeps its journal as `mlxzo train` does. Measured are the share of a step
that the journal takes, a snapshot of the weights (which training makes when ten minutes have passed or a snapshot's
time is 1 % of what has, whichever is later) and the saving of a best state. Then the base model is loaded anew in a
process of its own and the journal replayed on it: its time a step beside that of training, MLX's peak and the process's
beside the weights, and whether the bits are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from mlxzo.core import events
from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

import mlx.core as mx

from bench.contestants import Shape, ordinary_tokens, synthetic_examples
from bench.report import emit, machine, table
from mlxzo.core.child_process import worker_environment
from mlxzo.core.config import RunConfig
from mlxzo.core.meter import FootprintReader, footprint_bytes
from mlxzo.engine import checkpoints
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.batching import make_batch
from mlxzo.engine.checkpoint_file import save_state
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.scoring import Scorer
from mlxzo.engine.session import compute_dtype, micro_batch_shapes, open_model
from mlxzo.engine.tuned_model import TunedModel
from mlxzo.engine.tuned_source import Source
from mlxzo.models.causal import CausalLM
from mlxzo.models.loading import fingerprint, weights_fingerprint
from mlxzo.models.slots import parameter_slots
from mlxzo.models.trainable import prepare
from mlxzo.zo.journal import JournalStep, JournalWriter, read

_SAVES = 3


def train(config: RunConfig, shape: Shape, folder: Path) -> dict[str, Any]:
    """Trains with a journal in `folder`; returns seconds (medians), bytes and the fingerprint of the weights."""
    _, loaded = open_model(config, events.ignore)
    base_sha256 = weights_fingerprint(loaded.model)
    trainable = prepare(loaded.model, config)
    causal = CausalLM(loaded.model, compute_dtype())
    method = MeZO(Scorer(causal, trainable.frozen_layers, ActivationCache()), trainable, config)
    writer = TimedWriter(folder / "journal.bin", method.header(base_sha256))
    method.journal = writer
    ids = ordinary_tokens(loaded, causal.vocabulary)
    batch = make_batch(synthetic_examples(shape, ids), micro_batch_shapes(config))
    seconds = []
    # The first step fills the cache of the frozen layers and compiles: it is replayed, and not timed.
    for step in range(config.steps):
        seconds.append(timed(lambda step=step: method.step(step, batch)))
    writer.close()
    parameters = {name: causal.slots[name].get() for name in trainable.names}
    state = folder / "state.safetensors"
    save = median(timed(lambda: save_state(state, parameters, config.steps)) for _ in range(_SAVES))
    return {
        "step_seconds": median(seconds[1:]),
        "journal_seconds": sum(writer.seconds[1:]) / (config.steps - 1),
        "journal_bytes_of_1000_steps": writer.header_bytes + 1000 * (writer.bytes // config.steps),
        "save_seconds": save,
        "state_bytes": state.stat().st_size,
        "sha256": fingerprint(parameters),
    }


class TimedWriter(JournalWriter):
    """A journal that knows how long each step took to write."""

    def __init__(self, path: Path, header: Any):
        super().__init__(path, header)
        self.path, self.header_bytes, self.seconds = path, path.stat().st_size, []

    def append(self, step: JournalStep) -> None:
        self.seconds.append(timed(lambda: super(TimedWriter, self).append(step)))

    @property
    def bytes(self) -> int:
        """Of the records."""
        return self.path.stat().st_size - self.header_bytes


def timed(work: Any) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def replay_alone(path: Path) -> dict[str, Any]:
    """Replays a journal on its base model in this process, which has done nothing else."""
    journal = read(path)
    config = RunConfig.from_mapping(journal.header.config)
    _, loaded = open_model(config, events.ignore)
    tuned = TunedModel(loaded, config, Source("journal", path))
    weights = sum(slot.get().nbytes for slot in parameter_slots(loaded.model).values())
    mx.reset_peak_memory()
    before, reader = footprint_bytes(), FootprintReader()
    seconds = timed(lambda: tuned.replay(journal, events.ignore))
    now, highest = reader.read()
    return {
        "replay_seconds": seconds / len(journal),
        "weights_bytes": weights,
        "mlx_peak_bytes": mx.get_peak_memory(),
        "footprint_bytes": highest or now,
        "footprint_before_bytes": before,
        "sha256": fingerprint(tuned.parameters()),
    }


def measure(config: RunConfig, shape: Shape) -> dict[str, Any]:
    """All figures of one model and scope."""
    with tempfile.TemporaryDirectory() as folder:
        trained = train(config, shape, Path(folder))
        command = [sys.executable, "-m", "bench.journal", "--replay", str(Path(folder) / "journal.bin")]
        child = subprocess.run(command, capture_output=True, text=True, env=worker_environment())
        if child.returncode:
            raise RuntimeError(child.stderr[-2000:])
        replayed = json.loads(child.stdout.splitlines()[-1])
    between = max(checkpoints._SECONDS, trained["save_seconds"] / checkpoints._SHARE)
    return {
        **trained,
        **replayed,
        "journal_share": trained["journal_seconds"] / trained["step_seconds"],
        "snapshot_share": trained["save_seconds"] / between,
        "replay_speed": trained["step_seconds"] / replayed["replay_seconds"],
        "mlx_peak_over_weights": replayed["mlx_peak_bytes"] / replayed["weights_bytes"],
        "same_bits": trained["sha256"] == replayed["sha256"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--scopes", nargs="+", default=["full", "lora", "last-6", "norms/last-6"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay is not None:
        print(json.dumps(replay_alone(arguments.replay)))
        return
    emit("machine", **machine())
    shape, rows = Shape(arguments.length, arguments.batch_size), []
    for model in arguments.models:
        for scope in arguments.scopes:
            config = RunConfig(model=model, scope=scope, steps=arguments.steps, batch_size=shape.batch_size).resolved()
            found = measure(config, shape)
            emit("journal", model=model, scope=scope, shape=str(shape), steps=config.steps, **found)
            rows.append(
                [
                    f"{model} {scope}",
                    f"{found['step_seconds']:.2f}",
                    f"{100 * found['journal_share']:.3f} %",
                    f"{100 * found['snapshot_share']:.2f} %",
                    f"{found['save_seconds']:.2f} s, {found['state_bytes'] / 1e6:.1f} MB",
                    f"{found['journal_bytes_of_1000_steps'] / 1e3:.1f} kB",
                    f"{found['replay_speed']:.1f} x",
                    f"{found['mlx_peak_over_weights']:.3f}",
                    "yes" if found["same_bits"] else "NO",
                ]
            )
    print()
    table(
        [
            "",
            "s a step",
            "journal",
            "snapshots",
            "saving a state",
            "1,000 steps' journal",
            "replay faster by",
            "its MLX peak / weights",
            "same bits",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
