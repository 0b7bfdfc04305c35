"""The communicator of a run over several processes, built on `mx.distributed`.

A step of MeZO costs one all-gather: each rank sends a header of 4 bytes, with its requests and the time it computed,
and the values of the examples in its share (8 bytes per example and perturbed copy of the weights), and no weights.
Collectives run in a thread of their own: they may block for ever, and the main thread must not.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import queue
import re
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ...core import events
from ...core.errors import RankLost, RanksError
from ...core.failures import raise_shortage
from .communicator import (
    JOIN_SECONDS,
    Communicator,
    Compute,
    Piece,
    Request,
    assign,
    not_joined,
    ring_addresses,
)

T = TypeVar("T")

_ALARM_SECONDS = 5.0
_POLL_SECONDS = 0.1
# Most bytes in one collective.
_CHUNK_BYTES = 1 << 25
# Exchanges of work between two measurements of the ranks' speeds.
_WINDOW = 20
# Least time between two events with the ranks' speeds.
_STATS_SECONDS = 10.0
# The fields of a rank's header, from its low bits up: requests, a checksum of what follows, and ticks of computing.
_REQUEST_BITS, _CHECK_BITS = 6, 8
_TICK_SECONDS = 1e-3
_MOST_TICKS = (1 << (32 - _REQUEST_BITS - _CHECK_BITS)) - 1


class MlxCommunicator(Communicator):
    """The communicator of one rank among several. All ranks call the same methods in the same order.

    Args:
        thread: runs the collectives.
        interrupt: called regularly while this rank waits; may raise.

    Every method that exchanges data raises RankLost if another rank ended or did not answer in time.
    """

    def __init__(self, group: mx.distributed.Group, thread: CollectiveThread, interrupt: Callable[[], None]):
        super().__init__()
        self.rank, self.size = group.rank(), group.size()
        self.names = [""] * self.size
        self._group, self._thread, self._interrupt = group, thread, interrupt
        self._fixed: Sequence[float] = [1.0] * self.size
        self._speeds: Sequence[float] = self._fixed
        self._measures = True
        self._window = _Window(self.size)
        self._last_stats = -math.inf
        self._exchanges = 0

    def share(self, shares: Sequence[float]) -> None:
        self._fixed = self._speeds = shares
        self._measures = False

    def listen(self) -> None:
        # Ranks in step receive requests at the next exchange.
        if not self.in_step:
            super().listen()

    def scatter_gather(self, pieces: Sequence[Piece], compute: Compute, *, steady: bool = False) -> list[np.ndarray]:
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

    def synchronise(self) -> None:
        self._exchange(np.zeros(0), 0.0)
        self.in_step = True

    def rank_stats(self) -> events.RankStats | None:
        now = time.monotonic()
        if not self._window.full or now - self._last_stats < _STATS_SECONDS:
            return None
        self._last_stats = now
        share = sum(self._speeds)
        return events.RankStats(
            names=self.names,
            shares=[speed / share for speed in self._speeds],
            busy_seconds=self._window.busy_seconds,
            waiting_seconds=self._window.waiting_seconds,
            bytes_sent=self.bytes_sent,
        )

    def gather(self, data: bytes) -> list[bytes]:
        sizes = self._all_gather(np.array([len(data)], np.uint32))[:, 0].tolist()
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = self._all_gather(padded) if max(sizes) else padded[None].repeat(self.size, 0)
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, data: bytes = b"") -> bytes:
        size = int(self._all_gather(np.array([len(data)], np.uint64).view(np.uint32))[0].view(np.uint64)[0])
        found = bytearray()
        for start in range(0, size, _CHUNK_BYTES):
            chunk = np.zeros(min(_CHUNK_BYTES, size - start), np.uint8)
            if self.rank == 0:
                chunk[:] = np.frombuffer(data, np.uint8, len(chunk), start)
            found += np.array(self._all_sum(mx.array(chunk))).tobytes()
        return bytes(found)

    def _exchange(self, payload: np.ndarray, seconds: float) -> tuple[list[float], np.ndarray]:
        """Exchanges headers and numbers, float64 [N] of each rank.

        Returns:
            The seconds that each rank computed, and the numbers of all, [size, N].
        """
        self._exchanges += 1
        ticks = min(_MOST_TICKS, round(seconds / _TICK_SECONDS))
        header = int(self.requests()) | self._check(payload) << _REQUEST_BITS | ticks << (_REQUEST_BITS + _CHECK_BITS)
        rows = self._all_gather(np.concatenate([np.array([header], np.uint32), payload.view(np.uint32)]))
        numbers = rows[:, 1:].copy().view(np.float64)
        requests, busy = Request.NOTHING, []
        for header, row in zip(rows[:, 0].tolist(), numbers, strict=True):
            if header >> _REQUEST_BITS & ((1 << _CHECK_BITS) - 1) != self._check(row):
                raise self._lost("the data received is not the data sent")
            requests |= Request(header & ((1 << _REQUEST_BITS) - 1))
            busy.append((header >> (_REQUEST_BITS + _CHECK_BITS)) * _TICK_SECONDS)
        self._receive(requests)
        return busy, numbers

    def _check(self, payload: np.ndarray) -> int:
        """A checksum of the payload and the number of the exchange: a broken ring may return an earlier payload."""
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

        # A ring passes every part round twice: to sum it, and to distribute the sum.
        self.bytes_sent += 2 * own.nbytes * (self.size - 1) // self.size
        return self._wait(work)

    def _wait(self, work: Callable[[], T]) -> T:
        try:
            return self._thread.run(work, self.limit_seconds, self._interrupt)
        except TimeoutError:
            raise RankLost(
                f"{self.name_of(self.rank)} waited {self.limit_seconds:g} s for another rank, which does not answer",
                "check that all machines are awake and reachable",
            ) from None
        except RuntimeError as error:
            # The ring's part of the work waits for this process's own, which may have failed.
            raise_shortage(error)
            raise self._lost(str(error).removeprefix("[ring] ")) from None

    def _lost(self, why: str) -> RankLost:
        return RankLost(
            f"{self.name_of(self.rank)} lost another rank ({why})",
            "that rank reports why it ended; `mlxzo train --resume` continues with any number of ranks",
        )


def _finish(result: mx.array) -> None:
    """Evaluates the result of a collective and waits for its stream.

    An error of the ring is raised by the stream's end only; without waiting, `result` would be uninitialised memory.
    """
    mx.eval(result)
    mx.synchronize(mx.default_stream(mx.cpu))


class _Window:
    """The time that ranks computed and waited over the last exchanges of work."""

    def __init__(self, size: int):
        self._size = size
        self._clear()
        self.busy_seconds: list[float] = []
        self.waiting_seconds: list[float] = []

    def add(self, costs: Sequence[float], busy: Sequence[float]) -> None:
        """Adds an exchange: the cost that each rank computed, and the seconds it took."""
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
        """The speed of each rank; for a rank without work its previous speed, scaled like those of the others."""
        found = [cost / busy if cost and busy else None for cost, busy in zip(self._costs, self._busy, strict=True)]
        known = [(new, old) for new, old in zip(found, before, strict=True) if new is not None]
        if not known:
            return list(before)
        scale = sum(new for new, _ in known) / sum(old for _, old in known)
        return [old * scale if new is None else new for new, old in zip(found, before, strict=True)]


class CollectiveThread:
    """A daemon thread for calls that may block for ever, so that the process can still end."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="exchange", daemon=True).start()

    def run(self, work: Callable[[], T], seconds: float, interrupt: Callable[[], None]) -> T:
        """Runs `work` in the thread; returns what it returns, and raises what it raises.

        Args:
            seconds: longest wait for it.
            interrupt: called regularly during the wait; may raise.

        Raises:
            TimeoutError: it did not end in time.
        """
        future: Future[T] = Future()
        self._tasks.put((work, future))
        limit = time.monotonic() + seconds
        while not wait([future], _POLL_SECONDS).done:
            interrupt()
            if time.monotonic() > limit:
                raise TimeoutError
        return future.result()

    def _work(self) -> None:
        while True:
            work, future = self._tasks.get()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)


def join(rank: int, interrupt: Callable[[], None]) -> MlxCommunicator:
    """Connects this process with the other ranks of the run.

    Args:
        rank: of this process, for messages.
        interrupt: called while this rank waits; may raise.

    Raises:
        RanksError: an address or a port cannot be used, or a rank did not join in time.
    """
    thread = CollectiveThread()
    with _ended_by_the_system():
        group = _group(rank, thread, interrupt)
    communicator = MlxCommunicator(group, thread, interrupt)
    communicator.names = [name.decode() for name in communicator.gather(platform.node().encode())]
    return communicator


def _group(rank: int, thread: CollectiveThread, interrupt: Callable[[], None]) -> mx.distributed.Group:
    # With several backends built in, a hosts file stands for the ring.
    backend = "ring" if os.environ.get("MLX_HOSTFILE") else "any"
    limit = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            left = limit - time.monotonic()
            return thread.run(lambda: mx.distributed.init(strict=True, backend=backend), left, interrupt)
        except TimeoutError:
            raise not_joined(rank) from None
        except (RuntimeError, ValueError) as error:
            # MLX tries to reach the next rank of the ring for 15 s only, but that one may start later.
            if "connect" not in str(error) or time.monotonic() + _POLL_SECONDS > limit:
                raise _explained(rank, str(error)) from None


@contextlib.contextmanager
def _ended_by_the_system() -> Iterator[None]:
    """Has signals end this process at once, and SIGALRM if the block takes too long.

    While MLX waits for the connection of another rank it holds the interpreter: neither a signal handler nor a time
    limit of Python's would ever be reached. The supervisor tells why the process ended (see `not_joined`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ending}
    # Later than the limit of `_group`, which tells more where it can.
    signal.setitimer(signal.ITIMER_REAL, JOIN_SECONDS + _ALARM_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _explained(rank: int, text: str) -> RanksError:
    """MLX's error about a ring that cannot be formed, with addresses and a remedy."""
    addresses = ring_addresses()
    number = re.search(r"\(error: (\d+)\)", text)
    reason = os.strerror(int(number[1])) if number else text.removeprefix("[ring] ")
    fix = "correct the hosts file; `mlxzo train --help` describes --hosts and --port"
    if addresses and "bind" in text:
        return RanksError(
            f"rank {rank} cannot listen at {', '.join(addresses[rank])}: {reason}",
            "choose another --port, or stop the program that uses it; the address must be one of that machine's own",
        )
    if addresses and "connect" in text:
        following = (rank + 1) % len(addresses)
        return RanksError(
            f"rank {rank} cannot reach rank {following} at {', '.join(addresses[following])}: {reason}",
            "check that this machine is awake and that its firewall lets this port through",
        )
    return RanksError(f"rank {rank} cannot join the others: {reason}", fix)


def _grouped(arrays: Mapping[str, mx.array]) -> Iterator[list[str]]:
    """Names in order, in groups of at most `_CHUNK_BYTES` of float32, or of one name."""
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
