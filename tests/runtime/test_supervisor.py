"""The supervisor with real child processes that behave, dawdle, die and misbehave like workers."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.runtime.supervisor import Supervisor
from tests.workers import PRELUDE, end

pytestmark = pytest.mark.device


@pytest.fixture
def start(tmp_path):
    """Starts a worker made of the prelude and a few lines; whatever is left of it ends with the test."""
    started = []

    def begin(program, run=None):
        run = run or RunDirectory.create(RunConfig(out=str(tmp_path / "runs")))
        script = tmp_path / f"worker{len(started)}.py"
        script.write_text(PRELUDE + textwrap.dedent(program))
        supervisor = Supervisor(run, _command=[sys.executable, str(script), str(run.path)])
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield begin
    end(started)


def drain(supervisor, seconds=20.0):
    """All events to the end; fails where the supervisor would hang."""
    found, limit = [], time.monotonic() + seconds
    while supervisor.running:
        assert time.monotonic() < limit, f"no end after {seconds} s: {found}"
        found += supervisor.poll(0.2)
    return found


def wait_for(supervisor, kind, seconds=10.0):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        for event in supervisor.poll(0.1):
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__} within {seconds} s")


def test_a_run_that_finishes_is_relayed_whole(start):
    supervisor = start("emit('phase', phase='load')\nfor i in range(1, 4): step(i)\nfinish()")
    found = list(supervisor.events())
    assert [type(event).__name__ for event in found] == ["Phase", "Step", "Step", "Step", "Finished"]
    assert supervisor.exit_code == 0 and supervisor.outcome == found[-1]
    assert supervisor.run.status == "finished"
    assert [event for event, _ in supervisor.run.events()] == found
    assert supervisor.poll(1.0) == []


def test_a_rank_that_gave_up_waiting_for_the_others_says_so(start, monkeypatch, tmp_path):
    (tmp_path / "ring.json").write_text('[["10.0.0.1:1"], ["10.0.0.2:2"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "ring.json"))
    monkeypatch.setenv("MLX_RANK", "0")
    supervisor = start("os.kill(os.getpid(), signal.SIGALRM)")
    drain(supervisor)
    assert supervisor.outcome.kind == "ranks" and supervisor.exit_code == 4
    assert "rank 1 did not connect to 10.0.0.1:1, or rank 1 did not answer at 10.0.0.2:2" in supervisor.outcome.message


def test_what_a_killed_worker_leaves_ends_with_it(start):
    supervisor = start(
        """
        child = subprocess.Popen(["sleep", "600"])
        emit("note", text=str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    (note, _) = drain(supervisor)
    limit = time.monotonic() + 10
    while is_alive(int(note.text)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not is_alive(int(note.text))


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_worker_is_running_while_it_runs_and_no_second_one_may_start(start):
    supervisor = start("step(1)\ntime.sleep(30)")
    wait_for(supervisor, events.Step)
    assert supervisor.run.status == "running" and supervisor.exit_code is None
    with pytest.raises(ConfigError, match="is running already"):
        start("finish()", supervisor.run)
    assert supervisor.run.lock_path.read_text() == f"{supervisor.pid}\n"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("SIGKILL", "ended from outside, most often because the system ran out of memory"),
        ("SIGSEGV", "an allocation failed"),
        ("SIGABRT", "an allocation failed"),
        ("SIGUSR1", "a signal that mlxzo did not send"),
    ],
)
def test_a_worker_ended_by_a_signal_is_explained_in_plain_words(start, number, words):
    supervisor = start(
        f"""
        step(1)
        emit("saved", path="checkpoints/best.safetensors", step=1, bytes=10)
        step(2)
        print('{{"event": "step", "st', end="", flush=True)
        os.kill(os.getpid(), signal.{number})
        """
    )
    failed = drain(supervisor)[-1]
    assert failed.title == "Worker died" and number in failed.message and words in failed.message
    assert supervisor.exit_code == failed.exit_code == 3
    details = "\n".join(failed.details)
    assert "last step 2 of 9" in details and "of step 1" in details and "checkpoints/best" in details
    assert "--batch-size" in failed.fix
    assert supervisor.run.status == "died"
    assert list(supervisor.run.events())[-1][0] == failed


def test_a_worker_that_dies_before_its_first_event_is_explained_too(start):
    failed = drain(start("os.kill(os.getpid(), 9)"))[-1]
    assert failed.title == "Worker died" and failed.details == ["it had not finished its first step"]


def test_a_bug_in_the_worker_gives_one_line_and_where_to_look(start, capfd):
    supervisor = start("step(1)\nraise ValueError('the cause')")
    failed = drain(supervisor)[-1]
    assert (failed.title, failed.exit_code) == ("Internal error", 1)
    assert failed.message == "ValueError: the cause" and "worker.log" in failed.fix
    assert "Traceback" in supervisor.run.log_path.read_text()
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_a_library_ended_for_lack_of_memory_is_no_bug(start):
    words = "OpenBLAS error: Memory allocation still failed after 10 retries, giving up."
    failed = drain(start(f"print({words!r}, file=sys.stderr)\nos._exit(1)"))[-1]
    assert (failed.title, failed.exit_code) == ("Does not fit", 3) and words in failed.message


def test_a_worker_that_ends_without_a_result_is_no_success(start):
    failed = drain(start("step(1)"))[-1]
    assert failed.exit_code == 1 and "without a result" in failed.message


def test_the_workers_own_error_is_passed_on_unchanged(start):
    supervisor = start("emit('failed', title='Data', message='m', fix='f', details=['d'], exit_code=4)\nsys.exit(4)")
    assert drain(supervisor) == [events.Failed("Data", "m", "f", ["d"], 4)]
    assert supervisor.exit_code == 4 and supervisor.run.status == "failed"


def test_a_crash_after_the_result_does_not_take_the_result_away(start):
    supervisor = start("finish()\nos.abort()")
    assert isinstance(drain(supervisor)[-1], events.Finished) and supervisor.exit_code == 0


def test_stop_lets_the_worker_finish_its_step(start):
    supervisor = start(
        """
        stop = []
        signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        step(1)
        while not stop: time.sleep(0.02)
        emit("failed", title="Interrupted", message="stopped", fix="", details=[], exit_code=130)
        sys.exit(130)
        """
    )
    wait_for(supervisor, events.Step)
    supervisor.stop()
    assert drain(supervisor)[-1].title == "Interrupted"
    assert supervisor.exit_code == 130 and supervisor.run.status == "interrupted"


def test_a_worker_stopped_before_it_listens_counts_as_interrupted(start):
    supervisor = start("signal.signal(signal.SIGINT, signal.SIG_DFL)\nstep(1)\ntime.sleep(30)")
    wait_for(supervisor, events.Step)
    supervisor.stop()
    failed = drain(supervisor)[-1]
    assert failed.title == "Interrupted" and failed.exit_code == 130


def test_a_deaf_worker_is_killed_with_its_children_after_a_second_stop(start, monkeypatch):
    monkeypatch.setattr("mlxzo.runtime.supervisor._GRACE_SECONDS", 0.5)
    supervisor = start(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        emit("note", text=str(child.pid))
        while True: time.sleep(1)
        """
    )
    child = int(wait_for(supervisor, events.Note).text)
    supervisor.stop()
    time.sleep(0.3)
    assert supervisor.poll(0.1) == [] and supervisor.running
    supervisor.stop()
    failed = drain(supervisor, 5.0)[-1]
    assert failed.title == "Interrupted" and "by force" in failed.message and supervisor.exit_code == 130
    limit = time.monotonic() + 5
    while time.monotonic() < limit and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def test_a_mac_stays_awake_while_a_worker_runs(start, mac, monkeypatch, tmp_path):
    program = tmp_path / "caffeinate"
    program.write_text(
        f'#!/bin/sh\necho "$$ $@" > "{tmp_path}/asked.new"; mv "{tmp_path}/asked.new" "{tmp_path}/asked"\n'
        "exec sleep 600\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asked = tmp_path / "asked"
    supervisor = start(f"while not os.path.exists({str(asked)!r}): time.sleep(0.01)\nfinish()")
    drain(supervisor)
    own, *words = asked.read_text().split()
    assert words == ["-i", "-w", str(supervisor.pid)]
    assert not is_alive(int(own))


def test_a_group_that_has_ended_may_be_refused_a_signal(start, mac, monkeypatch):
    supervisor = start("step(1)\ntime.sleep(30)")
    killpg = os.killpg

    def refusing(group, number):
        killpg(group, number)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", refusing)
    for _ in range(3):
        supervisor.stop()
    drain(supervisor)
    assert supervisor.exit_code == 130


def test_stopping_what_has_ended_does_nothing(start):
    supervisor = start("finish()")
    drain(supervisor)
    supervisor.stop()
    assert supervisor.exit_code == 0


def test_an_end_is_seen_though_a_child_of_the_worker_holds_the_pipe_open(start):
    supervisor = start(
        """
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
        finish()
        """
    )
    began = time.monotonic()
    assert isinstance(drain(supervisor)[-1], events.Finished)
    assert time.monotonic() - began < 10
    os.killpg(supervisor.pid, signal.SIGKILL)


def test_a_worker_that_closes_its_output_is_waited_for(start):
    supervisor = start("step(1)\nos.close(1)\ntime.sleep(0.6)\nsys.stdout = None\nos._exit(0)")
    assert drain(supervisor)[-1].title == "Internal error"


def test_noise_and_half_lines_on_stdout_do_no_harm(start):
    supervisor = start(
        """
        print("Fetching 3 files: 100%")
        sys.stdout.buffer.write(b"\\xff\\xfe\\n"); sys.stdout.flush()
        line = json.dumps({"event": "note", "time": 1, "text": "x" * 200_000})
        for start in range(0, len(line), 50_000):
            sys.stdout.write(line[start:start + 50_000]); sys.stdout.flush(); time.sleep(0.01)
        print()
        finish()
        """
    )
    found = drain(supervisor)
    assert [type(event) for event in found] == [events.Note, events.Finished] and len(found[0].text) == 200_000


def test_many_events_do_not_fill_the_pipe_for_good(start):
    supervisor = start("for i in range(1, 5001): step(i, 5000)\nfinish()")
    assert len(drain(supervisor)) == 5001


def test_no_zombie_is_left(start):
    supervisor = start("finish()")
    drain(supervisor)
    with pytest.raises(ChildProcessError):
        os.waitpid(supervisor.pid, os.WNOHANG)


def test_a_worker_outlives_its_supervisor_and_finishes(tmp_path):
    run = RunDirectory.create(RunConfig(out=str(tmp_path / "runs")))
    worker = tmp_path / "worker.py"
    worker.write_text(PRELUDE + "for i in range(1, 10): step(i); time.sleep(0.1)\nfinish()")
    program = (
        "import sys, os\nfrom mlxzo.core.run_directory import RunDirectory\n"
        "from mlxzo.runtime.supervisor import Supervisor\n"
        "s = Supervisor(RunDirectory.open(sys.argv[1]), _command=[sys.executable, sys.argv[2], sys.argv[1]])\n"
        "s.start()\ns.poll(5)\nos.kill(os.getpid(), 9)\n"
    )
    supervisor = subprocess.run([sys.executable, "-c", program, str(run.path), str(worker)])
    assert supervisor.returncode == -9 and run.status == "running"
    limit = time.monotonic() + 15
    while run.status == "running" and time.monotonic() < limit:
        time.sleep(0.1)
    assert run.status == "finished"
    assert sum(isinstance(event, events.Step) for event, _ in run.events()) == 9


def _alive(pid):
    """Whether a process exists and is no zombie (an orphan's zombie is its new parent's business)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
