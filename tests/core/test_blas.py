"""The fast BLAS on Linux: found, fast, chosen by the user, and loaded by many processes at once."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux needs a BLAS of its own")

LOAD = "from mlxzo.core.blas import load_fast_blas; print(load_fast_blas())"


def load(home, **environment):
    environment = {**os.environ, "MLXZO_HOME": str(home), **environment}
    return subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env=environment)


def test_a_fast_blas_is_in_place_in_this_process():
    from mlxzo.core.blas import load_fast_blas

    assert load_fast_blas() == load_fast_blas() is not None


def test_many_processes_at_once_make_the_same_links(tmp_path):
    command = [sys.executable, "-c", LOAD]
    environment = {**os.environ, "MLXZO_HOME": str(tmp_path)}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    answers = {process.communicate()[0] for process in processes}
    assert len(answers) == 1 and "openblas" in answers.pop()
    assert [path for path in tmp_path.rglob("*") if path.is_symlink() and not path.exists()] == []


def test_a_home_that_cannot_be_written_does_not_matter(tmp_path):
    home = tmp_path / "file"
    home.write_text("")
    assert "openblas" in load(home).stdout


def test_links_that_point_nowhere_are_mended(tmp_path):
    assert "openblas" in load(tmp_path).stdout
    for link in [path for path in tmp_path.rglob("*") if path.is_symlink()]:
        link.unlink()
        link.symlink_to(tmp_path / "gone")
    assert "openblas" in load(tmp_path).stdout


def test_the_user_may_choose(tmp_path):
    assert load(tmp_path, MLXZO_BLAS="none").stdout == "None\n"
    refused = load(tmp_path, MLXZO_BLAS=str(tmp_path / "lib.so"))
    assert refused.returncode != 0 and "cannot be loaded as a shared library" in refused.stderr


def test_it_refuses_to_come_too_late(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import mlx.core\n" + LOAD], capture_output=True, text=True)
    assert "must be called before mlx.core is imported" in done.stderr
