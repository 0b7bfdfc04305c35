"""A team of several processes, over `mx.distributed`: what they exchange, and how long they wait for one another.

A step of MeZO costs one all-gather: of each rank 4 bytes that say what it is asked to do and how long it computed, and
the values of the examples that were its share (8 bytes an example and copy of the weights). No weights are sent.
Collectives run in a thread of their own: they may wait for ever, and the main thread must not.
"""

from __future__ import annotations

import json
import math
import os
import platform
import queue
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ...core import events
from ...core.errors import ConfigError, RankLost, RanksDisagree, RanksError
from .communicator import Communicator, Compute, Piece, Request, assign

T = TypeVar("T")

# Machines take a while to start; who was not seen by then will not come.
JOIN_SECONDS = 90.0
# Models load, and are fetched, at different speeds.
LOAD_SECONDS = 24 * 3600.0

_POLL_SECONDS = 0.1
# So many bytes go through one collective.
_CHUNK_BYTES = 1 << 25
# Speeds are taken anew after so many exchanges of work, and told at most so often.
_WINDOW = 20
_NEWS_SECONDS = 10.0
# A rank's header, from its low bits up: what it is asked to do, a check of what follows, and how long it computed.
_WISH_BITS, _CHECK_BITS = 6, 8
_TICK_SECONDS = 1e-3
_MOST_TICKS = (1 << (32 - _WISH_BITS - _CHECK_BITS)) - 1


class MlxCommunicator(Communicator):
    """This process among the others of its run. Every method is called by all ranks, in the same order.

    Args:
        interrupt: called now and then while this rank waits; may raise.

    Attributes:
        names: of the machines, by rank.
        limit_seconds: longest wait for another rank.

    Every method that exchanges something raises RankLost where another rank ended or is waited for too long.
    """

    def __init__(self, group: mx.distributed.Group, lane: CollectiveThread, interrupt: Callable[[], None]):
        super().__init__()
        self.rank, self.size = group.rank(), group.size()
        self.names = [""] * self.size
        self.bytes_sent = 0
        self.limit_seconds = LOAD_SECONDS
        self._group, self._lane, self._interrupt = group, lane, interrupt
        self._fixed: Sequence[float] = [1.0] * self.size
        self._speeds: Sequence[float] = self._fixed
        self._measures = True
        self._window = _Window(self.size)
        self._told = -math.inf
        self._exchanges = 0

    def share(self, shares: Sequence[float]) -> None:
        """Gives the ranks these shares of the work, instead of by their speed, which is measured."""
        self._fixed = self._speeds = shares
        self._measures = False

    def listen(self) -> None:
        # In step with the others, a wish waits for the next exchange.
        if not self.in_step:
            super().listen()

    def together(self, pieces: Sequence[Piece], compute: Compute, *, steady: bool = False) -> list[np.ndarray]:
        owners = assign([piece.cost for piece in pieces], self._fixed if steady else self._speeds)
        of_rank = [[i for i, owner in enumerate(owners) if owner == rank] for rank in range(self.size)]
        own, began = of_rank[self.rank], time.perf_counter()
        results = compute(own) if own else []
        seconds = time.perf_counter() - began
        sizes = [[math.prod(pieces[i].shape) for i in numbers] for numbers in of_rank]
        payload = np.zeros(max(map(sum, sizes)), np.float64)
        payload[: sum(sizes[self.rank])] = np.concatenate([np.ravel(found) for found in results]) if own else ()
        busy, rows = self._exchange(payload, seconds)
        found: list[np.ndarray] = [payload] * len(pieces)
        for numbers, lengths, row in zip(of_rank, sizes, rows, strict=True):
            for i, values in zip(numbers, np.split(row, np.cumsum(lengths)), strict=False):
                found[i] = values.reshape(pieces[i].shape)
        self._window.add([sum(pieces[i].cost for i in numbers) for numbers in of_rank], busy)
        if self._measures and self._window.full:
            self._speeds = self._window.speeds(self._speeds)
        return found

    def sum(self, arrays: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
        found: dict[str, mx.array] = {}
        for names in _grouped(arrays):
            flat = mx.concatenate([arrays[name].reshape(-1).astype(mx.float32) for name in names])
            mx.eval(flat)
            total = self._all_sum(flat)
            ends = np.cumsum([arrays[name].size for name in names]).tolist()
            pieces = mx.split(total, ends[:-1])
            found |= {name: piece.reshape(arrays[name].shape) for name, piece in zip(names, pieces, strict=True)}
            mx.eval(found)
        return found

    def same(self, what: str, value: str) -> None:
        values = [said.decode() for said in self.gather(value.encode())]
        (most, count), *_ = Counter(values).most_common()
        right = most if 2 * count > self.size else values[0]
        odd = [self.name_of(rank) for rank, said in enumerate(values) if said != right]
        if odd:
            raise RanksDisagree(
                f"{' and '.join(odd)} {'has' if len(odd) == 1 else 'have'} other {what} than the others",
                "machines of one kind with the same versions compute the same; `mlxzo train --resume` goes on from "
                "what rank 0 has",
            )

    def beat(self) -> None:
        self._exchange(np.zeros(0), 0.0)
        self.in_step = True

    def news(self) -> events.RankStats | None:
        now = time.monotonic()
        if not self._window.full or now - self._told < _NEWS_SECONDS:
            return None
        self._told = now
        share = sum(self._speeds)
        return events.RankStats(
            names=self.names,
            shares=[speed / share for speed in self._speeds],
            busy_seconds=self._window.busy_seconds,
            waiting_seconds=self._window.waiting_seconds,
            bytes_sent=self.bytes_sent,
        )

    def compare(self, facts: Mapping[str, str]) -> None:
        """Compares what must be the same on all ranks before they begin.

        Raises:
            ConfigError: it is not; every difference is named. All ranks raise it.
        """
        every = [json.loads(said) for said in self.gather(json.dumps(facts).encode())]
        self._refuse(
            f"{what}: {every[0].get(what)} on {self.name_of(0)}, {theirs.get(what)} on {self.name_of(rank)}"
            for what in facts
            for rank, theirs in enumerate(every)
            if theirs.get(what) != every[0].get(what)
        )

    def refuse(self, problems: Sequence[str]) -> None:
        """Ends the run on all ranks where one of them has problems, which are told with its name.

        Raises:
            ConfigError: there are some.
        """
        every = [json.loads(said) for said in self.gather(json.dumps(list(problems)).encode())]
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

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes that each rank gives, by rank."""
        sizes = self._all_gather(np.array([len(data)], np.uint32))[:, 0].tolist()
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = self._all_gather(padded) if max(sizes) else padded[None].repeat(self.size, 0)
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, data: bytes = b"") -> bytes:
        """What rank 0 gives."""
        size = int(self._all_gather(np.array([len(data)], np.uint64).view(np.uint32))[0].view(np.uint64)[0])
        found = bytearray()
        for start in range(0, size, _CHUNK_BYTES):
            chunk = np.zeros(min(_CHUNK_BYTES, size - start), np.uint8)
            if self.rank == 0:
                chunk[:] = np.frombuffer(data, np.uint8, len(chunk), start)
            found += np.array(self._all_sum(mx.array(chunk))).tobytes()
        return bytes(found)

    def _exchange(self, payload: np.ndarray, seconds: float) -> tuple[list[float], np.ndarray]:
        """Exchanges numbers, float64 [N] of each rank, and headers; returns how long each computed, and all numbers."""
        self._exchanges += 1
        ticks = min(_MOST_TICKS, round(seconds / _TICK_SECONDS))
        header = int(self.wishes()) | self._check(payload) << _WISH_BITS | ticks << (_WISH_BITS + _CHECK_BITS)
        rows = self._all_gather(np.concatenate([np.array([header], np.uint32), payload.view(np.uint32)]))
        numbers = rows[:, 1:].copy().view(np.float64)
        said, busy = Request.NOTHING, []
        for header, row in zip(rows[:, 0].tolist(), numbers, strict=True):
            if header >> _WISH_BITS & ((1 << _CHECK_BITS) - 1) != self._check(row):
                raise self._lost("what came is not what was sent")
            said |= Request(header & ((1 << _WISH_BITS) - 1))
            busy.append((header >> (_WISH_BITS + _CHECK_BITS)) * _TICK_SECONDS)
        self._hear(said)
        return busy, numbers

    def _check(self, payload: np.ndarray) -> int:
        """A check of the numbers and of their turn: a broken ring may hand out what an earlier exchange left."""
        return zlib.crc32(payload.tobytes(), self._exchanges & 0xFFFFFFFF) & ((1 << _CHECK_BITS) - 1)

    def _all_gather(self, own: np.ndarray) -> np.ndarray:
        def work() -> np.ndarray:
            rows = mx.distributed.all_gather(mx.array(own), group=self._group, stream=mx.cpu)
            _finish(rows)
            return np.array(rows).reshape(self.size, -1)

        self.bytes_sent += own.nbytes * (self.size - 1)
        return self._wait(work)

    def _all_sum(self, own: mx.array) -> mx.array:
        def work() -> mx.array:
            total = mx.distributed.all_sum(own, group=self._group, stream=mx.cpu)
            _finish(total)
            return total

        # A ring adds up a part on the way round, and hands the sums round once more.
        self.bytes_sent += 2 * own.nbytes * (self.size - 1) // self.size
        return self._wait(work)

    def _wait(self, work: Callable[[], T]) -> T:
        try:
            return self._lane.run(work, self.limit_seconds, self._interrupt)
        except TimeoutError:
            raise RankLost(
                f"{self.name_of(self.rank)} waited {self.limit_seconds:g} s for another rank, which does not answer",
                "see whether all machines are awake and reachable; --stall-seconds sets how long they wait",
            ) from None
        except RuntimeError as error:
            raise self._lost(str(error).removeprefix("[ring] ")) from None

    def _lost(self, why: str) -> RankLost:
        return RankLost(
            f"{self.name_of(self.rank)} lost another rank ({why})",
            "that rank says why it ended; `mlxzo train --resume` goes on, with as many ranks as there are",
        )


def _finish(result: mx.array) -> None:
    """Computes what a collective gives. An error of the ring comes out of the stream's end only: without waiting for
    that, `result` would be whatever lay in its memory."""
    mx.eval(result)
    mx.synchronize(mx.default_stream(mx.cpu))


class _Window:
    """What the last exchanges of work took."""

    def __init__(self, size: int):
        self._size = size
        self._clear()
        self.busy_seconds: list[float] = []
        self.waiting_seconds: list[float] = []

    def add(self, costs: Sequence[float], busy: Sequence[float]) -> None:
        """Takes in an exchange: what each rank computed, and in how many seconds."""
        if self.full:
            self._clear()
        slowest = max(busy)
        for rank in range(self._size):
            self._costs[rank] += costs[rank]
            self._busy[rank] += busy[rank]
            self._waiting[rank] += slowest - busy[rank]
        self._count += 1
        self.full = self._count == _WINDOW
        if self.full:
            self.busy_seconds = [seconds / _WINDOW for seconds in self._busy]
            self.waiting_seconds = [seconds / _WINDOW for seconds in self._waiting]

    def _clear(self) -> None:
        self.full = False
        self._count = 0
        self._costs, self._busy, self._waiting = ([0.0] * self._size for _ in range(3))

    def speeds(self, before: Sequence[float]) -> list[float]:
        """The speed of each rank; that of before, in proportion, for one that had nothing to do."""
        found = [cost / busy if cost and busy else None for cost, busy in zip(self._costs, self._busy, strict=True)]
        known = [(new, old) for new, old in zip(found, before, strict=True) if new is not None]
        if not known:
            return list(before)
        scale = sum(new for new, _ in known) / sum(old for _, old in known)
        return [old * scale if new is None else new for new, old in zip(found, before, strict=True)]


class CollectiveThread:
    """A thread for what may wait for ever; the process has to end without it."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, name="exchange", daemon=True).start()

    def run(self, work: Callable[[], T], seconds: float, interrupt: Callable[[], None]) -> T:
        """What `work` returns or raises.

        Raises:
            TimeoutError: it did neither in time.
        """
        done: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()
        self._tasks.put((work, done))
        limit = time.monotonic() + seconds
        while True:
            try:
                found, error = done.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                interrupt()
                if time.monotonic() > limit:
                    raise TimeoutError from None
                continue
            if error is not None:
                raise error
            return found

    def _work(self) -> None:
        while True:
            work, done = self._tasks.get()
            try:
                done.put((work(), None))
            except BaseException as error:
                done.put((None, error))


def join(rank: int, interrupt: Callable[[], None]) -> MlxCommunicator:
    """Meets the other ranks of the run.

    Args:
        rank: this process's, for messages.
        interrupt: called while this rank waits; may raise.

    Raises:
        RanksError: an address or a port cannot be used, or somebody did not come in time.
    """
    lane, limit = CollectiveThread(), time.monotonic() + JOIN_SECONDS
    # Where several backends are built in, a file of addresses means the ring.
    backend = "ring" if os.environ.get("MLX_HOSTFILE") else "any"
    while True:
        try:
            left = limit - time.monotonic()
            group = lane.run(lambda: mx.distributed.init(strict=True, backend=backend), left, interrupt)
            break
        except TimeoutError:
            raise RanksError(
                f"rank {rank} waited {JOIN_SECONDS:g} s for the other ranks: {_neighbours(rank)}",
                "see whether all machines are awake, reach one another by these addresses, and let these ports through "
                "their firewalls",
            ) from None
        except (RuntimeError, ValueError) as error:
            # A ring calls its neighbour for 15 s only, which may not have started yet.
            if "connect" not in str(error) or time.monotonic() + _POLL_SECONDS > limit:
                raise _explained(rank, str(error)) from None
    ranks = MlxCommunicator(group, lane, interrupt)
    ranks.names = [name.decode() for name in ranks.gather(platform.node().encode())]
    return ranks


def _addresses() -> list[list[str]]:
    """Of the ring, by rank; empty where there is none, or they cannot be read."""
    try:
        found: Any = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        return [[str(address) for address in addresses] for addresses in found]
    except (KeyError, OSError, ValueError, TypeError):
        return []


def _neighbours(rank: int) -> str:
    addresses = _addresses()
    if not addresses:
        return "they did not come"
    following = (rank + 1) % len(addresses)
    return (
        f"rank {(rank - 1) % len(addresses)} did not call at {', '.join(addresses[rank])}, or rank {following} did not "
        f"answer at {', '.join(addresses[following])}"
    )


def _explained(rank: int, text: str) -> RanksError:
    """MLX's word on why a ring does not close, in ours."""
    addresses = _addresses()
    number = re.search(r"\(error: (\d+)\)", text)
    reason = os.strerror(int(number[1])) if number else text.removeprefix("[ring] ")
    fix = "correct the hosts file; `mlxzo train --help` tells of --hosts and --port"
    if addresses and "bind" in text:
        return RanksError(
            f"rank {rank} cannot listen at {', '.join(addresses[rank])}: {reason}",
            "choose another --port, or see what else uses it; the address must be one of that machine's own",
        )
    if addresses and "connect" in text:
        following = (rank + 1) % len(addresses)
        return RanksError(
            f"rank {rank} cannot reach rank {following} at {', '.join(addresses[following])}: {reason}",
            "see whether that machine is awake, and lets this port through its firewall",
        )
    return RanksError(f"rank {rank} cannot join the others: {reason}", fix)


def _grouped(arrays: Mapping[str, mx.array]) -> Iterator[list[str]]:
    """Names in order, in groups of at most `_CHUNK_BYTES` of float32, or of one."""
    group: list[str] = []
    size = 0
    for name in sorted(arrays):
        if group and size + 4 * arrays[name].size > _CHUNK_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += 4 * arrays[name].size
    if group:
        yield group
