"""Run directories: names, collisions, escapes, damage, full and read-only disks, and what a run's status says."""

import fcntl
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mlxzo import __version__
from mlxzo.core import events, run_migrations
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, DoesNotFit
from mlxzo.core.run_directory import RunDirectory, list_runs

FINISHED = events.Finished({"steps": 1})
FAILED = events.Failed("Data", "wrong", "", [], 4)
INTERRUPTED = events.Failed("Interrupted", "stopped", "", [], 130)
DIED = events.Failed("Worker died", "killed", "", [], 3)
PHASE = events.Phase("train")


def make(tmp_path, **options):
    return RunDirectory.create(RunConfig(out=str(tmp_path / "runs"), **options))


def log(run, *found, tail=""):
    run.events_path.write_text("".join(events.to_json(event, time.time()) + "\n" for event in found) + tail)


def test_a_new_run_holds_its_resolved_configuration(tmp_path):
    run = make(tmp_path, scope="lora", seed=3)
    assert run.config == RunConfig(out=str(tmp_path / "runs"), scope="lora", seed=3).resolved()
    assert run.id.startswith("smollm2-135m-reviews-mezo-lora-s3-")
    assert run.result() is None and list(run.events()) == []


def test_runs_begun_in_the_same_second_get_folders_of_their_own(tmp_path):
    assert len({make(tmp_path).path for _ in range(5)}) == 5


def test_a_name_that_is_taken_is_refused_and_the_older_run_kept(tmp_path):
    make(tmp_path, name="mine", steps=3)
    with pytest.raises(ConfigError, match="mine exists already"):
        make(tmp_path, name="mine", steps=4)
    assert RunDirectory.open("mine", tmp_path / "runs").config.steps == 3


@pytest.mark.parametrize("model", ["../../etc/passwd", "/abs/olute/", "a b/c\nd", "..", "é" * 300])
def test_no_model_name_leads_out_of_the_folder(tmp_path, model):
    run = make(tmp_path, model=model)
    assert run.path.parent == tmp_path / "runs"
    assert len(run.id) <= 100 and run.id.isascii() and run.config.model == model


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 101, "a\nb"])
def test_a_name_of_the_users_cannot_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="name"):
        make(tmp_path, name=name)


def test_open_takes_an_id_or_a_path_and_names_the_nearest(tmp_path, monkeypatch):
    run = make(tmp_path, name="first")
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.open("first").path == RunDirectory.open("runs/first").path == run.path
    with pytest.raises(ConfigError, match="did you mean first"):
        RunDirectory.open("frist")
    with pytest.raises(ConfigError, match="no run directory"):
        RunDirectory.open("/etc")


def test_damaged_folders_do_not_hide_the_others(tmp_path):
    make(tmp_path, name="good")
    root = tmp_path / "runs"
    for name, content in (("torn", b"steps: [1,"), ("binary", b"\xff\x00"), ("other", b"nope: 1\n")):
        (root / name).mkdir()
        (root / name / "config.yaml").write_bytes(content)
        (root / name / "events.jsonl").write_bytes(b"\xff\xfe{{{")
        (root / name / "result.json").write_bytes(b"[1]")
    (root / "empty").mkdir()
    (root / "file").write_text("x")
    (root / "dangling").symlink_to(root / "gone")
    found = {run.id: run for run in list_runs(root)}
    assert set(found) == {"good", "torn", "binary", "other"}
    assert all(run.status == "died" and run.result() is None for run in found.values())
    with pytest.raises(ConfigError):
        _ = found["torn"].config


def pipe(path):
    os.mkfifo(path)


def endless_link(path):
    path.symlink_to(path.name)


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make_it", [pipe, endless_link, device])
@pytest.mark.parametrize("name", ["config.yaml", "events.jsonl", "result.json", "schema.json", "worker.lock", "x.bin"])
def test_what_is_no_file_is_not_opened_and_hides_no_other_run(tmp_path, make_it, name):
    good, bad = make(tmp_path, name="good"), make(tmp_path, name="bad")
    for run in (good, bad):
        log(run, INTERRUPTED)
    (bad.path / name).unlink(missing_ok=True)
    make_it(bad.path / name)
    found = {run.id: run for run in list_runs(tmp_path / "runs")}
    assert set(found) == {"good", "bad"} and found["good"].status == "interrupted"
    assert found["bad"].status in ("interrupted", "died") and len(list(found["bad"].events())) <= 1
    with pytest.raises(ConfigError, match=rf"{name} (cannot be read|is no)"):
        _ = found["bad"].config


def test_no_folder_means_no_runs_and_a_file_is_an_error(tmp_path):
    assert list_runs(tmp_path / "none") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        list_runs(tmp_path / "file")


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], "died"),
        ([PHASE], "died"),
        ([PHASE, FINISHED], "finished"),
        ([PHASE, FINISHED, events.Note("bye")], "finished"),
        ([PHASE, FAILED], "failed"),
        ([PHASE, INTERRUPTED], "interrupted"),
        ([PHASE, DIED], "died"),
        ([PHASE, INTERRUPTED, PHASE], "died"),
    ],
)
def test_status_follows_from_the_last_events(tmp_path, found, status):
    run = make(tmp_path)
    log(run, *found)
    assert run.status == status


def test_a_result_is_the_end_of_a_run_even_without_its_event(tmp_path):
    """The worker was killed between the two, or a resumption was refused since."""
    run = make(tmp_path)
    run.write_json("result.json", {"steps": 3})
    for last in (PHASE, FAILED):
        log(run, PHASE, last)
        assert run.status == "finished"
        assert run.outcome is not None and run.outcome[0] == events.Finished({"steps": 3})


@pytest.mark.parametrize(
    ("options", "made", "counts"),
    [
        ({"steps": 12}, None, (0, 12)),
        ({"steps": 12}, {"steps": 3}, (3, 3)),
        ({"max_seconds": 60.0}, None, (0, None)),
        ({"max_seconds": 60.0}, {"steps": 3}, (3, 3)),
        ({"steps": 12}, {"steps": "three"}, (0, 12)),
        ({"steps": 12}, [3], (0, 12)),
    ],
)
def test_steps_are_told_beside_a_limit_where_steps_are_one_and_as_made_once_the_run_has_ended(
    tmp_path, options, made, counts
):
    run = RunDirectory.create(RunConfig(**options, out=str(tmp_path)))
    if made is not None:
        run.write_json("result.json", made)
    assert run.step_counts() == counts


def test_a_torn_last_line_does_not_hide_the_one_before(tmp_path):
    run = make(tmp_path)
    log(run, PHASE, FINISHED, tail='{"event": "note", "ti')
    assert run.status == "finished"
    assert [event for event, _ in run.events()] == [PHASE, FINISHED]


def test_status_is_found_behind_a_last_line_longer_than_the_tail_that_is_read(tmp_path):
    run = make(tmp_path)
    log(run, PHASE, events.Finished({"history": list(range(50_000))}))
    assert run.status == "finished"


def test_a_run_is_running_for_as_long_as_somebody_holds_its_lock(tmp_path):
    run = make(tmp_path)
    with run.lock_path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run.status == "running"
    assert run.status == "died"


def test_writing_replaces_a_file_in_one_step_and_leaves_nothing_beside_it(tmp_path):
    run = make(tmp_path)
    run.write_json("result.json", {"a": "é"})
    run.write_json("result.json", {"a": 2})
    assert run.result() == {"a": 2}
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "result.json", "schema.json"]


def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path):
    run = make(tmp_path)
    run.write_json("result.json", {"old": True})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DoesNotFit) as caught:
            run.write_json("result.json", {"new": "x" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 3 and "--out" in caught.value.fix
    assert json.loads((run.path / "result.json").read_text()) == {"old": True}
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "result.json", "schema.json"]


def test_a_run_that_has_no_room_leaves_nothing_and_does_not_keep_its_name(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DoesNotFit):
            make(tmp_path, name="r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "runs").iterdir()) == []
    assert make(tmp_path, name="r").id == "r"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"the run cannot be written") as caught:
        make(tmp_path)
    assert "--out" in caught.value.fix


def test_a_read_only_folder_is_a_clear_error():
    # In a child without root's rights, since root may write anywhere.
    program = (
        "import os, sys\n"
        "from mlxzo.core.config import RunConfig\nfrom mlxzo.core.errors import ConfigError\n"
        "from mlxzo.core.run_directory import RunDirectory\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: RunDirectory.create(RunConfig(out=sys.argv[1]))\n"
        "except ConfigError as error: print(error.message)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert "cannot be written" in done.stdout, done


def test_a_run_without_a_version_is_of_the_first_and_a_new_one_names_its_own(tmp_path):
    run = make(tmp_path, name="r")
    assert json.loads((run.path / "schema.json").read_text()) == {
        "version": run_migrations.VERSION,
        "mlxzo": __version__,
    }
    (run.path / "schema.json").unlink()
    assert run_migrations.version_of(run.path) == 1
    assert RunDirectory.open("r", tmp_path / "runs").config.name == "r"


def test_a_run_of_a_newer_version_is_refused_by_name_with_what_to_upgrade_to(tmp_path):
    run = make(tmp_path, name="r")
    (run.path / "schema.json").write_text('{"version": 999, "mlxzo": "9.1"}')
    with pytest.raises(ConfigError, match="run r has files of version 999") as caught:
        RunDirectory.open("r", tmp_path / "runs")
    assert caught.value.fix == "upgrade mlxzo to 9.1 or later"
    # It is listed all the same.
    (listed,) = list_runs(tmp_path / "runs")
    with pytest.raises(ConfigError, match="version 999"):
        _ = listed.config


@pytest.fixture
def version_3(monkeypatch):
    """A program of version 3: in 2 an option got another name, in 3 another value."""

    def renamed(run):
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("rounds:", "steps:"))

    def doubled(run):
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("steps: 5", "steps: 10"))

    monkeypatch.setattr(run_migrations, "VERSION", 3)
    monkeypatch.setattr(run_migrations, "MIGRATIONS", {1: renamed, 2: doubled})


def old_run(tmp_path, version, text):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    if version > 1:
        (folder / "schema.json").write_text(json.dumps({"version": version, "mlxzo": "0.1"}))
    return folder


@pytest.mark.parametrize(("version", "text"), [(1, "rounds: 5\n"), (2, "steps: 5\n"), (3, "steps: 10\n")])
def test_older_runs_are_brought_up_to_date_step_by_step_and_once(tmp_path, version_3, version, text):
    folder = old_run(tmp_path, version, text)
    for _ in range(2):
        assert RunDirectory.open("old", tmp_path / "runs").config.steps == 10
    assert run_migrations.version_of(folder) == 3 and list_runs(tmp_path / "runs")[0].config.steps == 10


def test_a_run_that_an_older_program_is_running_is_not_changed_under_it(tmp_path, version_3):
    folder = old_run(tmp_path, 1, "rounds: 5\n")
    with (folder / "worker.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="an older mlxzo is running old"):
            RunDirectory.open("old", tmp_path / "runs")
    assert (folder / "config.yaml").read_text() == "rounds: 5\n"
    assert RunDirectory.open("old", tmp_path / "runs").config.steps == 10


def test_a_lock_is_one_processes_and_is_not_taken_on_a_run_that_was_removed(tmp_path):
    run = make(tmp_path, name="r")
    with run.held() as lock:
        assert lock is not None and run.claim() is None and run.status == "running"
        with pytest.raises(ConfigError, match="is running"):
            run.remove()
    run.remove()
    assert not run.path.exists()
    with pytest.raises(ConfigError):
        run.claim()


def test_removing_a_run_leaves_what_its_links_lead_to(tmp_path):
    run = make(tmp_path, name="r")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (run.path / "link").symlink_to(tmp_path / "mine")
    run.remove()
    assert not run.path.exists() and (tmp_path / "mine" / "thesis.tex").exists()
