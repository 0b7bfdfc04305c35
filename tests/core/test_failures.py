"""What the system refuses is told as such, by every command; the rest is a fault of mlxzo."""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path

import pytest

from mlxzo.cli.main import main
from mlxzo.core.errors import ConfigError, DoesNotFit
from mlxzo.core.failures import as_error
from tests.tiny import tiny_folder

TOO_LARGE = "Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size of 8 bytes."
PRIOR = "Ignored (for causing prior/excessive GPU errors)"


def metal(words: str, number: str, name: str) -> RuntimeError:
    """An error of Metal as MLX raises it, from the system's description."""
    reason = f"{words} ({number}:kIOGPUCommandBufferCallbackError{name})"
    return RuntimeError(f"[METAL] Command buffer execution failed: {reason}.")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("not allowed to raise maximum limit"), 4, "the limit of open files is too low"),
        (RuntimeError("OpenBLAS error: Memory allocation still failed after 10 retries"), 3, "not enough memory"),
        (RuntimeError("filesystem error: temp_directory_path: No such file or directory"), 4, "TMPDIR is"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "the disk has no room for the run"),
        (OSError(errno.EFBIG, "File too large", "/a"), 3, "no room"),
        (MemoryError(), 3, "there is not enough memory"),
        (RuntimeError("[malloc] Unable to allocate 99 bytes."), 3, "not enough memory: [malloc] Unable to allocate"),
        (
            RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
            3,
            "not enough memory: [metal::",
        ),
        (RuntimeError(f"[metal::malloc] {TOO_LARGE}"), 3, "not enough memory"),
        (RuntimeError("cudaMallocAsync failed: out of memory"), 3, "not enough memory"),
        (metal("Insufficient Memory", "00000008", "OutOfMemory"), 3, "there is not enough memory"),
        (metal("Impacting Interactivity", "0000000e", "ImpactingInteractivity"), 3, "kept the display waiting"),
        (
            metal("Caused GPU Timeout Error", "00000002", "Timeout"),
            3,
            "since it took too long",
        ),
        (metal("Caused GPU Hang Error", "00000003", "Hang"), 3, "since it took too long"),
        (metal(PRIOR, "00000004", "SubmissionsIgnored"), 3, "since earlier work of this process had failed"),
        (metal("Caused GPU Address Fault Error", "0000000b", "PageFault"), 3, "macOS ended the work on the GPU"),
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


@pytest.mark.parametrize("error", [metal("Insufficient Memory", "00000008", "OutOfMemory"), metal("", "2", "Timeout")])
@pytest.mark.parametrize("command", ["evaluate", "generate", "predict", "export", "replay"])
def test_every_command_tells_a_failure_of_the_gpu(command, error, monkeypatch, capsys):
    module = importlib.import_module(f"mlxzo.cli.commands.{command}")
    monkeypatch.setattr(module, "add_arguments", lambda parser: None)
    monkeypatch.setattr(module, "run", lambda arguments: raising(error))
    assert main(["eval" if command == "evaluate" else command]) == 3
    assert "--micro-batch" in capsys.readouterr().err


def raising(error: Exception) -> None:
    raise error


def test_a_model_is_not_blamed_for_the_machine(monkeypatch, tmp_path):
    from mlxzo.models import loading

    folder = tiny_folder(tmp_path / "model")
    monkeypatch.setattr(loading.mx, "eval", lambda *_: raising(metal("Insufficient Memory", "00000008", "OutOfMemory")))
    with pytest.raises(DoesNotFit):
        loading.load_model(folder)


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
