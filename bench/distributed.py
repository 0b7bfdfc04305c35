"""Runs over several processes: speed, bytes and the same weights; on a slow network; and what to expect of Macs.

    python -m bench.distributed                       # a tiny model on the embedded task
    python -m bench.distributed --model smollm2-135m --steps 20

Every rank is a process of one thread on this machine. A slow network is a relay before each rank (see
bench/slow_link.py), which needs no rights and no particular system. The model of a step's time,

    own + work / ranks + (ranks - 1) * (delay + bytes / bandwidth),

has two figures that are measured in one process (`own` is what every rank does itself, noise and update; `work` is
what they share out, forward passes), and one, `hop`, that is what an exchange takes on this machine without a relay's
delay. Ranks beyond the machine's cores take turns on them. MeZO's one exchange a step, an all-gather, goes round the
ring once; backpropagation's sum of gradients goes round twice, a part at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import emit, machine, table
from bench.slow_link import Link, relays
from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory
from mlxzo.runtime.hosts import LOCALHOST, Host, Hosts
from tests.tiny import tiny_folder

# What a network does to a byte, one way. These are ours to assume: no Mac was at hand.
NETWORKS = {
    "Wi-Fi": Link(5e-3, 20e6),
    "gigabit": Link(0.3e-3, 117e6),
    "Thunderbolt": Link(0.1e-3, 2.5e9),
}
_RUN = ["--task", "reviews", "--train-examples", "64", "--validation-examples", "2", "--test-examples", "2"]
_RUN += ["--activation-cache", "off", "--scope", "norms", "--eval-every", "100000"]
# First steps compile and settle shares.
_WARM_STEPS = 5


@dataclass(frozen=True)
class StepTime:
    """A model of the seconds of a step.

    Attributes:
        own_seconds: what every rank does for itself. work_seconds: what the ranks share out.
        examples: of a batch.
        cores: of the machine, where all ranks are on one; None: each has its own.
        hop_seconds: what passing something on takes beside the network's delay.
    """

    own_seconds: float
    work_seconds: float
    examples: int
    cores: int | None = None
    hop_seconds: float = 0.0

    def mezo(self, ranks: int, link: Link) -> float:
        """With one all-gather of the examples' losses."""
        share = -(-self.examples // ranks)
        return self._compute(ranks) + (ranks - 1) * self._hop(4 + 16 * share, link)

    def backpropagation(self, ranks: int, link: Link, gradient_bytes: int) -> float:
        """With a sum of gradients as well, of which each rank adds up a part on the way round the ring."""
        return self.mezo(ranks, link) + 2 * (ranks - 1) * self._hop(gradient_bytes / ranks, link)

    def _compute(self, ranks: int) -> float:
        turns = 1.0 if self.cores is None else max(1.0, ranks / self.cores)
        return turns * (self.own_seconds + self.work_seconds * -(-self.examples // ranks) / self.examples)

    def _hop(self, count: float, link: Link) -> float:
        return self.hop_seconds + link.delay_seconds + (count / link.bandwidth if link.bandwidth else 0.0)


def train(options: Sequence[str], ranks: int = 1, link: Link | None = None) -> dict[str, Any]:
    """The result of one run, with `step_seconds` and `step_bytes`, which rank 0 sends, on average.

    Not the median: ranks wait for each other in turns, and every other step may be a short one.

    Args:
        link: between the ranks; None: this machine's own.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        addresses = Hosts((Host(LOCALHOST, LOCALHOST),) * ranks).addresses(None)
        seen = addresses if link is None else stack.enter_context(relays(addresses, link))
        processes = [_start(options, rank, Path(folder), addresses, seen) for rank in range(ranks)]
        try:
            shown, _ = processes[0].communicate()
            codes = [process.wait() for process in processes]
            if any(codes):
                sys.exit("a rank failed; what it said stands above")
        finally:
            for process in processes:
                process.kill()
        result = json.loads(shown)
        steps = [event for event, _ in RunDirectory.open(result["run"]).events() if isinstance(event, events.Step)]
        return {
            **result,
            "step_seconds": statistics.fmean(step.seconds for step in steps[_WARM_STEPS:]),
            "step_bytes": statistics.fmean(step.bytes_sent for step in steps),
        }


def _start(
    options: Sequence[str], rank: int, folder: Path, addresses: Sequence[str], seen: Sequence[str]
) -> subprocess.Popen[str]:
    """One rank, which listens at its own address and sees the others' as `seen`."""
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    if len(addresses) > 1:
        hosts = folder / f"hosts{rank}.json"
        hosts.write_text(json.dumps([[addresses[r] if r == rank else seen[r]] for r in range(len(addresses))]))
        environment |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
    command = [sys.executable, "-m", "mlxzo", "train", *_RUN, *options, "--out", str(folder), "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=None, text=True)


def calibrated(options: Sequence[str], batch_size: int) -> tuple[StepTime, dict[str, Any]]:
    """The model of a step's time from runs in one process of the batch and of its half, and from two ranks without a
    delay; and the result of the first."""
    whole, half = (train([*options, "--batch-size", str(size)]) for size in (batch_size, batch_size // 2))
    work = min(2 * (whole["step_seconds"] - half["step_seconds"]), whole["step_seconds"])
    found = StepTime(whole["step_seconds"] - work, work, batch_size, os.cpu_count())
    two = train([*options, "--batch-size", str(batch_size)], 2, Link(0.0))
    hop = max(0.0, two["step_seconds"] - found.mezo(2, Link(0.0)))
    return dataclasses.replace(found, hop_seconds=hop), whole


def measure(options: Sequence[str], arguments: argparse.Namespace) -> StepTime:
    """Prints what runs of several ranks take beside what the model says, and what they send."""
    given = [*options, "--batch-size", str(arguments.batch_size)]
    model, alone = calibrated(options, arguments.batch_size)
    emit("step time", model=arguments.model, **dataclasses.asdict(model))
    rows = []
    for ranks in arguments.ranks:
        for delay in arguments.delays:
            link = Link(delay, arguments.bandwidth)
            result = train(given, ranks, link)
            predicted = model.mezo(ranks, link)
            figures = {
                "ranks": ranks,
                "delay_seconds": delay,
                "bandwidth": arguments.bandwidth,
                "step_seconds": result["step_seconds"],
                "predicted_seconds": predicted,
                "bytes_an_example_a_step": result["step_bytes"] / arguments.batch_size,
                "same_weights": result["final_sha256"] == alone["final_sha256"],
            }
            emit("ranks", model=arguments.model, **figures)
            rows.append(
                [
                    str(ranks),
                    f"{1e3 * delay:.0f}",
                    f"{1e3 * result['step_seconds']:.0f}",
                    f"{1e3 * predicted:.0f}",
                    f"{100 * (predicted / result['step_seconds'] - 1):+.0f}",
                    f"{figures['bytes_an_example_a_step']:.1f}",
                    "yes" if figures["same_weights"] else "NO",
                ]
            )
    print(f"\n{arguments.model}, one process: {1e3 * alone['step_seconds']:.0f} ms a step\n")
    head = ["ranks", "delay, ms", "a step, ms", "predicted, ms", "off by, %", "bytes an example, each rank"]
    table([*head, "the weights of one process"], rows)
    for scope in ("lora", "full"):
        sent = train([*given, "--method", "bp", "--scope", scope, "--optimizer", "adam", "--steps", "10"], 2)
        each = sent["step_bytes"] / arguments.batch_size
        emit("backpropagation", model=arguments.model, scope=scope, ranks=2, bytes_an_example_a_step=each)
        print(f"backpropagation, {scope}, 2 ranks: {each:,.0f} bytes an example a step, each rank")
    return model


def expect(model: StepTime, faster: float, gradient_bytes: int) -> None:
    """A table of the speed-up that several Macs are to give.

    Args:
        faster: how many times as fast as this machine each of them computes.
    """
    each = StepTime(model.own_seconds / faster, model.work_seconds / faster, model.examples)
    alone = each.mezo(1, Link(0.0))
    rows = []
    for name, link in NETWORKS.items():
        for ranks in (2, 4, 8, 16):
            mezo, bp = each.mezo(ranks, link), each.backpropagation(ranks, link, gradient_bytes)
            rows.append([name, str(ranks), f"{1e3 * mezo:.1f}", f"{alone / mezo:.1f}", f"{1e3 * (bp - mezo):.1f}"])
            emit("expected", network=name, ranks=ranks, mezo_seconds=mezo, speed_up=alone / mezo, gradients=bp - mezo)
    print(
        f"\nExpected of Macs that each compute {faster:g} times as fast as this machine: {1e3 * alone:.0f} ms a step "
        f"alone, batches of {model.examples}; gradients of {gradient_bytes / 1e6:.0f} MB\n"
    )
    table(["network", "Macs", "a MeZO step, ms", "times as fast", "a sum of BP's gradients would add, ms"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a model's name, or tiny: a random one of 2 layers")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.025, 0.1], help="seconds, one way")
    parser.add_argument("--bandwidth", type=float, help="bytes a second between ranks (default: as fast as they come)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16, help="examples of all ranks together")
    parser.add_argument("--faster", type=float, default=10.0, help="how much faster than this machine a Mac computes")
    parser.add_argument("--gradient-megabytes", type=float, default=538.0, help="of backpropagation in the last table")
    arguments = parser.parse_args()
    emit("machine", **machine())
    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_folder(Path(folder) / "tiny")) if arguments.model == "tiny" else arguments.model
        # Micro-batches that four ranks can share: they, and so the weights, are the same for any number of ranks.
        options = ["--model", model, "--steps", str(arguments.steps), "--micro-batch", str(arguments.batch_size // 4)]
        found = measure(options, arguments)
    expect(found, arguments.faster, int(1e6 * arguments.gradient_megabytes))


if __name__ == "__main__":
    main()
