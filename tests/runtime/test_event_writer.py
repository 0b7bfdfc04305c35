"""The event stream where the disk is full."""

import errno
import os
from pathlib import Path

import pytest

from mlxzo.core import events
from mlxzo.runtime.event_writer import EventWriter


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_costs_a_sample_and_is_reported_by_what_must_be_kept(capfd):
    write = EventWriter(Path("/dev/full"))
    write.offer(events.Note("a sample"), kept=True)
    with pytest.raises(OSError):
        write(events.Note("a step"))
    # The pipe takes the event all the same: it may be the last one, which says why.
    assert "a step" in capfd.readouterr().out


def test_a_short_write_is_completed_and_a_failed_one_leaves_no_half_line(tmp_path, monkeypatch):
    path, write_to = tmp_path / "events.jsonl", os.write
    write = EventWriter(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: write_to(descriptor, data[:7]))
        write(events.Note("short"))

        def fail(descriptor: int, data: bytes) -> int:
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_to(descriptor, data[:7])

        patched.setattr(os, "write", fail)
        with pytest.raises(OSError):
            write(events.Note("lost"))
    write(events.Note("after"))
    with path.open() as lines:
        assert [event for event, _ in events.read(lines)] == [events.Note("short"), events.Note("after")]


def test_a_line_that_was_cut_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "no' + bytes(9))
    EventWriter(path)(events.Note("next"))
    with path.open() as lines:
        assert [event for event, _ in events.read(lines)] == [events.Note("next")]
