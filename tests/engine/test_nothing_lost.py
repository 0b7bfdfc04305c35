"""Whatever ends a run, at whatever moment: it goes on, and ends with the bits that it would have had."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from mlxzo.core import events
from mlxzo.core.child_process import worker_environment
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import JOURNAL, LAST_STATE, RunDirectory
from mlxzo.engine.export import replay_job
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.zo import inplace
from mlxzo.zo.journal import RECORD_BYTES, JournalWriter, read
from tests.command import mlxzo
from tests.engine.examples import BATCHES
from tests.engine.test_resume import check_totals, told
from tests.variants import slow
from tests.warm_workers import ForkedWorker, popen
from tests.zo.test_replay import CASES, mezo, same_bits, trained

pytestmark = pytest.mark.device

KILLS = 20
WORKER, EAGER_WORKER = "mlxzo.runtime.worker", "tests.eager_worker"


@contextlib.contextmanager
def worker(run: RunDirectory, module: str = WORKER) -> Iterator[tuple[subprocess.Popen | ForkedWorker, IO[bytes]]]:
    """A worker that begins a run or resumes it, with the file of its errors; killed at the end if it has not ended."""
    resume = ["--resume"] if run.events_path.exists() else []
    command = [sys.executable, "-P", "-m", module, str(run.path), *resume]
    with tempfile.TemporaryFile() as errors, Path(os.devnull).open("wb") as nothing:
        process = popen(command, stdout=nothing.fileno(), stderr=errors, env=worker_environment())
        try:
            yield process, errors
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def said(errors: IO[bytes]) -> bytes:
    errors.seek(0)
    return errors.read()


def steps_done(run: RunDirectory) -> int:
    with contextlib.suppress(OSError, ValueError):
        return len(read(run.path / JOURNAL))
    return 0


def to_the_end(run: RunDirectory) -> dict:
    with worker(run) as (process, errors):
        assert process.wait() == 0, (run.last_event(events.Failed), said(errors))
    return run.result()


def kill_at_random(run: RunDirectory, random_: random.Random, after: int, within: float) -> None:
    """Kills a worker: while it loads, or `within` so many seconds after the journal holds step `after`."""
    with worker(run, random_.choice((WORKER, EAGER_WORKER))) as (process, errors):
        if random_.random() < 0.15:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random_.uniform(0.0, 5.0))
            return
        before = steps_done(run)
        while process.poll() is None and steps_done(run) < max(after, before + 1):
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random_.uniform(0.0, within))
        assert process.poll() in (None, 0), said(errors)


def judged_task(folder: Path) -> str:
    """A task whose judge likes short answers."""
    path = folder / "short.yaml"
    path.write_text(
        "name: short\ndescription: short answers\ntemplate: '{text}'\n"
        "reward:\n  - {kind: length, unit: characters, most: 60}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    "name, options, steps, within",
    [
        slow("tiny", {"scope": "full", "lr": 1e-3}, 300, 0.05),
        slow("tiny", {"scope": "lora", "queries": 3}, 200, 0.05),
        slow("tiny", {"scope": "norms", "queries": 2, "objective": "reward", "pull": 0.05}, 160, 0.05),
        pytest.param("smollm2-135m", {"scope": "lora", "lr": 1e-3}, 44, 0.5, marks=pytest.mark.long),
        pytest.param("smollm2-135m", {"scope": "last-6", "lr": 1e-3}, 44, 0.5, marks=pytest.mark.long),
    ],
)
def test_a_run_killed_at_20_random_moments_ends_as_the_uninterrupted_one(
    name,
    options,
    steps,
    within,
    model,
    data,
    tmp_path,
):
    config = RunConfig(
        model=str(model) if name == "tiny" else name,
        task=judged_task(tmp_path) if "objective" in options else "custom",
        data=str(data),
        **options,
        steps=steps,
        batch_size=2,
        train_examples=24,
        validation_examples=4,
        test_examples=4,
        eval_every=10,
        out=str(tmp_path),
    )
    expected = to_the_end(RunDirectory.create(replace(config, name="whole").resolved()))
    run = RunDirectory.create(replace(config, name="killed").resolved())
    random_ = random.Random(config.scope)
    for kill in range(KILLS):
        kill_at_random(run, random_, after=2 * kill + 1, within=within)
    assert run.result() is None and steps_done(run) >= KILLS
    result = to_the_end(run)
    assert told(result) == told(expected)
    check_totals(run, result)


def test_a_kill_between_journal_and_snapshot_loses_nothing(model, data, tmp_path):
    config = RunConfig(
        model=str(model),
        task="custom",
        data=str(data),
        scope="full",
        steps=12,
        eval_every=4,
        batch_size=4,
        estimator="spsa",
    )
    expected = to_the_end(RunDirectory.create(replace(config, out=str(tmp_path), name="whole").resolved()))
    run = RunDirectory.create(replace(config, out=str(tmp_path), name="killed").resolved())
    for until in (3, 7):
        with worker(run, EAGER_WORKER) as (process, _):
            while process.poll() is None and steps_done(run) < until:
                time.sleep(0.002)
    assert (run.path / LAST_STATE).exists()
    assert to_the_end(run)["final_sha256"] == expected["final_sha256"]


ANY_BYTE = range(1, RECORD_BYTES + 1)


@pytest.mark.parametrize(
    ("case", "made_again"),
    [
        # With the record of weight decay, the last one of a step.
        ("weight decay", (1, RECORD_BYTES // 2, RECORD_BYTES)),
        *(slow(case, ANY_BYTE) for case in ("weight decay", "full float32", "two directions")),
    ],
)
def test_a_record_torn_at_any_byte_is_made_again(case, made_again, tmp_path):
    batch = BATCHES["single"]()
    whole = mezo(*CASES[case])
    whole.journal = JournalWriter(tmp_path / "whole", whole.header("ab" * 32))
    for step in range(3):
        whole.step(step, batch)
    whole.journal.close()
    written = (tmp_path / "whole").read_bytes()
    for torn in ANY_BYTE:
        path = tmp_path / f"torn{torn}"
        path.write_bytes(written[:-torn])
        journal = read(path)
        assert len(journal) == 2
        if torn not in made_again:
            continue
        again: MeZO = mezo(*CASES[case])
        again.resume(journal, 0)
        again.journal = JournalWriter(path, journal.header, after=journal)
        again.step(2, batch)
        again.journal.close()
        assert same_bits(trained(again), trained(whole)) and path.read_bytes() == written


@pytest.mark.parametrize(
    "more",
    [
        {"MLX_DISABLE_COMPILE": "1", "OPENBLAS_NUM_THREADS": "2"},
        slow({"MLX_DISABLE_COMPILE": "1"}),
        slow({"OPENBLAS_NUM_THREADS": "2"}),
    ],
)
def test_the_bits_do_not_depend_on_compilation_threads_or_chunks(more, model, data, tmp_path, monkeypatch):
    config = RunConfig(
        model=str(model), task="custom", data=str(data), estimator="spsa", scope="full", steps=5, batch_size=4
    )
    run = RunDirectory.create(replace(config, out=str(tmp_path), name="run").resolved())
    expected = to_the_end(run)["final_sha256"]
    program = f"""if True:
        from mlxzo.core.mlx_startup import prepare_mlx
        prepare_mlx()
        from pathlib import Path
        from mlxzo.zo import inplace
        import os
        inplace.CHUNK_BYTES = 16_000_000
        from mlxzo.engine.export import replay_job
        done = replay_job(Path({str(run.path / JOURNAL)!r}), model=None, form="adapter", out=Path(os.environ["OUT"]),
                          dequantise=False, on_event=lambda event: None)
        print(done["sha256"])
    """
    environment = {**worker_environment(), "OUT": str(tmp_path / "apart"), **more}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split()[-1:] == [expected], done.stderr
    monkeypatch.setattr(inplace, "CHUNK_BYTES", 3000)
    options = {"model": None, "form": "adapter", "dequantise": False, "on_event": lambda event: None}
    assert replay_job(run.path / JOURNAL, out=tmp_path / "chunks", **options)["sha256"] == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, as root may mount one; elsewhere these tests do not run."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs a small file system, which only root can mount")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fills a disk but for so many bytes; returns the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    if leave:
        os.truncate(filler, filler.stat().st_size - leave)
    return filler


@pytest.mark.parametrize("scope, eager", [("full", False), slow("full", True), ("norms/last-1", True)])
def test_a_disk_that_fills_up_in_the_middle_of_a_run_costs_nothing(scope, eager, model, data, tmp_path, small_disk):
    """Journal and events without snapshots; snapshots too large for what is left; and small ones that still fit."""
    config = RunConfig(
        model=str(model), task="custom", data=str(data), estimator="spsa", scope=scope, steps=4000, batch_size=4
    )
    config = replace(
        config, schedule="constant", eval_every=4000, train_examples=16, validation_examples=4, test_examples=4
    )
    run = RunDirectory.create(replace(config, out=str(small_disk), name="full").resolved())
    with worker(run, EAGER_WORKER if eager else WORKER) as (process, errors):
        while steps_done(run) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        filler = fill(small_disk)
        assert process.wait(120) == 3 and b"Traceback" not in said(errors)
    done = steps_done(run)
    assert 3 <= done < 4000
    filler.unlink()
    # The same number of steps in one go, on a disk with room.
    few = replace(run.config, steps=done + 3)
    whole = RunDirectory.create(replace(few, out=str(tmp_path), name="whole"))
    run.update_config(few)
    assert to_the_end(run)["final_sha256"] == to_the_end(whole)["final_sha256"]


def test_a_disk_that_is_full_leaves_no_half_of_an_export(model, data, tmp_path, small_disk):
    config = RunConfig(
        model=str(model), task="custom", data=str(data), estimator="spsa", scope="full", steps=2, batch_size=4
    )
    run = RunDirectory.create(replace(config, out=str(tmp_path), name="run").resolved())
    to_the_end(run)
    filler = fill(small_disk, leave=100_000)
    for form in ("adapter", "fused", "journal"):
        if form == "journal":
            filler.unlink()
            filler = fill(small_disk)
        done = export(run, form, small_disk / form)
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        assert [path.name for path in small_disk.iterdir()] == ["filler"]
    filler.unlink()
    for form in ("adapter", "fused", "journal"):
        assert export(run, form, small_disk / form).returncode == 0


def export(run: RunDirectory, form: str, out: Path) -> subprocess.CompletedProcess[str]:
    return mlxzo("export", run.path, "--to", form, "--out", out)
