"""The memory cap, held by real processes: a run over it, a worker that is stuck, and what is told of the memory."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.formatting import parse_bytes
from mlxzo.core.meter import FootprintReader
from mlxzo.core.run_directory import RunDirectory
from mlxzo.memory.watch import Thinning
from mlxzo.runtime.supervisor import Supervisor
from mlxzo.runtime.worker import SKIP_PLAN
from tests.command import mlxzo
from tests.tiny import tiny_folder
from tests.warm_workers import warm_python
from tests.workers import end

pytestmark = pytest.mark.device

MB = 1_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def greedy_data(tmp_path_factory):
    """Examples of 24 candidates and some 450 tokens, which stay whole: a forward pass takes some 100 MB and more."""
    folder = tmp_path_factory.mktemp("greedy")
    labels = [f"{first} {second} story" for first, second in itertools.product(("good", "bad", "dull"), "abcdefgh")]
    for split, count in (("train", 96), ("validation", 1)):
        rows = [{"text": f"{i} " + "the film was long " * 60, "label": labels[i % 24]} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_run_that_goes_over_its_cap_ends_with_3_in_plain_words_and_leaves_a_state(model, greedy_data, tmp_path):
    options = [
        "--model",
        model,
        "--task",
        "custom",
        "--data",
        greedy_data,
        "--scope",
        "norms/last-2",
        "--steps",
        1,
        "--batch-size",
        1,
    ]
    options += ["--train-examples", 2, "--activation-cache", "off", "--estimator", "spsa"]
    peaks = uncapped(warm_python(), tmp_path, *options)
    need = max(peaks.values())
    assert need - peaks["load"] > 60 * MB, peaks
    over_its_cap(warm_python(), (peaks["load"] + need) // 2, tmp_path, *options)


@pytest.mark.slow
def test_a_cap_20_percent_under_the_need_of_a_real_run_is_held(tmp_path):
    """Backpropagation on SmolLM2-135M, which takes most of its memory in the middle of a step."""
    options = ["--model", "smollm2-135m", "--task", "reviews", "--method", "bp", "--scope", "lora", "--steps", 2]
    options += ["--batch-size", 16, "--train-examples", 32, "--validation-examples", 8, "--test-examples", 8]
    peaks = uncapped(sys.executable, tmp_path, *options)
    cap = int(0.8 * max(peaks.values()))
    assert max(peaks["load"], peaks["baseline"]) < cap < peaks["train"], peaks
    over_its_cap(sys.executable, cap, tmp_path, *options)


def uncapped(python, root, *options):
    """The footprint's peak in each phase of a run without a cap, in bytes.

    Args:
        python: that runs the command, and the same for the run under the cap: a worker forked from a warm one takes
            less memory of its own.
    """
    command = ["train", *options, "--out", root, "--name", "free", "--json"]
    done = subprocess.run([python, "-m", "mlxzo", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)["memory"]["footprint_peak_by_phase"]


def over_its_cap(python, cap, root, *options):
    """The run, which was not fitted to its cap before it started, and ended as it should; seen from outside, too."""
    command = ["train", *options, "--memory-cap", cap, "--out", root, "--name", "capped", "--json"]
    run, highest = RunDirectory(root / "capped"), [0]
    with subprocess.Popen(
        [python, "-m", "mlxzo", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, SKIP_PLAN: "1"},
    ) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                reader = FootprintReader(int(run.lock_path.read_text()))
                highest += filter(None, reader.read())
                reader.close()
            time.sleep(0.003)
        shown, problems = process.communicate()
    error = json.loads(shown)["error"]
    assert process.returncode == error["exit_code"] == 3 and error["title"] == "Does not fit"
    taken = parse_bytes("".join(re.search(r"it took ([\d.]+) of [\d.]+ (\w+)", error["message"]).groups()))
    growth = parse_bytes(re.search(r"it grew by at most ([\d.]+ \w+) from one reading", error["details"][0])[1])
    print(
        f"cap {cap / 1e6:.1f} MB, reported {taken / 1e6:.1f}, seen {max(highest) / 1e6:.1f}, growth {growth / 1e6:.1f}"
    )
    # The first reading over the cap is above it by less than a growth, and the run ends at the next one that is half a
    # percent above that. What is told is rounded to a tenth of its unit.
    assert cap < taken and max(highest) <= 1.001 * (1.005 * cap + 2 * growth)
    assert "--memory-cap well above" in error["fix"] and "the best state, of step" in error["details"][-2]
    assert "Traceback" not in problems and run.log_path.read_text() == ""
    assert run.status == "failed" and run.last_event(events.Memory).cap_bytes == cap
    assert mlxzo("eval", "--run", run.path, "--split", "validation").returncode == 0
    return run


def test_a_run_near_its_cap_takes_smaller_micro_batches_and_goes_on(model, tmp_path, monkeypatch):
    """A cap a little above what the process takes: every reading is near it, and nothing is over it."""
    monkeypatch.setenv(SKIP_PLAN, "1")
    small = {
        "estimator": "spsa",
        "steps": 4,
        "batch_size": 8,
        "train_examples": 16,
        "validation_examples": 8,
        "test_examples": 8,
    }
    options = {"model": model, "scope": "norms/last-2", "out": str(tmp_path), "activation_cache": "ram", **small}
    free, _ = finished(RunConfig(**options, name="free"))
    need = free.result()["memory"]["footprint_peak_bytes"]
    run, found = finished(RunConfig(**options, name="near", memory_cap=str(int(need * 1.05))))
    notes = [event.text for event in found if isinstance(event, events.Note)]
    assert any("micro-batches have at most" in note for note in notes), notes
    assert losses(run) == pytest.approx(losses(free), rel=1e-4)
    assert run.result()["memory"]["cap_bytes"] == int(need * 1.05)


def test_a_run_that_cannot_fit_is_refused_before_its_weights_are_loaded(model, tmp_path):
    done = mlxzo(
        "train", "--model", model, "--scope", "full", "--memory-cap", "20MB", "--out", tmp_path, "--name", "small"
    )
    assert done.returncode == 3 and "Does not fit" in done.stderr and "Traceback" not in done.stderr
    assert "20.0 MB" in done.stderr and "weights" in done.stderr and "Fix: " in done.stderr
    run = RunDirectory(tmp_path / "small")
    assert run.status == "failed" and run.last_event(events.Loaded) is None


def test_a_run_is_fitted_to_its_cap_and_keeps_how(model, tmp_path):
    small = {
        "estimator": "spsa",
        "steps": 3,
        "batch_size": 8,
        "train_examples": 16,
        "validation_examples": 8,
        "test_examples": 8,
    }
    run, found = finished(RunConfig(model=model, scope="norms/last-2", out=str(tmp_path), memory_cap="1GB", **small))
    assert run.config.activation_cache in ("ram", "off") and run.config.memory_cap == "1GB"
    (note,) = [e.text for e in found if isinstance(e, events.Note) and "predicted to take" in e.text]
    predicted = parse_bytes(re.search(r"predicted to take ([\d.]+ \w+) of", note)[1])
    # A worker forked from a warm process takes less memory of its own than one that was started.
    assert run.result()["memory"]["footprint_peak_bytes"] == pytest.approx(predicted, rel=0.3)


def test_the_same_seed_gives_the_same_losses_whatever_the_micro_batch(model, tmp_path):
    options = {"model": model, "scope": "full", "steps": 5, "batch_size": 8, "lr": 1e-4, "out": str(tmp_path)}
    options |= {"train_examples": 16, "validation_examples": 8, "test_examples": 8}
    one, eight = (losses(finished(RunConfig(**options, micro_batch=size))[0]) for size in (1, 8))
    assert one == pytest.approx(eight, rel=1e-4)


def finished(config):
    """The run of a configuration, and its events; fails where it does not finish."""
    run = RunDirectory.create(config)
    supervisor = Supervisor(run)
    supervisor.start()
    found = list(supervisor.events())
    assert isinstance(found[-1], events.Finished), found[-1]
    return run, found


def losses(run):
    return [event.loss for event, _ in run.events() if isinstance(event, events.Step)]


@pytest.fixture
def stuck(tmp_path):
    """Starts a worker that says that it is held to 200 MB, and is a few lines of Python."""
    started = []

    def begin(program):
        run = RunDirectory.create(RunConfig(out=str(tmp_path / "runs"), memory_cap="200MB"))
        told = events.Memory("load", 1, 1, 0, 0, 0, 200 * MB, 0, 0, None)
        run.events_path.write_text(events.to_json(told, time.time()) + "\n")
        supervisor = Supervisor(run, _command=[sys.executable, "-c", textwrap.dedent(program), str(run.path)])
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield begin
    end(started)


@pytest.mark.parametrize(("held", "grace"), [("400e6", 0.0), ("204e6", 1.0)])
def test_a_stuck_worker_over_its_cap_is_killed_from_outside(stuck, held, grace):
    """At once where it is far over the cap; after a grace where it is a little over it. Nobody polls meanwhile."""
    supervisor = stuck(
        f"""
        import time
        from mlxzo.core.meter import footprint_bytes
        held = b"x" * (int({held}) - footprint_bytes())
        print('{{"event": "note", "time": 1, "text": "%f"}}' % time.time(), flush=True)
        time.sleep(60)
        """
    )
    ended, limit = False, time.monotonic() + 20
    while not ended and time.monotonic() < limit:
        time.sleep(0.01)
        ended = not is_alive(supervisor.pid)
    took = time.time()
    found = list(supervisor.events())
    if isinstance(found[0], events.Note):
        assert grace <= took - float(found[0].text)
    else:
        # It did not even come to say that it had all it wanted.
        assert grace == 0.0
    failed = found[-1]
    assert (failed.title, supervisor.exit_code) == ("Does not fit", 3)
    assert "went over its memory cap" in failed.message and "200.0 MB" in failed.message
    assert failed.details[-1] == "no state had been saved" and supervisor.run.status == "failed"


def is_alive(pid):
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_worker_below_its_cap_is_left_alone(stuck):
    supervisor = stuck('import time\ntime.sleep(1.5)\nprint(\'{"event": "finished", "time": 1, "result": {}}\')')
    assert isinstance(list(supervisor.events())[-1], events.Finished)


def test_a_worker_whose_main_thread_is_stuck_ends_itself_and_says_why(tmp_path):
    """Nobody supervises it, and nobody reads its pipe."""
    run = RunDirectory.create(RunConfig(out=str(tmp_path)))
    program = """
        import sys, time
        from pathlib import Path
        from mlxzo.core.meter import footprint_bytes
        from mlxzo.memory.watch import Watch
        from mlxzo.core.run_directory import RunDirectory
        from mlxzo.runtime.worker import EventWriter, end_at_once
        import mlx.core
        run = RunDirectory(Path(sys.argv[1]))
        write = EventWriter(run.events_path)
        watch = Watch(write.offer, lambda: end_at_once(run, write, watch))
        with watch:
            watch.hold(footprint_bytes() + 50_000_000)
            held = b"x" * 60_000_000
            time.sleep(60)
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(run.path)], stdout=write, timeout=50)
    os.close(read), os.close(write)
    assert done.returncode == 3 and time.monotonic() - began < 30
    failed = run.last_event(events.Failed)
    assert failed.title == "Does not fit" and "went over its memory cap" in failed.message


def in_a_process_of_its_own(program):
    """Runs a program where nothing else takes or frees memory; fails with what it printed."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_watch_reads_on_while_mlx_computes_and_knows_the_peak_by_phase():
    in_a_process_of_its_own("""
        import sys, time
        import mlx.core as mx
        from mlxzo.core.meter import FootprintReader
        from mlxzo.memory.watch import Watch

        told = []
        with Watch(lambda event, kept: told.append((event, kept)), lambda: None) as watch:
            watch.enter("train")
            product = mx.ones((300, 300))
            mx.eval(product)
            read_meanwhile, limit = 0, time.monotonic() + 60
            while not read_meanwhile and time.monotonic() < limit:
                for _ in range(10):
                    product = (product @ product) * 1e-4
                before = watch.gauge.readings
                mx.eval(product)
                read_meanwhile = watch.gauge.readings - before
            watch.enter("evaluate")
            held = b"x" * 100_000_000
            del held
        summary = watch.summary()
        assert read_meanwhile > 0, "no reading during an evaluation"
        peaks = summary["footprint_peak_by_phase"]
        assert list(peaks) == ["load", "train", "evaluate"], peaks
        assert summary["footprint_peak_bytes"] == max(peaks.values()), summary
        if sys.platform == "linux":
            # Linux remembers what was there between two readings.
            assert summary["footprint_peak_bytes"] == FootprintReader().read()[1] > peaks["train"] + 80_000_000, summary
        assert told[-1][0].peak_footprint_bytes == summary["footprint_peak_bytes"] and told[-1][1]
        assert {event.phase for event, kept in told if kept} == {"load", "train", "evaluate"}
    """)


def test_a_cap_is_seen_to_be_near_and_then_exceeded_and_growing_on_ends_the_process():
    in_a_process_of_its_own("""
        import threading, time
        from mlxzo.core.meter import footprint_bytes
        from mlxzo.memory.watch import Watch

        def wait(holds):
            limit = time.monotonic() + 30
            while not holds():
                assert time.monotonic() < limit, (watch.gauge.last_bytes, cap)
                time.sleep(0.001)

        ended = threading.Event()
        cap = footprint_bytes() + 200_000_000
        with Watch(lambda event, kept: None, ended.set) as watch:
            watch.hold(cap)
            held = [b"x" * int(0.95 * cap - footprint_bytes())]
            wait(lambda: watch.near)
            assert not watch.over and not ended.is_set()
            held.append(b"x" * (cap - footprint_bytes() + 500_000))
            wait(lambda: watch.over)
            # A run over its cap has half a second to stop by itself, unless it grows on.
            over_at = time.monotonic()
            held.append(b"x" * (cap // 20))
            wait(ended.is_set)
    """)


def test_a_night_of_samples_leaves_a_short_file():
    thinning, kept, shown = Thinning(), 0, 0
    for reading in range(20 * 3600):  # an hour at 20 readings a second, growing by 40 % in its first minutes
        peak = int(1e9 * (1 + 0.4 * min(1.0, reading / 6000)))
        seen, stays = thinning.worth(reading / 20, "train", peak)
        shown, kept = shown + seen, kept + stays
    assert 720 <= kept <= 720 + 40 and 7000 <= shown <= 7201
    # A new phase is told at once; a new peak soon, and once.
    assert thinning.worth(3600.01, "evaluate", int(1.4e9)) == (True, True)
    assert thinning.worth(3600.06, "evaluate", int(2e9)) == (False, False)
    assert thinning.worth(3600.60, "evaluate", int(2e9)) == (True, True)
    assert thinning.worth(3601.20, "evaluate", int(2e9)) == (True, False)
