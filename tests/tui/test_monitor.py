"""The monitor: what a user sees of a run that goes on, ends, dies, is paused, at every size."""

import dataclasses
import fcntl
import os
import signal
import time
from datetime import datetime

import pytest
from textual.events import MouseScrollUp

from mlxzo.core import events
from mlxzo.core.run_directory import JOURNAL, LAST_STATE, RunDirectory
from mlxzo.core.run_history import RunHistory
from mlxzo.runtime import control
from mlxzo.zo.journal import Header, JournalStep, JournalWriter
from tui.app import MlxzoApp
from tui.feed import Replay, RunFeed, Tail
from tui.resume_info import checkpoint_rows
from tui.throttle import Throttle
from tui.widgets.chart import Chart

from .conftest import RECORDED
from .driving import drive, every_size, fills, screen_text, wait_for


def test_a_finished_run_shows_its_figures_at_every_size(make_run, root):
    run = make_run(name="reviews-run")

    async def scenario(pilot):
        async for size in every_size(pilot):
            words = ("finished", "reviews-run", "120 steps", "Loss", "Validation accuracy", "Memory", "50.7 -> 62.8 %")
            result = ("test accuracy ", "50.7 % -> 62.8 %, standard error 4.0 points, n = 148", "the lowest loss of 4")
            await wait_for(pilot, *words, *result, "cap 900.0 MB", "best 74.0 % at step 120", "★")
            # Curves are drawn, and nothing hangs over the right edge.
            await wait_for(pilot, lambda: any("\u2800" < character <= "\u28ff" for character in screen_text(pilot)))
            await fills(pilot, size)

    drive(MlxzoApp(root=str(root), run=run), scenario)


def test_with_no_run_open_the_monitor_says_how_to_open_one(root):
    async def scenario(pilot):
        await pilot.press("f4")
        await wait_for(pilot, "No run is open", "F3", "--demo")

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_a_run_of_somebody_else_is_watched_as_it_grows(make_run, root):
    run = make_run(events=60)
    rest = RECORDED.read_text(encoding="utf-8").splitlines()[60:]

    async def scenario(pilot):
        await wait_for(pilot, "best validation accuracy 50.0 % at zero-shot")
        with run.events_path.open("a", encoding="utf-8") as file:
            # A line torn by the moment of reading is taken up when it is whole.
            file.write(rest[0][:20])
            file.flush()
            await pilot.pause(0.5)
            file.write(rest[0][20:] + "\n" + "\n".join(rest[1:]) + "\n")
        await wait_for(pilot, "✓ finished  120 steps")

    with run.lock_path.open("w") as lock:
        # What tells that a worker is at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        drive(MlxzoApp(root=str(root), run=run), scenario)


def test_what_a_run_would_go_on_from_is_told(make_run, root):
    run = make_run(events=100)
    header = Header({"queries": 1, "weight_decay": 0.0}, "ab", (), noise=1)
    writer = JournalWriter(run.path / JOURNAL, header)

    def append(*more):
        with run.events_path.open("a", encoding="utf-8") as file:
            file.writelines(events.to_json(event, 1.7e9) + "\n" for event in more)

    async def scenario(pilot):
        await wait_for(pilot, "0 steps in")
        for _ in range(30):
            writer.append(JournalStep((1.0,), (0.5,), 2.0))
        append(_step(30, 0.5))
        for words in ("30 steps in", "from step 30", "none yet"):
            await wait_for(pilot, words)
        append(events.Saved(str(LAST_STATE), 20, 4200), _step(31, 0.5))
        writer.append(JournalStep((1.0,), (0.5,), 2.0))
        await wait_for(pilot, f"of step 20, {datetime.fromtimestamp(1.7e9):%H:%M:%S}, 4.2 kB")
        await wait_for(pilot, "from step 31")
        (run.path / JOURNAL).unlink()
        append(_step(32, 0.5))
        await wait_for(pilot, "no: journal.bin is missing")

    drive(MlxzoApp(root=str(root), run=run), scenario, (200, 60))


def test_what_a_run_minimises_is_named_and_directions_that_tell_nothing_are_told(make_run, root):
    run = make_run(events=0, objective="accuracy", queries=2)
    steps = [dataclasses.replace(_step(n, 0.25), ties=int(n % 2 == 0)) for n in range(1, 5)]
    run.events_path.write_text("".join(events.to_json(step, 1.7e9 + step.step) + "\n" for step in steps))

    async def scenario(pilot):
        # 2 of 8 directions.
        for words in ("1 Objective: 1 - accuracy", "mean of 5: 0.2500 · ties 25 %", "on 25 % of the directions"):
            await wait_for(pilot, words)

    drive(MlxzoApp(root=str(root), run=run), scenario)


@pytest.mark.parametrize(
    ("metric", "value", "label"), [("loss", 3.2, "zero-shot 3.200"), ("reward", 0.464, "zero-shot 0.464")]
)
def test_a_metric_that_is_no_share_stands_on_the_axis_as_it_is(make_run, root, metric, value, label):
    """A loss of 3.2 stood on the axis as 320 %, and a reward was drawn times 100 with a percent sign."""
    run = make_run(events=0)
    told = [
        events.Evaluated(kind, "validation", step, metric, value - step / 10, 1.0, 50, None, 1.0, bool(step))
        for step, kind in enumerate(("zero-shot", "validation"))
    ]
    run.events_path.write_text("".join(events.to_json(event, 1.7e9 + n) + "\n" for n, event in enumerate(told)))

    async def scenario(pilot):
        await wait_for(pilot, label)
        chart = pilot.app.screen.query_one("#accuracy", Chart)
        assert chart.title == f"2 Validation {metric}"
        assert "%" not in "".join(strip.text for strip in chart._strips)
        assert (
            chart.scale.labels([value - 0.1, value])[0] == f"{value - 0.1:.1f}"
            and chart.scale.value(value) == f"{value:.3f}"
        )

    drive(MlxzoApp(root=str(root), run=run), scenario)


def test_steps_are_drawn_at_a_pace_and_what_happens_at_once():
    now = [0.0]
    pace = Throttle(2.0, clock=lambda: now[0])
    assert pace.is_due(1, "training") and not pace.is_due(1, "training")
    now[0] = 1.9
    assert not pace.is_due(2, "training")
    assert pace.is_due(3, "evaluating")
    now[0] = 3.8
    assert not pace.is_due(4, "evaluating")
    now[0] = 3.9
    assert pace.is_due(4, "evaluating")
    pace.reset()
    assert pace.is_due(4, "evaluating")


def test_digits_show_and_hide_panels(make_run, root):
    async def scenario(pilot):
        await wait_for(pilot, "1 Loss")
        assert "4 Speed" not in screen_text(pilot)
        await pilot.press("1", "4")
        await wait_for(pilot, "4 Speed", lambda: "1 Loss" not in screen_text(pilot))
        await pilot.resize_terminal(80, 24)
        shown = await wait_for(pilot, "4 Speed", lambda: "7 Events" not in screen_text(pilot))
        assert "1 Loss" not in shown

    drive(MlxzoApp(root=str(root), run=make_run()), scenario)


def test_charts_zoom_pan_and_change_scale_by_key_and_by_mouse(make_run, root):
    async def scenario(pilot):
        await wait_for(pilot, "finished")
        chart = pilot.app.screen.query_one("#loss", Chart)
        await pilot.press("plus", "plus")
        await wait_for(pilot, "zoomed")
        right = chart.view
        assert right[1] == 120 and right[1] - right[0] == pytest.approx(119 / 4)
        await pilot.press("left")
        await wait_for(pilot, lambda: chart.view[1] < 120)
        await pilot.press("r")
        await wait_for(pilot, lambda: chart.view is None)
        await pilot.press("g")
        await wait_for(pilot, "Loss · log")
        await pilot._post_mouse_events([MouseScrollUp], chart, (20, 4))
        await wait_for(pilot, lambda: chart.view is not None)
        await pilot.hover(chart, (20, 4))
        await wait_for(pilot, lambda: str(chart.border_subtitle).startswith("step "))
        assert "mean 0." in str(chart.border_subtitle)

    drive(MlxzoApp(root=str(root), run=make_run()), scenario)


def test_the_demo_plays_pauses_and_ends():
    now = [0.0]
    replay = Replay(RECORDED, speed=10, clock=lambda: now[0])
    # However long the app took to open, the first frame has the first step, and what was measured before it.
    now[0] = 5.0
    replay.poll()
    assert replay.history.step.step == 1 and replay.history.zero_shot and replay.history.samples
    now[0] = 15.0
    replay.poll()
    seen = replay.history.step.step
    assert 1 < seen < 120
    replay.paused, now[0] = True, 40.0
    replay.poll()
    assert replay.history.step.step == seen
    replay.paused = False
    replay.skip()
    assert isinstance(replay.history.outcome, events.Finished) and not replay.running


def test_the_demo_needs_no_folder_and_shows_a_run(root):
    async def scenario(pilot):
        # The first frame has a step, and what was measured before it.
        await wait_for(pilot, "demo: a recorded run", "▶ training", "validation accuracy")
        pilot.app.current.skip()
        for words in ("✓ finished", "state kept", "✓ now"):
            await wait_for(pilot, words)

    drive(MlxzoApp(root=str(root), demo=True), scenario)


def test_the_events_of_a_supervised_run_count_once(make_run, root, worker):
    run = worker(make_run(events=0), "emit('phase', phase='train')\nfor i in range(1, 4): step(i)\nfinish()")
    limit = time.monotonic() + 60
    while run.history.outcome is None:
        assert time.monotonic() < limit
        run.poll()
        time.sleep(0.02)
    assert run.history.steps["step"].tolist() == [1, 2, 3]
    assert [line.mark for line in run.log.lines].count("✓") == 1


def test_a_killed_worker_is_told_in_plain_words(make_run, root, worker):
    """Within two seconds, as `python -m bench.tui --watching` measures; here within what a crowded machine may take."""

    async def scenario(pilot):
        app = pilot.app
        app.current = feed = worker(make_run(events=0), "emit('phase', phase='train'); step(1); time.sleep(60)")
        await pilot.press("f4")
        await wait_for(pilot, "step 1 of 9")
        killed = time.monotonic()
        os.kill(feed.supervision.pid, signal.SIGKILL)
        shown = await wait_for(pilot, "ended by SIGKILL", "ran out of memory", "What to do")
        print(f"{time.monotonic() - killed:.2f} s from the death of the worker to the words for it")
        assert "Traceback" not in shown
        # The app goes on: the dialog offers to set the run up again.
        await pilot.click("#again")
        await wait_for(pilot, "Essentials")

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_killed_run_goes_on_at_the_press_of_a_key(make_run, root, worker, monkeypatch):
    resumed = []

    async def scenario(pilot):
        app = pilot.app
        app.current = feed = worker(make_run(events=0), "emit('phase', phase='train'); step(1); time.sleep(60)")
        app._feeds[feed.run.path] = feed
        await pilot.press("f4")
        await wait_for(pilot, "step 1 of 9")
        os.kill(feed.supervision.pid, signal.SIGKILL)
        await wait_for(pilot, "Resume")
        monkeypatch.setattr(RunFeed, "start", lambda self, resume=False: resumed.append((self.run, resume)))
        await pilot.press("enter")
        await wait_for(pilot, lambda: bool(resumed))
        assert resumed == [(feed.run, True)]

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_run_that_somebody_else_started_and_that_died_is_told_so(make_run, root):
    async def scenario(pilot):
        await wait_for(pilot, "✗ died", "ended without a message")

    drive(MlxzoApp(root=str(root), run=make_run(events=80)), scenario)


def test_pause_evaluate_and_stop_reach_the_worker(make_run, root, worker):
    async def scenario(pilot):
        feed = worker(make_run(events=0), "emit('phase', phase='train'); step(1)\nwhile True: time.sleep(0.05); obey()")
        pilot.app.current = feed
        await pilot.press("f4")
        await wait_for(pilot, "step 1 of 9")
        await pilot.press("p")
        await wait_for(pilot, "‖ paused")
        await pilot.press("p")
        await wait_for(pilot, "continued after")
        await pilot.press("e")
        await wait_for(pilot, "evaluated as asked")
        await pilot.press("s")
        await wait_for(pilot, "■ interrupted")

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_run_of_another_program_that_does_not_listen_is_ended_by_force(make_run, root, worker):
    """The second `s` asked for the stop again, for as long as the worker was not of this app."""
    run = worker(make_run(events=0), "emit('phase', phase='train'); step(1)\nwhile True: time.sleep(0.05)").run

    async def scenario(pilot):
        await wait_for(pilot, "step 1 of 9")
        await pilot.press("p")
        # What was asked for is seen until it takes effect, on other screens too.
        await wait_for(pilot, "▶ pausing")
        await pilot.press("s")
        await wait_for(pilot, "▶ stopping")
        await pilot.press("f5")
        await wait_for(pilot, "No race yet", "▶ stopping")
        await pilot.press("f4", "s")
        await wait_for(pilot, "■ interrupted", "stopped by force")

    drive(MlxzoApp(root=str(root), run=RunDirectory(run.path)), scenario)


def test_progress_of_an_evaluation_that_is_done_does_not_stay(make_run, worker):
    """It comes by another way than the events, and may come later."""
    program = "emit('phase', phase='baseline')\n"
    program += "emit('progress', label='zero-shot', done=9.0, total=9.0, unit='examples')\n"
    program += "emit('phase', phase='train'); time.sleep(60)"
    feed = worker(make_run(events=0), program)
    limit = time.monotonic() + 60
    while not (feed.supervision._relayed and feed.run.last_event(events.Phase).phase == "train"):
        assert time.monotonic() < limit
        time.sleep(0.02)
    feed.poll()
    assert feed.history.phase == "train" and feed.history.progress is None


def test_an_interrupted_run_is_resumed_from_the_monitor(make_run, root, monkeypatch):
    run = make_run(events=80)
    resumed = []
    monkeypatch.setattr(RunFeed, "start", lambda self, resume=False: resumed.append((self.run, resume)))

    async def scenario(pilot):
        await wait_for(pilot, "u Resume")
        await pilot.press("u")
        await wait_for(pilot, lambda: resumed == [(run, True)])

    drive(MlxzoApp(root=str(root), run=run), scenario)


def test_the_peak_of_a_resumed_run_is_that_of_all_its_workers(make_run, root):
    run = make_run(events=0)
    sample = events.Memory("train", 500_000_000, 880_000_000, 1, 1, 1, 900_000_000, 10**9, 0, None)
    told = [sample, events.Resumed(0), dataclasses.replace(sample, peak_footprint_bytes=510_000_000)]
    run.events_path.write_text("".join(events.to_json(event, 1.7e9 + n) + "\n" for n, event in enumerate(told)))

    async def scenario(pilot):
        await wait_for(pilot, "500.0 MB, peak 880.0 MB, cap 900.0 MB")

    drive(MlxzoApp(root=str(root), run=run), scenario)


def test_the_event_log_keeps_its_end_in_view_when_the_terminal_changes(make_run, root):
    run = make_run(events=120)

    async def scenario(pilot):
        await wait_for(pilot, "7 Events")
        for size in ((80, 50), (140, 36), (120, 40)):
            await pilot.resize_terminal(*size)
            with run.events_path.open("a", encoding="utf-8") as file:
                file.write(events.to_json(events.Note(f"said at {size[0]} columns"), 1.7e9) + "\n")
            await wait_for(pilot, f"said at {size[0]} columns")

    drive(MlxzoApp(root=str(root), run=run), scenario)


def test_the_header_stays_with_a_panel_in_full_size_and_on_every_screen(make_run, root):
    run = make_run(events=120, memory_cap="900MB")

    async def scenario(pilot):
        async for size in every_size(pilot):
            await wait_for(pilot, "5 Run")
            await pilot.press("f")
            words = ("▶ training", "of 900.0 MB", "validation", "50.0 -> 63.0 %", "Runs F2 R")
            await wait_for(pilot, *words, lambda: "5 Run" not in screen_text(pilot))
            await fills(pilot, size)
            await pilot.press("f")
        for key in ("f2", "f3", "f5", "f6"):
            await pilot.press(key)
            await wait_for(pilot, "▶ training")

    with run.lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        drive(MlxzoApp(root=str(root), run=run), scenario)


def test_closing_with_a_run_going_on_asks_and_can_leave_it(make_run, root, worker):
    run = make_run(events=0)

    async def scenario(pilot):
        pilot.app.current = feed = worker(
            run, "emit('phase', phase='train'); step(1)\nwhile True: time.sleep(0.05); obey()"
        )
        pilot.app._feeds[run.path] = feed
        await wait_for(pilot, lambda: run.last_event(events.Step) is not None)
        await pilot.press("ctrl+q")
        await wait_for(pilot, "Still training", "Leave it running", run.id)
        await pilot.press("escape", "ctrl+q", "enter")
        await wait_for(pilot, lambda: pilot.app._exit)
        return True

    assert drive(MlxzoApp(root=str(root)), scenario)
    assert run.worker_is_alive()
    # Opened again, it is watched and steered by its directory alone.
    again = RunFeed(run)
    again.poll()
    assert again.running and again.history.step.step == 1
    control.send(run, "stop")


def test_a_tail_reads_what_was_appended_once(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    line = events.to_json(events.Note("é"), 1.0).encode() + b"\n"
    path.write_bytes(line + line[:-3])
    assert len(tail.read()) == 1
    with path.open("ab") as file:
        file.write(line[-3:])
    assert [event.text for event, _ in tail.read()] == ["é"] and tail.read() == []


def test_a_run_whose_journal_is_gone_or_damaged_is_not_called_resumable(make_run):
    run = make_run(events=60)
    history = RunHistory.read(run.events())
    assert ("resumable", "no: journal.bin is missing") in checkpoint_rows(run, history)
    (run.path / JOURNAL).write_bytes(b"nothing")
    assert ("resumable", "no: journal.bin is damaged") in checkpoint_rows(run, history)
    (run.path / JOURNAL).unlink()
    backpropagation = make_run(events=60, method="bp")
    assert ("resumable", "from the start: no checkpoint yet") in checkpoint_rows(backpropagation, history)
    history.add(events.Saved(str(LAST_STATE), 20, 4200), 1.7e9)
    assert ("resumable", "from step 20, the checkpoint") in checkpoint_rows(backpropagation, history)


def test_steps_that_come_again_after_a_resumption_replace_the_old_ones(tmp_path):
    history = RunFeed(RunDirectory(tmp_path)).history
    for second, step in enumerate((1, 2, 3, 2, 3)):
        history.add(_step(step, loss=float(second)), float(second))
    assert history.steps["step"].tolist() == [1, 2, 3] and history.steps["loss"].tolist() == [0, 3, 4]


def _step(number, loss):
    return events.Step(number, 9, loss, loss, 0.1, None, 0.1, 8, 1.0, 8.0, 1.0, 10, 20, 0)
