"""The interface between the ranks of a distributed run, and its implementation for one process. Imports no MLX.

Work is divided into pieces that do not depend on the number of ranks, and each piece is computed by one rank. All ranks
receive all results and combine them in one order, so that they are bit-identical to those of a run in one process.
"""

from __future__ import annotations

import enum
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...core import events
from ...core.config import RunConfig
from ...core.errors import ConfigError, RanksDisagree, RanksError
from ...core.formatting import shown
from ...core.options import parse_shares
from ...core.parsing import CONTENT_ERRORS, read_json
from ...core.resolved_config import ResolvedConfig

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

# Models load, and are fetched, at different speeds.
LOAD_SECONDS = 24 * 3600.0
# Longest time for all ranks to start and connect.
JOIN_SECONDS = 90.0
# Longest wait of ranks that are loaded: far more than the pieces of a step differ in, since ranks share it by speed. A
# rank whose process dies is noticed at once; this is for machines that sleep.
STALL_SECONDS = 600.0


class Request(enum.IntFlag):
    """The requests to a run while it runs."""

    NOTHING = 0
    STOP = 1
    PAUSE = 2
    END = 4
    """The time limit of the run is reached."""
    EVALUATE = 8
    SHRINK = 16

    ONCE = EVALUATE | SHRINK
    """Requests that are cleared when carried out; the others hold for as long as they are made."""


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        cost: the time it takes, in any unit.
        shape: of its result.
    """

    cost: float
    shape: tuple[int, ...]


Compute: TypeAlias = "Callable[[Sequence[int]], Sequence[np.ndarray]]"
"""Computes the results, float64, of the pieces with these indices."""


class Communicator:
    """The communicator of a run in one process: it exchanges nothing, and `MlxCommunicator` is that of several.

    Attributes:
        rank: the number of this process among the ranks; rank 0 keeps the run.
        size: the number of ranks.
        names: of the machines, by rank; empty where unknown.
        bytes_sent: total that this rank has sent to others.
        in_step: whether all ranks act on the same requests, which change at exchanges only.
        limit_seconds: longest wait for another rank.
        requests: returns the requests to this process; each of `Request.ONCE` once.
    """

    rank = 0
    size = 1
    bytes_sent = 0
    in_step = False
    limit_seconds = LOAD_SECONDS

    def __init__(self) -> None:
        self.names = [""]
        self.requests: Callable[[], Request] = lambda: Request.NOTHING
        self._requested = Request.NOTHING

    def listen(self) -> None:
        """Receives the requests to this process, unless they wait for the next exchange."""
        self._receive(self.requests())

    def is_requested(self, request: Request) -> bool:
        """True if the run has this request."""
        return bool(self._requested & request)

    def consume(self, request: Request) -> bool:
        """True if the run has this request, one of `Request.ONCE`; clears it."""
        found = self.is_requested(request)
        self._requested &= ~request
        return found

    def _receive(self, requests: Request) -> None:
        self._requested = (self._requested & Request.ONCE) | requests

    def scatter_gather(self, pieces: Sequence[Piece], compute: Compute, *, steady: bool = False) -> list[np.ndarray]:
        """Results of all pieces, in their order, each computed by one rank and sent to all.

        Args:
            steady: assign pieces to ranks independently of measured speeds.
        """
        return list(compute(range(len(pieces))))

    def sum(self, arrays: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
        """Sums arrays over the ranks, by name, in float32; bit-identical on all ranks."""
        return arrays

    def gather(self, data: bytes) -> list[bytes]:
        """The data of each rank, by rank."""
        return [data]

    def broadcast(self, data: bytes = b"") -> bytes:
        """The data of rank 0."""
        return data

    def share(self, shares: Sequence[float]) -> None:
        """Sets the shares of the work of the ranks, in place of shares by measured speed."""

    def synchronise(self) -> None:
        """Exchanges requests: from the first call on all ranks have the same, and they change at exchanges only."""

    def rank_stats(self) -> events.RankStats | None:
        """Speed and waiting time of the ranks, every few seconds; None in between."""
        return None

    def same(self, what: str, value: str) -> None:
        """Compares a value with that of the other ranks.

        Raises:
            RanksDisagree: it differs; the message names the ranks in the minority.
        """
        values = [own.decode() for own in self.gather(value.encode())]
        (most, count), *_ = Counter(values).most_common()
        right = most if 2 * count > self.size else values[0]
        odd = [self.name_of(rank) for rank, own in enumerate(values) if own != right]
        if odd:
            raise RanksDisagree(
                f"{' and '.join(odd)} {'has' if len(odd) == 1 else 'have'} other {what} than the others",
                "use machines of one kind with the same versions, which compute the same; `mlxzo train --resume` "
                "continues from the files of rank 0",
            )

    def compare(self, facts: Mapping[str, str]) -> None:
        """Compares facts that must be the same on all ranks before they begin.

        Raises:
            ConfigError: some differ; with every difference. All ranks raise it.
        """
        every = [json.loads(own) for own in self.gather(json.dumps(facts).encode())]
        self._refuse(
            f"{what}: {every[0].get(what)} on {self.name_of(0)}, {theirs.get(what)} on {self.name_of(rank)}"
            for what in facts
            for rank, theirs in enumerate(every)
            if theirs.get(what) != every[0].get(what)
        )

    def refuse(self, problems: Sequence[str]) -> None:
        """Ends the run on all ranks where one of them has problems; the message names that rank.

        Raises:
            ConfigError: there are problems.
        """
        every = [json.loads(own) for own in self.gather(json.dumps(list(problems)).encode())]
        self._refuse(f"{self.name_of(rank)}: {text}" for rank, own in enumerate(every) for text in own)

    def _refuse(self, problems: Iterator[str]) -> None:
        found = list(problems)
        if found:
            raise ConfigError(
                f"the ranks do not agree: {found[0]}" if len(found) == 1 else "the ranks do not agree",
                "give all of them the same version, model, data and options (docs/distributed.md)",
                found if len(found) > 1 else (),
            )

    def name_of(self, rank: int) -> str:
        """`rank 1 (mac2.local)`."""
        return f"rank {rank} ({self.names[rank]})" if self.names[rank] else f"rank {rank}"


def assign(costs: Sequence[float], speeds: Sequence[float]) -> list[int]:
    """Assigns pieces of work to ranks: longest piece first, each to the rank that would finish it first.

    Args:
        costs: of the pieces.
        speeds: of the ranks, in cost per unit of time.

    Returns:
        The rank of each piece.
    """
    owners, ends = [0] * len(costs), [0.0] * len(speeds)
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(len(speeds)), key=lambda r: (ends[r] + costs[piece] / speeds[r], r))
        ends[rank] += costs[piece] / speeds[rank]
        owners[piece] = rank
    return owners


def rank_of_environment(environment: Mapping[str, str] = os.environ) -> int | None:
    """The rank of this process by the environment variables of MLX or MPI; None if it runs alone.

    Raises:
        ConfigError: the variable is no number.
    """
    ring = environment.get("MLX_HOSTFILE")
    # For a single host, mlx.launch writes an empty file.
    if ring and Path(ring).is_file() and not Path(ring).read_text().strip():
        return None
    name = next((name for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK") if name in environment), None)
    if name is None or (
        name == "MLX_RANK" and not (ring or {"MLX_IBV_DEVICES", "MLX_WORLD_SIZE"} & environment.keys())
    ):
        return None
    if not environment[name].isdecimal():
        raise ConfigError(f"{name} is no rank: {shown(environment[name])}", "unset it, or start ranks with mlx.launch")
    return int(environment[name])


def ring_addresses() -> list[list[str]]:
    """The addresses of MLX's ring, by rank; empty without a ring, or if they cannot be read."""
    try:
        found = read_json(Path(os.environ["MLX_HOSTFILE"]))
        return [[str(address) for address in addresses] for addresses in found]
    except (KeyError, OSError, *CONTENT_ERRORS):
        return []


def not_joined(rank: int) -> RanksError:
    """The error of a rank that the others did not join in time."""
    addresses, who = ring_addresses(), "they did not join"
    if len(addresses) > 1:
        after = (rank + 1) % len(addresses)
        who = (
            f"rank {(rank - 1) % len(addresses)} did not connect to {', '.join(addresses[rank % len(addresses)])}, or "
            f"rank {after} did not answer at {', '.join(addresses[after])}"
        )
    return RanksError(
        f"rank {rank} waited {JOIN_SECONDS:g} s for the other ranks: {who}",
        "check that all machines are awake and can reach one another at these addresses, and that their firewalls let "
        "these ports through",
    )


def shares_points(config: RunConfig) -> bool:
    """True if ranks share the perturbed copies of the weights, and not the micro-batches.

    Generated answers depend on the whole batch, so a run that generates cannot share micro-batches.
    """
    return config.parallel == "directions" or config.writes


# Answers of a population that are written in one batch, at most: more would hardly be faster.
_ANSWERS_AT_ONCE = 128
# Kinds of parameters that can differ from row to row of a batch (see `zo.perturb.Population`).
_BY_ROW = {"norms", "biases", "gains", "lora"}


def members_at_once(config: RunConfig) -> int:
    """Members of a population that write in one batch; 1 where the scope does not allow more.

    It does not depend on the number of ranks, so that the answers do not either.
    """
    if not config.evolves or not set(config.parsed_scope.kinds) <= _BY_ROW:
        return 1
    return max(1, min(config.point_count, _ANSWERS_AT_ONCE // ResolvedConfig.of(config).batch_size))


def check_ranks(config: RunConfig, size: int) -> None:
    """Checks that a step of this configuration has a piece of work for every rank.

    Raises:
        ConfigError: it has fewer, or `shares` does not name one share a rank.
    """
    most, what, fix = ResolvedConfig.of(config).batch_size, "examples", "--batch-size"
    if shares_points(config):
        most, what, fix = config.point_count, "perturbed copies of the weights", "--queries"
        if (together := members_at_once(config)) > 1:
            most, what = -(-most // together), f"groups of {together} perturbed copies of the weights"
    problems = []
    if size > most:
        problems.append(
            f"{size} ranks share the work of a step, which has {most} {what}: {size - most} would have nothing to do"
        )
    if config.shares is not None and (given := len(parse_shares(config.shares))) != size:
        problems.append(f"shares: {given} numbers were given for {size} ranks")
    if problems:
        raise ConfigError("; ".join(problems), f"raise {fix}, use fewer ranks, or give one share a rank")
