"""Small things with files that hold while others change them."""

from __future__ import annotations

import os

from mlxzo.core.files import folder_contents


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
