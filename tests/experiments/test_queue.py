"""Runs one after the other and side by side: what is skipped, begun, gone on with, waited for and stopped."""

import fcntl
import subprocess
import sys
import textwrap

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import JOURNAL, RunDirectory
from mlxzo.experiments import queue
from mlxzo.experiments.queue import DurationEstimate, Ended, RunQueue, changes, makespan
from mlxzo.experiments.report.run_record import ComparedRun
from mlxzo.memory.forecast import MemoryBudget, forecast
from mlxzo.runtime.supervisor import Supervisor
from tests.workers import PRELUDE

# Runs that end with their steps.
BY_STEPS = {"estimator": "spsa", "scope": "norms/last-6"}


def config(tmp_path, name, **more):
    return RunConfig(out=str(tmp_path), name=name, **{**BY_STEPS, **more}).resolved()


def existing(tmp_path, *told, work=True, time=0.0, name="r", **options):
    """A run that a worker has left, with these events."""
    run = RunDirectory.create(config(tmp_path, name, **options))
    run.events_path.write_text("".join(events.to_json(event, time) + "\n" for event in told))
    if work:
        (run.path / JOURNAL).touch()
    return run


FINISHED = events.Finished({"steps": 1})
FAILED = events.Failed("Data", "wrong", "", [], 4)
INTERRUPTED = events.Failed("Interrupted", "stopped", "", [], 130)

# A worker that notes in the log that it began, and with which arguments, and that it ended.
LOGGED = """
from pathlib import Path
log = Path(run).parent / "log"
name = Path(run).name
def note(text):
    with log.open("a") as file: file.write(text + "\\n")
def wait_for(text):
    limit = time.monotonic() + 90
    while text not in log.read_text().splitlines():
        assert time.monotonic() < limit, text
        time.sleep(0.01)
note(" ".join(["begin", name, *sys.argv[2:]]))
Path(run, "journal.bin").touch()
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Replaces the worker of every run by a few lines; `log` gives what the workers noted."""

    def become(program):
        script = tmp_path / "worker.py"
        script.write_text(PRELUDE + LOGGED + textwrap.dedent(program) + "\nnote('end ' + name)\n")

        def supervise(run, *, resume, config=None, allow_code=False):
            more = ["--resume"] if resume else []
            return Supervisor(run, config=config, _command=[sys.executable, str(script), str(run.path), *more])

        monkeypatch.setattr(queue, "Supervisor", supervise)

    return become


def log(tmp_path):
    return (tmp_path / "log").read_text().splitlines()


def quiet(run, event):
    pass


def test_runs_of_other_options_are_refused_and_what_was_left_open_may_have_been_settled(tmp_path):
    wanted = config(tmp_path, "r", memory_cap="1GB", batch_size=4)
    run = existing(tmp_path, memory_cap="1GB", batch_size=4)
    settled = {"memory_cap": "1GB", "batch_size": 4, "micro_batch": 2, "activation_cache": "off"}
    run.update_config(RunConfig(out=str(tmp_path), name="r", **BY_STEPS, **settled).resolved())
    assert changes(run.config, wanted) == {}
    RunQueue([wanted], quiet).check()
    other = config(tmp_path, "r", memory_cap="1GB", batch_size=8, lr=0.1)
    with pytest.raises(ConfigError) as caught:
        RunQueue([other], quiet).check()
    assert caught.value.details == ["r: batch_size: 4, not 8", "r: lr: 0.4, not 0.1"]


def test_what_may_change_goes_on_with_the_new_value_unless_it_would_change_a_result(tmp_path, worker):
    existing(tmp_path, FINISHED, name="done", memory_cap="1GB")
    existing(tmp_path, INTERRUPTED, name="half", memory_cap="1GB", steps=300)
    may = {"changeable": ("steps", "memory_cap")}
    done, half = (config(tmp_path, name, memory_cap="2GB", steps=300) for name in ("done", "half"))
    worker("finish()")
    both = RunQueue([done, half], quiet, **may)
    both.check()
    assert [item.seconds is None for item in both.run()] == [True, False]
    assert log(tmp_path) == ["begin half --resume", "end half"]
    assert RunDirectory(tmp_path / "half").config.memory_cap == "2GB"
    assert RunDirectory(tmp_path / "done").config.memory_cap == "1GB"
    with pytest.raises(ConfigError) as caught:
        RunQueue([config(tmp_path, "done", steps=400)], quiet, **may).check()
    assert caught.value.details == ["done: steps: 300, not 400"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError) as caught:
        RunQueue([config(tmp_path, "r")], quiet).check()
    assert caught.value.details == [f"r: {tmp_path / 'r'} is no run"]


def test_a_run_that_is_done_is_not_locked_and_looks_done_whoever_looks(tmp_path, monkeypatch):
    """Else one of several commands over one file takes it for running while another looks at it."""
    run = existing(tmp_path, FINISHED)
    run.write_json("result.json", {"steps": 1})
    wanted = config(tmp_path, "r")
    with run.held():
        assert ComparedRun.planned("r", wanted).status == "finished"
    monkeypatch.setattr(RunDirectory, "claim", lambda run: pytest.fail("it is locked"))
    assert [ended.run.id for ended in RunQueue([wanted], quiet).run()] == ["r"]


def test_a_reward_run_is_forecast_and_its_code_runs_only_with_consent(tmp_path, worker, monkeypatch):
    reward = {"objective": "reward", "reward_command": "touch judged", "task": "squad"}
    wanted = config(tmp_path, "r", **reward)
    assert forecast(wanted, None).unknown
    worker("finish()")
    asked = []
    supervise = queue.Supervisor
    monkeypatch.setattr(
        queue,
        "Supervisor",
        lambda run, **options: asked.append(options["allow_code"]) or supervise(run, **options),
    )
    for name, allow_code in (("without", False), ("with", True)):
        assert list(RunQueue([config(tmp_path, name, **reward)], quiet, allow_code=allow_code).run())
    assert asked == [False, True]


def test_what_failed_before_it_began_begins_anew_and_what_left_work_goes_on(tmp_path, worker):
    existing(tmp_path, FAILED, work=False, name="anew", scope="full")
    existing(tmp_path, FAILED, name="on")
    existing(tmp_path, FINISHED, name="done")
    worker("finish()")
    configs = [config(tmp_path, name) for name in ("anew", "on", "done", "first")]
    all_four = RunQueue(configs, quiet)
    all_four.check()
    assert [item.run.id for item in all_four.run()] == ["anew", "on", "done", "first"]
    begun = [line for line in log(tmp_path) if line.startswith("begin")]
    assert begun == ["begin anew", "begin on --resume", "begin first"]
    # The earlier failure is not told again, and the options are those of now.
    anew = RunDirectory(tmp_path / "anew")
    assert [type(event) for event, _ in anew.events()] == [events.Finished] and anew.config.scope == BY_STEPS["scope"]


def test_a_failure_keeps_no_other_run_from_going_on(tmp_path, worker):
    worker("fail() if name in 'bd' else finish()")
    runs = RunQueue([config(tmp_path, name) for name in "abcd"], quiet)
    assert [(item.run.id, item.failed and item.failed.exit_code) for item in runs.run()] == [
        ("a", None),
        ("b", 4),
        ("c", None),
        ("d", 4),
    ]


def test_several_run_at_a_time_and_never_more_than_there_is_room_for(tmp_path, worker):
    # `small` and `other` wait for each other to begin, which they could not do one after the other.
    worker(
        """
        if name in ("small", "other"): wait_for("begin " + {"small": "other", "other": "small"}[name])
        finish()
        """
    )
    needs = {"small": 300, "large": 800, "other": 700, "huge": 2000, "unknown": None, "tiny": 1}
    configs = [config(tmp_path, name) for name in needs]
    runs = RunQueue(configs, quiet, jobs=3, admits=MemoryBudget(1000, needs).admits)
    assert {item.run.id for item in runs.run() if not item.failed} == needs.keys()
    running, beside = [], {}
    for line in log(tmp_path):
        what, name = line.split()
        running.append(name) if what == "begin" else running.remove(name)
        for each in running:
            beside[each] = beside.get(each, set()) | set(running)
        assert len(running) <= 1 or sum(needs[each] for each in running) <= 1000
    assert "other" in beside["small"]
    # What needs more than there is, or nobody knows how much, runs alone.
    assert beside["huge"] == {"huge"} and beside["unknown"] == {"unknown"}


def test_two_processes_share_the_runs_and_do_none_twice(tmp_path, worker):
    # Each process begins one run and is held there until the other has begun one, too.
    worker(
        """
        limit = time.monotonic() + 90
        while len(log.read_text().splitlines()) < 2 and time.monotonic() < limit: time.sleep(0.01)
        fail() if name == "c" else finish()
        """
    )
    program = f"""
        import sys
        from mlxzo.experiments import queue
        from mlxzo.core.config import RunConfig
        from mlxzo.runtime.supervisor import Supervisor
        command = [sys.executable, {str(tmp_path / "worker.py")!r}]
        queue.Supervisor = lambda run, **_: Supervisor(run, _command=[*command, str(run.path)])
        configs = [RunConfig(out={str(tmp_path)!r}, name=name).resolved() for name in "abcd"]
        ended = list(queue.RunQueue(configs, lambda run, event: None).run())
        assert sorted(item.run.id for item in ended) == list("abcd")
        assert [item.run.id for item in ended if item.failed] == ["c"]
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=180)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    lines = log(tmp_path)
    assert sorted(lines) == [*(f"begin {name}" for name in "abcd"), *(f"end {name}" for name in "abd")]
    assert {line.split()[0] for line in lines[:2]} == {"begin"}


def test_a_run_that_somebody_else_is_running_is_waited_for(tmp_path):
    run = existing(tmp_path)
    said = []
    with run.lock_path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def end() -> None:
            run.events_path.write_text(events.to_json(FINISHED, 0.0) + "\n")
            held.close()

        (ended,) = RunQueue([config(tmp_path, "r")], lambda run, event: said.append(event.text), end).run()
    assert ended.seconds is None and ended.failed is None and ended.run.id == "r"
    assert said == ["r is running already; waiting for it to end"]


def test_a_run_that_somebody_else_began_with_other_options_meanwhile_is_not_taken_for_ours(tmp_path, worker):
    worker("finish()")
    mine = RunQueue([config(tmp_path, "r")], quiet)
    mine.check()
    existing(tmp_path, FINISHED, batch_size=3)
    with pytest.raises(ConfigError) as caught:
        list(mine.run())
    assert caught.value.details == ["r: batch_size: 3, not 16"]


def test_a_series_that_is_stopped_while_it_waits_begins_nothing(tmp_path):
    run = existing(tmp_path)
    runs = RunQueue([config(tmp_path, "r")], quiet, lambda: runs.stop())
    with run.lock_path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list(runs.run()) == [] and runs.stopping
    assert run.path.exists()


def test_stopping_ends_every_run_in_hand_and_starts_no_other(tmp_path, worker):
    worker(
        """
        def end(*_): fail("Interrupted", 130)
        signal.signal(signal.SIGINT, end)
        step(1)
        time.sleep(90)
        """
    )
    stepping = set()

    def emit(run, event):
        if isinstance(event, events.Step):
            stepping.add(run.id)
            if len(stepping) == 2:
                runs.stop()

    runs = RunQueue([config(tmp_path, name) for name in "abc"], emit, jobs=2)
    assert sorted(item.run.id for item in runs.run() if item.failed.exit_code == 130) == ["a", "b"]
    assert not (tmp_path / "c").exists()


def test_position_tells_the_time_left_by_what_is_known(tmp_path, worker):
    worker("step(1)\nfinish()")
    said = []

    def emit(run, event):
        if isinstance(event, events.Step):
            said.append(runs.position())

    runs = RunQueue([config(tmp_path, "a"), config(tmp_path, "b")], emit)
    list(runs.run())
    # The first step promises one second more; of the second run nothing is known until the first has ended.
    assert said == ["run 1 of 2", "run 2 of 2, all done in about 1.0 s"]


def test_a_run_is_expected_to_take_as_long_as_its_like(tmp_path):
    lora, again, full = (
        config(tmp_path, name, scope=scope, seed=seed)
        for name, scope, seed in (("a", "lora", 0), ("b", "lora", 1), ("c", "full", 0))
    )
    run = RunDirectory(tmp_path / "a")
    assert DurationEstimate([]).seconds(lora) is None
    ended = [Ended(run, lora, FINISHED, 100.0)]
    # A run of another kind counts as the mean of what is known, until one like it has been timed.
    assert DurationEstimate(ended).seconds(again) == DurationEstimate(ended).seconds(full) == 100.0
    ended.append(Ended(run, full, FINISHED, 10.0))
    assert (DurationEstimate(ended).seconds(again), DurationEstimate(ended).seconds(full)) == (100.0, 10.0)
    # What failed, or was done before, tells nothing.
    assert DurationEstimate([Ended(run, lora, FAILED, 5.0), Ended(run, lora, FINISHED, None)]).seconds(again) is None


def test_with_a_time_limit_the_time_is_known_from_the_start(tmp_path):
    one, other = (config(tmp_path, scope, max_seconds=60.0, scope=scope) for scope in ("full", "lora"))
    assert DurationEstimate([]).seconds(one) == 60
    # What a run takes beside its time, such as loading and the test, is then added to the others.
    assert DurationEstimate([Ended(RunDirectory(tmp_path / "full"), one, FINISHED, 75.0)]).seconds(other) == 75


@pytest.mark.parametrize(
    ("now", "coming", "jobs", "seconds"),
    [([], [], 1, 0), ([40], [100, 100], 1, 240), ([40, 10], [100, 5], 2, 110), ([], [3, 3, 3], 2, 6), ([9], [], 4, 9)],
)
def test_the_time_left_of_several_at_a_time(now, coming, jobs, seconds):
    assert makespan(now, coming, jobs) == seconds
