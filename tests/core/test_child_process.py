"""Child processes: their pipes and the signals that end them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlxzo.core.child_process import pipe, signal_name


@pytest.mark.parametrize("number, name", [(9, "SIGKILL"), (15, "SIGTERM"), (50, "signal 50")])
def test_every_signal_has_a_name(number, name):
    assert signal_name(number) == name


def test_a_pipe_that_was_not_asked_for_is_an_error():
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        assert pipe(child.stdout).read() == b""
        with pytest.raises(ValueError):
            pipe(child.stdin)
