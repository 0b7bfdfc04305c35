"""A run's memory, watched from inside: a thread reads the footprint, emits samples, and enforces the cap.

MLX releases the interpreter lock while it computes, so the thread keeps reading during an evaluation. It only sets
flags, which the main thread checks between layers; if the main thread does not react, the watch ends the process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from ..core import events
from ..core.errors import DoesNotFit
from ..core.formatting import bytes_of, format_bytes
from ..core.meter import FootprintReader, memory_pressure, mlx_memory, swap_used_bytes, system_memory

SAMPLE_SECONDS = 0.05
# Near the cap, readings are closer together.
NEAR_SAMPLE_SECONDS = 0.02
# From this share of the cap on, the run is asked to use less memory.
NEAR_SHARE = 0.92
# A run over its cap ends by itself within this time. It is ended at once if it has grown by more than this share of the
# cap since the last reading under the cap: the next reading may be one more growth above the cap.
_GRACE_SECONDS = 0.5
_GRACE_SHARE = 0.005

# Shortest time between samples that are shown, and between those kept in events.jsonl; see `Thinning`.
_SHOWN_SECONDS = 0.5
_KEPT_SECONDS = 5.0
_NEW_PEAK = 1.01


class Gauge:
    """The footprint of a process, reading by reading, in bytes.

    Args:
        pid: the process; None is this one.

    Attributes:
        last_bytes: the last reading.
        peak_by_phase: the highest reading of each phase of the run.
        growth_bytes: the largest growth from one reading to the next.
        longest_seconds: the longest time between two readings.

    Raises:
        ProcessLookupError: there is no such process, or reading it is not permitted; `read` raises it, too.
    """

    def __init__(self, pid: int | None = None):
        self.peak_by_phase: dict[str, int] = {}
        self.last_bytes = self.growth_bytes = self.readings = 0
        self.longest_seconds = 0.0
        self._reader = FootprintReader(pid)
        self._highest: int | None = None
        self._time = 0.0

    @property
    def peak_bytes(self) -> int:
        return max(self.peak_by_phase.values(), default=0)

    def read(self, phase: str = "") -> int:
        """Takes a reading: the current footprint, or the system's own peak if that rose since the last reading."""
        now = time.monotonic()
        seen, highest = self._reader.read()
        if highest is not None:
            if self._highest is not None and highest > self._highest:
                seen = max(seen, highest)
            self._highest = highest
        if self.readings:
            self.growth_bytes = max(self.growth_bytes, seen - self.last_bytes)
            self.longest_seconds = max(self.longest_seconds, now - self._time)
        self.readings, self.last_bytes, self._time = self.readings + 1, seen, now
        self.peak_by_phase[phase] = max(seen, self.peak_by_phase.get(phase, 0))
        return seen

    def close(self) -> None:
        """Stops reading; the figures stay."""
        self._reader.close()

    def exceeded(self, cap_bytes: int, kept: str) -> DoesNotFit:
        """The error for a run that went over its cap.

        Args:
            kept: the parts of the run that are saved, as a sentence without its full stop.
        """
        phases = ", ".join(f"{phase} {format_bytes(peak)}" for phase, peak in self.peak_by_phase.items() if phase)
        return DoesNotFit(
            f"the run went over its memory cap: it took {bytes_of(self.peak_bytes, cap_bytes)}",
            f"set --memory-cap well above {format_bytes(self.peak_bytes)}, or use a smaller --micro-batch, "
            "--max-tokens, --scope or --model; `mlxzo plan` shows what fits",
            [
                f"it grew by at most {format_bytes(self.growth_bytes)} from one reading to the next "
                f"({self.readings} readings, at most {self.longest_seconds:.2f} s apart)",
                *([f"most by phase: {phases}"] if phases else []),
                kept,
            ],
        )


class Thinning:
    """Selects the samples to show and to keep, so that a long run leaves a short file.

    Shown are the first sample of a phase, and two a second. Kept of these are the first of a phase, one every 5 s, and
    those whose peak is more than 1 % above the last one kept.
    """

    def __init__(self) -> None:
        self._phase: str | None = None
        self._peak_bytes = 0
        self._kept = self._shown = float("-inf")

    def worth(self, now: float, phase: str, peak_bytes: int) -> tuple[bool, bool]:
        """Two flags: show the sample, and keep it as well.

        Args:
            now: seconds, by any clock.
            peak_bytes: the highest reading so far, this sample included.
        """
        entered = phase != self._phase
        shown = entered or now - self._shown >= _SHOWN_SECONDS
        higher = peak_bytes > _NEW_PEAK * self._peak_bytes
        kept = shown and (entered or higher or now - self._kept >= _KEPT_SECONDS)
        if shown:
            self._shown = now
        if kept:
            self._kept, self._phase, self._peak_bytes = now, phase, peak_bytes
        return shown, kept


class Watch:
    """A context manager that reads this process's footprint from a thread of its own.

    Args:
        emit: called with the samples that `Thinning` selects, and True for those to keep. It is called from two
            threads, and must not block.
        end: ends the process at once. Called from the thread if a run over its cap keeps growing or does not stop.

    Attributes:
        cap_bytes: the cap that is enforced; None if there is none yet.
        near: the footprint is near the cap, or was since this was last set to False.
        over: the cap was exceeded: the run must stop.
    """

    def __init__(self, emit: Callable[[events.Memory, bool], None], end: Callable[[], None]):
        self.cap_bytes: int | None = None
        self.gauge = Gauge()
        self.near = self.over = False
        self._emit, self._end = emit, end
        self._phase = "load"
        self._thinning = Thinning()
        # The time of the first reading over the cap, and the bytes at which the thread ends the process at once.
        self._over = (0.0, 0.0)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        # A last sample, with the final peak.
        self._sample(kept=True)
        self.gauge.close()

    def hold(self, cap_bytes: int) -> None:
        """Enforces a cap from here on, and emits a sample with it."""
        self.cap_bytes = cap_bytes
        self._sample(kept=True)

    def enter(self, phase: str) -> None:
        """Begins a phase, with a reading before and after: a short one could fall between two samples."""
        self._sample()
        self._phase = phase
        self._sample()

    def summary(self) -> dict[str, Any]:
        """The memory of the run in bytes, as its result holds it."""
        return {
            "cap_bytes": self.cap_bytes,
            "footprint_peak_bytes": self.gauge.peak_bytes,
            "footprint_peak_by_phase": dict(self.gauge.peak_by_phase),
            "largest_growth_bytes": self.gauge.growth_bytes,
            "mlx_peak_bytes": mlx_memory().peak_bytes,
        }

    def exceeded(self, kept: str) -> DoesNotFit:
        """The error for a run that went over its cap (see `Gauge.exceeded`)."""
        if self.cap_bytes is None:
            raise ValueError("the run has no memory cap")
        return self.gauge.exceeded(self.cap_bytes, kept)

    def _run(self) -> None:
        while not self._done.wait(NEAR_SAMPLE_SECONDS if self._is_near() else SAMPLE_SECONDS):
            self._sample()
            if self.over and self._grows_on():
                self._end()

    def _is_near(self) -> bool:
        return self.cap_bytes is not None and self.gauge.last_bytes > NEAR_SHARE * self.cap_bytes

    def _grows_on(self) -> bool:
        since, tolerated = self._over
        return time.monotonic() - since > _GRACE_SECONDS or self.gauge.last_bytes > tolerated

    def _sample(self, kept: bool = False) -> None:
        with self._lock:
            before = self.gauge.last_bytes
            seen = self.gauge.read(self._phase)
            if self._is_near():
                self.near = True
            if self.cap_bytes is not None and seen > self.cap_bytes and not self.over:
                self._over = time.monotonic(), before + _GRACE_SHARE * self.cap_bytes
                self.over = True
            shown, keep = self._thinning.worth(time.monotonic(), self._phase, self.gauge.peak_bytes)
            if shown or kept:
                # A sample that cannot be taken or written is lost; the watch goes on.
                with contextlib.suppress(OSError):
                    self._emit(self._event(seen), keep or kept)

    def _event(self, seen: int) -> events.Memory:
        mlx = mlx_memory()
        return events.Memory(
            phase=self._phase,
            footprint_bytes=seen,
            peak_footprint_bytes=self.gauge.peak_bytes,
            active_bytes=mlx.active_bytes,
            cache_bytes=mlx.cache_bytes,
            peak_bytes=mlx.peak_bytes,
            cap_bytes=self.cap_bytes,
            available_bytes=system_memory()[1],
            swap_used_bytes=swap_used_bytes(),
            pressure=memory_pressure(),
        )
