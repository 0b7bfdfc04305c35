"""Child processes: their pipes and the signals that end them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlxzo.cli.distributed import rank_command
from mlxzo.core.child_process import module_command, pipe, signal_name, worker_environment


@pytest.mark.parametrize("number, name", [(9, "SIGKILL"), (15, "SIGTERM"), (50, "signal 50")])
def test_every_signal_has_a_name(number, name):
    assert signal_name(number) == name


def test_a_pipe_that_was_not_asked_for_is_an_error():
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        assert pipe(child.stdout).read() == b""
        with pytest.raises(ValueError):
            pipe(child.stdin)


@pytest.mark.parametrize("command", [module_command("mlxzo", "--version"), rank_command(["--help"])])
def test_a_module_in_the_current_folder_is_not_run(command, tmp_path):
    for name in ("json", "numpy", "yaml"):
        (tmp_path / f"{name}.py").write_text("open('run', 'w')\n")
    done = subprocess.run(command, cwd=tmp_path, env=worker_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
