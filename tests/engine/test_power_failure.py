"""Files of different ages, as a power failure leaves them: the run goes on to the same bits and the right best step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import DataError
from mlxzo.core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RunDirectory
from mlxzo.engine import checkpoints
from mlxzo.engine.checkpoint_file import saved_step
from mlxzo.zo.journal import RECORD_BYTES, steps_in
from tests.engine.in_process import StoppedError, fit
from tests.engine.test_resume import METHODS, check_totals, told
from tests.variants import slow

pytestmark = pytest.mark.device

STEPS = 18


def begin(model: Path, data: Path, out: Path, method: str, name: str) -> RunDirectory:
    return RunDirectory.create(
        RunConfig(
            model=str(model),
            task="custom",
            data=str(data),
            out=str(out),
            name=name,
            steps=STEPS,
            eval_every=5,
            **{"batch_size": 8, **METHODS[method]},
        ).resolved()
    )


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """The result of each method, trained in one go."""
    found = {}

    def result(method: str) -> dict:
        if method not in found:
            found[method] = told(fit(begin(model, data, tmp_path_factory.mktemp("whole"), method, "whole")))
        return found[method]

    return result


@pytest.fixture
def synced(monkeypatch) -> dict[int, int]:
    """By inode, the bytes of each file that have reached the disk."""
    sizes: dict[int, int] = {}

    def fsync(descriptor: int, fsync=os.fsync) -> None:
        fsync(descriptor)
        sizes[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", fsync)
    return sizes


def lose(run: RunDirectory, synced: dict[int, int], zeros: bool) -> int:
    """Takes from all files what has not reached the disk, or turns it into zeros; returns the bytes."""
    lost = 0
    for path in [path for path in run.path.rglob("*") if path.is_file()]:
        size, kept = path.stat().st_size, synced.get(path.stat().st_ino, 0)
        lost += size - kept
        os.truncate(path, kept)
        if zeros:
            os.truncate(path, size)
    return lost


@pytest.mark.parametrize(
    ("method", "failures"),
    [("mezo", (4, 12)), slow("mezo", (2, 7, 10, 13, 17)), slow("rsgn", (4, 12)), slow("bp", (4, 12))],
)
def test_power_failures_cost_a_few_steps_and_nothing_else(method, failures, model, data, tmp_path, synced, whole):
    run = begin(model, data, tmp_path, method, "run")
    for number, until in enumerate(failures):
        with pytest.raises(StoppedError):
            fit(run, until)
        assert lose(run, synced, zeros=bool(number % 2))
    result = fit(run)
    assert told(result) == whole(method)
    check_totals(run, result)


def events_lost(run: RunDirectory) -> None:
    run.events_path.write_bytes(b"")


def last_evaluation_lost(run: RunDirectory) -> None:
    lines = run.events_path.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if '"evaluated"' in line)
    run.events_path.write_text("".join(lines[:last]))


def best_state_lost(run: RunDirectory) -> None:
    (run.path / BEST_STATE).unlink()


def journal_behind_the_states(run: RunDirectory) -> None:
    with (run.path / JOURNAL).open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 10 * RECORD_BYTES)
    assert steps_in(run.path / JOURNAL) < saved_step(run.path / BEST_STATE) < saved_step(run.path / LAST_STATE)


def snapshot_damaged(run: RunDirectory) -> None:
    (run.path / LAST_STATE).write_bytes(b"nothing")


LOSSES = (events_lost, last_evaluation_lost, best_state_lost, journal_behind_the_states, snapshot_damaged)


@pytest.fixture(scope="module")
def interrupted(model, data, tmp_path_factory):
    """Copies of a run of each method that ended after step 14, with a snapshot of step 13."""
    runs: dict[str, RunDirectory] = {}

    def copy(method: str, to: Path) -> RunDirectory:
        if method not in runs:
            run = runs[method] = begin(model, data, tmp_path_factory.mktemp("interrupted"), method, "run")
            with pytest.MonkeyPatch.context() as patched, pytest.raises(StoppedError):
                patched.setattr(checkpoints, "_SECONDS", 0.0)
                patched.setattr(checkpoints, "_SHARE", float("inf"))
                fit(run, 14)
            assert saved_step(run.path / LAST_STATE) == 13 and saved_step(run.path / BEST_STATE) == 10
        return RunDirectory(shutil.copytree(runs[method].path, to / "run"))

    return copy


@pytest.mark.parametrize(
    ("method", "loss"),
    [*(("mezo", loss) for loss in LOSSES), *(slow("bp", loss) for loss in LOSSES[:2])],
)
def test_a_lost_file_is_made_up_for(method, loss, interrupted, tmp_path, whole):
    run = interrupted(method, tmp_path)
    loss(run)
    result = told(fit(run))
    if method == "bp":
        # The losses of the steps were in the events alone.
        result["training_loss"] = whole(method)["training_loss"]
    assert result == whole(method)
    assert saved_step(run.path / BEST_STATE) == result["best"]["step"]


def test_a_run_whose_journal_was_removed_is_refused(interrupted, tmp_path):
    run = interrupted("mezo", tmp_path)
    (run.path / JOURNAL).unlink()
    with pytest.raises(DataError, match=r"journal\.bin is missing"):
        fit(run)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_whose_folder_is_renamed_under_it_ends_and_goes_on_where_it_is(replaced, model, data, tmp_path, whole):
    run = begin(model, data, tmp_path / "runs", "mezo", "run")
    moved = tmp_path / "runs" / "moved"

    def move() -> None:
        run.path.rename(moved)
        if replaced:
            run.path.mkdir()

    with pytest.raises(DataError, match="removed or renamed"):
        fit(run, 7, move)
    assert run.path.exists() == replaced and list(run.path.glob("*")) == []
    assert told(fit(RunDirectory(moved))) == whole("mezo")
