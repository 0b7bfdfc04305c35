"""Commands whose standard streams are closed, gone, or a terminal that cannot place text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mlxzo.cli.console import RunView
from mlxzo.cli.foreground import signals_to
from mlxzo.cli.streams import _TerminalStream

# Prints the descriptor of the next file, beside what a command would do.
PROBE = """
import os, sys
from mlxzo.cli.main import main
code = main(["tasks", "show", "sst2"])
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(descriptor, b"%d %d" % (descriptor, code))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_file_s_descriptor(tmp_path, closed):
    command = f'exec "$0" -c "$1" "$2" {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable, PROBE, tmp_path / "next"], capture_output=True)
    descriptor, code = map(int, (tmp_path / "next").read_text().split())
    assert (done.returncode, code) == (0, 0) and descriptor > 2


def test_the_app_needs_more_than_a_dumb_terminal():
    master, slave = os.openpty()
    streams = {"stdin": slave, "stdout": slave, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "mlxzo", "tui", "--demo"]
    done = subprocess.run(command, env={**os.environ, "TERM": "dumb"}, text=True, **streams)
    os.close(slave)
    os.close(master)
    assert done.returncode == 2 and "TERM is dumb" in done.stderr


def test_work_goes_on_when_the_terminal_hangs_up():
    class Work:
        stopped = False

        def stop(self) -> None:
            self.stopped = True

    before = signal.getsignal(signal.SIGHUP)
    with signals_to(work := Work(), RunView()) as show_stop:
        os.kill(os.getpid(), signal.SIGHUP)
        show_stop()
    assert not work.stopped and signal.getsignal(signal.SIGHUP) is before


def test_what_is_written_to_a_terminal_that_is_gone_is_dropped():
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        stream = _TerminalStream(terminal)
        assert stream.isatty() and stream.write("there\n") == 6
        stream.flush()
        assert os.read(master, 20) == b"there\r\n"
        os.close(master)
        stream.write("gone")
        stream.flush()
        # What the stream still holds goes nowhere as well.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, slave)
        os.close(null)
