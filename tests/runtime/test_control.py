"""Runs steered from outside, through the file of commands: real workers on a tiny model, and the file itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.runtime.control import Inbox, kill, send
from mlxzo.runtime.supervisor import Supervisor
from tests.command import mlxzo
from tests.tiny import tiny_folder
from tests.workers import kill_workers

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def training(model, tmp_path):
    """A run in a worker of its own, whose supervisor only reads events; it ends with the test."""
    config = RunConfig(
        model=model,
        scope="norms/last-2",
        steps=100_000,
        eval_every=50_000,
        batch_size=4,
        estimator="spsa",
        train_examples=16,
        validation_examples=8,
        test_examples=8,
        out=str(tmp_path),
        name="run",
    )
    run = RunDirectory.create(config)
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        wait_for(run, events.Step)
        yield supervisor
    finally:
        if supervisor.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(supervisor.pid, signal.SIGKILL)
            list(supervisor.events())


def wait_for(run, kind, seconds=60.0):
    """The last event of a kind, once there is one."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if (found := run.last_event(kind)) is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {kind.__name__} within {seconds} s")


def wait_for_evaluation(run, seconds=60.0):
    """The one evaluation after training began, once there is one."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = [e for e, _ in run.events() if isinstance(e, events.Evaluated) and e.kind == "validation"]
        if found:
            (evaluated,) = found
            return evaluated
        time.sleep(0.05)
    raise AssertionError(f"no evaluation within {seconds} s")


def test_a_paused_run_makes_no_step_and_goes_on_when_told(training):
    run = training.run
    assert mlxzo("runs", "pause", run.path).returncode == 0
    paused = wait_for(run, events.Paused)
    assert run.status == "running"
    time.sleep(1.0)
    assert run.last_event(events.Step).step == paused.step
    assert mlxzo("runs", "continue", "run", "--out", run.path.parent).returncode == 0
    assert wait_for(run, events.Unpaused).seconds >= 1.0
    send(run, "stop")
    list(training.events())
    steps = [event for event, _ in run.events() if isinstance(event, events.Step)]
    assert len(steps) == steps[-1].step > paused.step
    # The pause is in no step's time, and so in no speed and no ETA.
    assert max(event.seconds for event in steps) < 1.0
    assert training.exit_code == 130 and run.status == "interrupted"


def test_a_paused_run_can_be_evaluated_and_stopped_and_keeps_its_best_state(training):
    run = training.run
    send(run, "pause")
    paused = wait_for(run, events.Paused)
    send(run, "evaluate")
    assert wait_for_evaluation(run).step == paused.step
    # It is still paused, and says so.
    while not isinstance(run.last_event(events.Phase, events.Paused), events.Paused):
        time.sleep(0.02)
    assert run.last_event(events.Step).step == paused.step
    send(run, "stop")
    list(training.events())
    assert training.outcome.title == "Interrupted"
    done = mlxzo("eval", "--run", run.path, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["examples"] == 8, done.stderr


def test_an_evaluation_can_be_asked_for_at_any_step(training):
    run = training.run
    send(run, "evaluate")
    evaluated = wait_for_evaluation(run)
    assert evaluated.split == "validation" and 0 < evaluated.step < 50_000 and evaluated.examples == 8
    # The best state is saved, and training goes on.
    limit = time.monotonic() + 30
    while run.last_event(events.Phase).phase != "train":
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_run_is_steered_after_the_program_that_started_it_is_gone(model, tmp_path):
    config = RunConfig(
        model=model,
        scope="norms/last-2",
        steps=100_000,
        batch_size=4,
        estimator="spsa",
        out=str(tmp_path),
        name="orphan",
    )
    run = RunDirectory.create(config)
    program = (
        "import sys\nfrom mlxzo.core.run_directory import RunDirectory\n"
        "from mlxzo.runtime.supervisor import Supervisor\n"
        "Supervisor(RunDirectory.open(sys.argv[1])).start()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(run.path)], check=True)
    try:
        wait_for(run, events.Step)
        send(run, "stop")
        assert wait_for(run, events.Failed).title == "Interrupted"
    finally:
        kill_workers(tmp_path)


def test_a_worker_that_no_longer_listens_is_ended_by_force(tmp_path):
    run = RunDirectory.create(RunConfig(out=str(tmp_path), name="stuck"))
    supervisor = Supervisor(run, _command=[sys.executable, "-c", "import time; time.sleep(600)"])
    supervisor.start()
    supervising = threading.Thread(target=lambda: list(supervisor.events()))
    supervising.start()
    # By another program than the one that started it, which takes its word for the reason.
    kill(RunDirectory(run.path))
    supervising.join()
    told = [event for event, _ in run.events()]
    assert told == [supervisor.outcome] and run.status == "interrupted"
    assert "by force" in supervisor.outcome.message and "--resume" in supervisor.outcome.fix


def test_what_is_not_running_or_not_known_is_refused_in_words(tmp_path):
    run = RunDirectory.create(RunConfig(out=str(tmp_path), name="done"))
    done = mlxzo("runs", "pause", run.path)
    assert done.returncode == 2 and "the run done is not running" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ConfigError, match="not running"):
        kill(run)
    with pytest.raises(ConfigError, match="there is no command 'explode'"):
        send(run, "explode")
    assert not run.commands_path.exists()


def test_the_inbox_gives_each_command_once_and_passes_over_what_is_none(tmp_path):
    path = tmp_path / "commands.jsonl"
    inbox = Inbox(path)
    assert inbox.take() == []
    junk = b'\xff\n[]\n7\n{"command": 3}\n{"command": "fly"}\n{"other": 1}\n' + b"[" * 100_000 + b"\n"
    path.write_bytes(b'{"command": "pause"}\n' + junk + b'{"command": "stop"}\n{"comma')
    assert inbox.take() == ["pause", "stop"]
    with path.open("ab") as file:
        file.write(b'nd": "continue"}\n')
    assert inbox.take() == ["continue"] and inbox.take() == []
    path.write_bytes(b'{"command": "stop"}\n')
    assert inbox.take() == ["stop"]


def test_commands_for_an_earlier_worker_are_not_obeyed_by_the_next(model, tmp_path):
    small = {
        "estimator": "spsa",
        "steps": 3,
        "batch_size": 2,
        "train_examples": 4,
        "validation_examples": 4,
        "test_examples": 4,
    }
    run = RunDirectory.create(RunConfig(model=model, scope="norms/last-2", out=str(tmp_path), **small))
    run.commands_path.write_text('{"command": "stop", "time": 1}\n')
    supervisor = Supervisor(run)
    supervisor.start()
    assert isinstance(list(supervisor.events())[-1], events.Finished)
