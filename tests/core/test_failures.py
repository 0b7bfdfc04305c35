"""What the system refuses is told as such, by every command; the rest is a fault of mlxzo."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from mlxzo.cli.main import main
from mlxzo.core.errors import ConfigError
from mlxzo.core.failures import as_error


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "the disk has no room for the run"),
        (OSError(errno.EFBIG, "File too large", "/a"), 3, "no room"),
        (MemoryError(), 3, "there is not enough memory"),
        (RuntimeError("[malloc] Unable to allocate 99 bytes."), 3, "not enough memory: [malloc] Unable to allocate"),
        (RuntimeError("can't start new thread"), 3, "not enough memory"),
        (ImportError("a.so: failed to map segment from shared object"), 3, "not enough memory"),
        (OSError(errno.EMFILE, "Too many open files", "/a"), 4, "/a: Too many open files"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"/a\xff"), 4, "/a\udcff: File name too long"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 4, "/a: Permission denied"),
        (ConfigError("wrong"), 2, "wrong"),
    ],
)
def test_what_the_system_refuses_is_told(error, code, says):
    found = as_error(error, "the run")
    assert found is not None and found.exit_code == code and says in found.message


def test_a_fault_of_mlxzo_is_none_of_these():
    assert as_error(ZeroDivisionError("division by zero")) is None
    assert as_error(OSError("without a number")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["train", "--model", "none", "--json"]])
def test_output_that_cannot_be_written_is_told_on_stderr(arguments, monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = main(arguments)
        # Python flushes it once more at exit.
        full.flush()
    assert code == (3 if arguments[0] == "models" else 4)
    assert ("no room" if code == 3 else "there is no model") in capsys.readouterr().err
