"""The README's first commands, in an empty folder that holds a copy of the tracked files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def first_commands() -> list[str]:
    """The lines of the README's first block: the main job, then the tests."""
    return (ROOT / "README.md").read_text().split("```")[1].strip().splitlines()


def test_the_first_block_has_one_line_for_the_main_job_and_one_for_the_tests():
    main_job, tests = first_commands()
    assert main_job.endswith("mlxzo quickstart") and tests.endswith("-m pytest")


def test_its_links_lead_to_files_of_the_repository():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).is_file()] == []


@pytest.fixture
def clone(tmp_path) -> Path:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "narrowed", "shown"),
    [
        (0, "", "state kept"),
        # The whole suite would run within itself: a selection in its place.
        (1, " tests/zo/test_noise.py -n 0", " passed"),
    ],
    ids=["main job", "tests"],
)
def test_each_line_does_all_its_set_up_and_its_job(clone, monkeypatch, number, narrowed, shown):
    # What surrounds this test is no part of a fresh machine.
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    folders = os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv("PATH", os.pathsep.join(each for each in folders if not (Path(each) / "mlxzo").exists()))
    command = first_commands()[number] + narrowed
    done = subprocess.run(command, shell=True, cwd=clone, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    if number == 0:
        # The commands that it ends with work as they are printed.
        commands = done.stdout.split("Next, try:\n")[1].splitlines()
        assert [each.split("mlxzo ")[-1].split()[0] for each in commands] == ["generate", "predict", "export"]
        for each in commands:
            subprocess.run(each, shell=True, cwd=clone, check=True, timeout=600)
