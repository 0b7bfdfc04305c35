"""Small things with files that hold while others change them."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
from pathlib import Path

import pytest

import mlxzo
from mlxzo.core.errors import ConfigError
from mlxzo.core.files import folder_contents, mlxzo_home, sync_to_disk, user_path, write_atomic


def test_a_folder_is_measured_while_others_remove_what_is_in_it(tmp_path, monkeypatch):
    for name in ("kept/a.bin", "removed/b.bin"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "kept" / "link").symlink_to("a.bin")
    assert folder_contents(tmp_path) == (10, 2)
    assert folder_contents(tmp_path / "nowhere") == (0, 0)

    scan = os.scandir

    def scan_late(path):
        """The folder has gone between being named and being opened."""
        if str(path).endswith("removed"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_late)
    assert folder_contents(tmp_path) == (5, 1)


@pytest.mark.parametrize("written", ["{}", "{} ", "'{}'", '"{}" ', "escaped"])
def test_a_folder_dropped_on_a_terminal_is_found(tmp_path, written):
    folder = tmp_path / "My Данные's (2)"
    folder.mkdir()
    text = re.sub(r"([ '()])", r"\\\1", str(folder)) if written == "escaped" else written.format(folder)
    if written == "'{}'":
        text = shlex.quote(str(folder))
    assert user_path(text) == folder


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\\ b", "it's", "x" * 5000, "a\0b", "two words"])
def test_a_path_that_does_not_exist_stays_as_it_is_written(text):
    assert str(user_path(text)) == text


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)
    assert user_path("~/x") == Path("~/x")
    monkeypatch.setenv("MLXZO_HOME", str(tmp_path))
    assert mlxzo_home() == tmp_path
    monkeypatch.delenv("MLXZO_HOME")
    with pytest.raises(ConfigError, match="no home folder") as caught:
        mlxzo_home()
    assert "MLXZO_HOME" in caught.value.fix


def test_on_a_mac_the_disk_flushes_its_own_cache_too(mac, monkeypatch, tmp_path):
    flushed, synced = [], []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: flushed.append(command))
    monkeypatch.setattr(os, "fsync", synced.append)
    write_atomic(tmp_path / "a", "whole")
    # The file, and the folder with its name.
    assert (flushed, synced) == ([51, 51], [])

    def unknown(descriptor, command):
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "fcntl", unknown)
    sync_to_disk(7)
    assert synced == [7]


def test_nothing_else_flushes_to_the_disk():
    package = Path(mlxzo.__file__).parent
    found = {path.name for path in package.rglob("*.py") if "os.fsync(" in path.read_text(encoding="utf-8")}
    assert found == {"files.py"}
