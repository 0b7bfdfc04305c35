"""The event stream where the disk is full."""

from pathlib import Path

import pytest

from mlxzo.core import events
from mlxzo.runtime.event_writer import EventWriter


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_costs_a_sample_and_is_reported_by_what_must_be_kept():
    write = EventWriter(Path("/dev/full"))
    write.offer(events.Note("a sample"), kept=True)
    with pytest.raises(OSError):
        write(events.Note("a step"))
