"""The watch's decision at a reading over the cap, on readings made up for it."""

import errno
import threading

import pytest

from mlxzo.memory import watch
from mlxzo.memory.watch import Watch

pytestmark = pytest.mark.device

CAP = 1000


class Readings(watch.Gauge):
    """A gauge that gives the readings of a list, the last one again and again."""

    def __init__(self, readings):
        super().__init__()
        self.left = list(readings)
        self._reader.close()
        self._reader = self

    def read(self, phase=""):
        self.last_bytes = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return self.last_bytes

    def close(self):
        pass


def ended(readings, grace, monkeypatch, emit=lambda sample, kept: None):
    """Whether a watch with these readings ends its process within 0.3 s; and its `over`."""
    monkeypatch.setattr(watch, "_GRACE_SECONDS", grace)
    called = threading.Event()
    held = Watch(emit, called.set)
    held.gauge = Readings(readings)
    held.cap_bytes = CAP
    with held:
        called.wait(0.3)
    return called.is_set(), held.over


def test_a_run_that_grows_fast_ends_at_its_first_reading_over_the_cap(monkeypatch):
    assert ended([500, 900, 1100], 60, monkeypatch) == (True, True)


@pytest.mark.parametrize("grace, at_once", [(60, False), (0.01, True)])
def test_a_run_that_creeps_over_its_cap_has_time_to_end_by_itself(grace, at_once, monkeypatch):
    assert ended([500, 998, 1001], grace, monkeypatch) == (at_once, True)


def test_a_run_under_its_cap_goes_on(monkeypatch):
    assert ended([500, 900, 1000], 0.01, monkeypatch) == (False, False)


def test_a_sample_that_cannot_be_written_does_not_end_the_watch(monkeypatch):
    def fail(sample, kept):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert ended([500, 500, 500, 900, 1100], 60, monkeypatch, fail) == (True, True)
