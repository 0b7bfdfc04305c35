"""The ranks of a run that is spread over several processes, as the rest of the code sees them. Imports no MLX.

Work comes in pieces that do not depend on how many ranks there are, and each piece is computed by one of them. So
the results, which everybody gets and puts together in one order, are those of a run in one process, to the bit.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...core import events
from ...core.config import RunConfig
from ...core.errors import ConfigError
from ...core.options import parse_shares

if TYPE_CHECKING:
    import mlx.core as mx


class Request(enum.IntFlag):
    """What a run is asked to do while it runs."""

    NOTHING = 0
    STOP = 1
    PAUSE = 2
    END = 4
    """The time that it may take is over."""
    EVALUATE = 8
    SHRINK = 16

    ONCE = EVALUATE | SHRINK
    """Those that are done with once they were followed; the others hold for as long as they are wished."""


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        cost: how long it takes, in any unit.
        shape: of its result.
    """

    cost: float
    shape: tuple[int, ...]


Compute = Callable[[Sequence[int]], Sequence[np.ndarray]]
"""Results, float64, of the pieces of these numbers."""


class Communicator:
    """A team of one: whoever is alone shares nothing, and is asked to do what it is told itself.

    Attributes:
        rank: which of the ranks this process is; rank 0 keeps the run.
        size: how many there are.
        bytes_sent: what this rank has handed on to others so far.
        in_step: what the team is asked to do is the same for all ranks, between two exchanges.
        wishes: gives what this process is asked to do; each of `Request.ONCE` once.
    """

    rank = 0
    size = 1
    bytes_sent = 0
    in_step = False

    def __init__(self) -> None:
        self.wishes: Callable[[], Request] = lambda: Request.NOTHING
        self._wished = Request.NOTHING

    def listen(self) -> None:
        """Hears what this process is asked to do, where that does not wait for the others."""
        self._hear(self.wishes())

    def wants(self, wish: Request) -> bool:
        """Whether the team is asked for this."""
        return bool(self._wished & wish)

    def takes(self, wish: Request) -> bool:
        """The same for one of `Request.ONCE`, which is done with thereby."""
        found = self.wants(wish)
        self._wished &= ~wish
        return found

    def _hear(self, said: Request) -> None:
        self._wished = (self._wished & Request.ONCE) | said

    def together(self, pieces: Sequence[Piece], compute: Compute, *, steady: bool = False) -> list[np.ndarray]:
        """Results of all pieces, in their order, each computed by one rank.

        Args:
            steady: who computes what depends on nothing that is measured.
        """
        return list(compute(range(len(pieces))))

    def sum(self, arrays: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
        """Sums over the ranks, by name; the same bits on all of them."""
        return arrays

    def same(self, what: str, value: str) -> None:
        """Compares a value with that of the other ranks.

        Raises:
            RanksDisagree: they have another.
        """

    def beat(self) -> None:
        """Hears what the team is asked to do. After the first, all ranks hear the same, and only at exchanges."""

    def news(self) -> events.RankStats | None:
        """How the ranks get on, now and then."""
        return None


def assign(costs: Sequence[float], speeds: Sequence[float]) -> list[int]:
    """The rank of each piece of work: the longest first, each to whoever would be done with it first.

    Args:
        costs: of the pieces.
        speeds: of the ranks, in cost a time.
    """
    owners, ends = [0] * len(costs), [0.0] * len(speeds)
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(len(speeds)), key=lambda r: (ends[r] + costs[piece] / speeds[r], r))
        ends[rank] += costs[piece] / speeds[rank]
        owners[piece] = rank
    return owners


def rank_of_environment(environment: Mapping[str, str] = os.environ) -> int | None:
    """The rank that `mlx.launch`, or a start by hand, gave this process; None where it runs alone.

    Raises:
        ConfigError: what it gave is no number.
    """
    ring = environment.get("MLX_HOSTFILE")
    # Of a single host, mlx.launch writes an empty file.
    if ring and Path(ring).is_file() and not Path(ring).read_text().strip():
        return None
    name = next((name for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK") if name in environment), None)
    if name is None or (
        name == "MLX_RANK" and not (ring or {"MLX_IBV_DEVICES", "MLX_WORLD_SIZE"} & environment.keys())
    ):
        return None
    if not environment[name].isdecimal():
        raise ConfigError(f"{name} is no rank: {environment[name]!r}", "unset it, or start ranks with mlx.launch")
    return int(environment[name])


def shares_points(config: RunConfig) -> bool:
    """Whether ranks share the perturbed copies of the weights, and not the micro-batches: answers that the model
    writes are written in the company of the whole batch."""
    return config.parallel == "directions" or config.writes


def check_spread(config: RunConfig, size: int) -> None:
    """Raises ConfigError where a step of this configuration has less to share than there are ranks."""
    queries = config.queries or 1
    points = 2 * queries if config.estimator == "spsa" else queries + 1
    most, what, fix = config.batch_size, "examples", "--batch-size"
    if shares_points(config):
        most, what, fix = points, "perturbed copies of the weights", "--queries"
    problems = []
    if size > most:
        problems.append(
            f"{size} ranks share the work of a step, which has {most} {what}: {size - most} would have nothing to do"
        )
    if config.shares is not None and (given := len(parse_shares(config.shares))) != size:
        problems.append(f"shares: {given} numbers were given for {size} ranks")
    if problems:
        raise ConfigError("; ".join(problems), f"raise {fix}, use fewer ranks, or give one share a rank")
