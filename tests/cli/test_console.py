"""What a person sees of a run, on a terminal, on a narrow one, without colour and in a log file."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mlxzo.cli.commands.evaluate import rows
from mlxzo.cli.console import RunsView, RunView, key_values, listing, summary_rows
from mlxzo.core import events
from mlxzo.core.formatting import (
    bytes_alike,
    bytes_of,
    describe,
    evaluated_line,
    format_count,
    format_metric,
    format_percent,
    format_seconds,
    printable,
    result_rows,
    speed_text,
)
from mlxzo.core.run_history import RunHistory


def step(number, steps=100, loss=0.5):
    return events.Step(number, steps, loss, 0.6, 0.1, 0.2, 0.5, 64, 2.0, 1280.0, 90.0, 540_000_000, 677_000_000, 0)


def evaluated(kind, split, value, best=False, number=0):
    return events.Evaluated(kind, split, number, "accuracy", value, 0.7, 100, 0.52, 3.0, best)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def view_on(width, terminal, clock=None, **more):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, **more)
    return RunView(console, clock=clock or Clock()), console.file


def memory(footprint, cap=None):
    return events.Memory("train", footprint, 812_000_000, 540_000_000, 0, 677_000_000, cap, 10**9, 0, None)


RUN = [
    events.Phase("load"),
    events.Progress("Downloading [bold]x[/bold]", 5e6, 10e6, "B"),
    events.Loaded("smollm2-135m", "hub", 134_515_008, 7488, 13, "ab", "reviews", 400, 100, 100, 540_000_000),
    evaluated("zero-shot", "test", 0.61),
    *[step(number) for number in range(1, 101)],
    memory(700_000_000, cap=1_000_000_000),
    evaluated("validation", "validation", 0.7, best=True, number=100),
    events.Note("a note"),
    evaluated("test", "test", 0.78, number=100),
]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_terminal_of_any_width_shows_figures_with_their_units(width):
    view, file = view_on(width, True)
    with view:
        for event in RUN:
            view.show(event)
    text = file.getvalue()
    assert "majority class 52.0 %" in text and "* best" in text and "step 50 of 100" in text
    assert "[bold]x" in text or width < 30  # data is never read as markup


def test_no_colour_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    view, file = view_on(80, True)
    with view:
        for event in RUN:
            view.show(event)
    assert "\x1b[3" not in file.getvalue().replace("\x1b[2K", "")


def test_a_log_file_gets_plain_lines_and_steps_only_now_and_then():
    clock = Clock()
    view, file = view_on(80, False, clock)
    with view:
        view.show(memory(700_000_000, cap=1_000_000_000))
        for number in range(1, 101):
            clock.now += 1.0
            view.show(step(number))
        view.show(evaluated("validation", "validation", 0.7, best=True, number=100))
    text = file.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert 10 <= len(lines) <= 13
    assert "step 100 of 100  100 %  2.00 steps/s  about 2 min left" in lines[-2]
    assert "loss 0.5000  smoothed 0.6000  1,280 tokens/s  memory 0.70 GB, peak 0.81 GB, cap 1.00 GB" in lines[-2]
    assert lines[-1].startswith("step 100: validation accuracy 70.0 %")


def test_a_run_that_a_plateau_may_end_has_neither_a_share_nor_an_eta():
    view, file = view_on(200, False, clock := Clock())
    view.show(replace(step(1), may_end_early=True, eta_seconds=None))
    clock.now += 20
    view.show(replace(step(60), may_end_early=True))
    first, later = file.getvalue().splitlines()
    assert first.startswith("step 1  2.00 steps/s  loss")
    assert later.startswith("step 60  2.00 steps/s  at most 2 min left  loss")


def test_a_log_file_gets_the_evaluations_that_found_nothing_better_only_now_and_then():
    view, file = view_on(200, False, clock := Clock())
    for number in range(100):
        clock.now += 0.5
        view.show(evaluated("validation", "validation", 0.6, best=number == 0, number=number))
    lines = file.getvalue().splitlines()
    assert "* best" in lines[0] and 5 <= len(lines) <= 7


def test_phases_between_steps_are_not_said_again_and_pauses_are():
    view, file = view_on(200, False)
    for phase in ("save", "baseline", "train", "evaluate", "save", "train"):
        view.show(events.Phase(phase))
    view.show(events.Paused(7))
    view.show(events.Unpaused(7, 65.0))
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["Zero-shot, before training", "Training"] and len(lines) == 4
    assert "Paused after step 7" in lines[2] and "1 min 05 s" in lines[3]


def test_a_wait_shows_how_much_is_left():
    clock = Clock()
    view, file = view_on(80, False, clock)
    view.show(events.Progress("Downloading", 0, 100e6, "B"))
    clock.now += 20
    view.show(events.Progress("Downloading", 25e6, 100e6, "B"))
    assert "Downloading: 25.0 of 100.0 MB  about 1 min 00 s left" in file.getvalue()


def test_the_same_work_done_again_has_a_time_of_its_own():
    clock = Clock()
    view, file = view_on(80, False, clock)
    for began in (0.0, 1000.0):
        for done in (1, 50, 100):
            clock.now = began + 0.5 * done
            view.show(events.Progress("generating answers", done, 100, "answers"))
    assert file.getvalue().splitlines()[-2:] == [
        "generating answers: 50 of 100 answers  about 24 s left",
        "generating answers: 100 of 100 answers",
    ]


def test_what_a_run_is_part_of_stands_under_its_figures():
    view, file = view_on(80, False)
    view.overall = "run 3 of 12"
    view.show(step(100))
    assert file.getvalue().rstrip().endswith("run 3 of 12")


def test_what_is_minimised_is_called_by_its_name():
    loaded = replace(RUN[2], objective="soft-accuracy")
    view, file = view_on(80, False)
    view.show(loaded)
    view.show(step(100))
    assert "1 - soft accuracy 0.5000  smoothed 0.6000" in file.getvalue()

    clock = Clock()
    side_by_side = RunsView(Console(file=io.StringIO(), width=200), clock=clock)
    side_by_side.show(loaded, "a")
    side_by_side.show(replace(loaded, objective="loss"), "b")
    for run in "ab":
        clock.now += 20
        side_by_side.show(step(100), run)
    shown = side_by_side.console.file.getvalue()
    assert "a: step 100 of 100  1 - soft accuracy 0.6000" in shown and "b: step 100 of 100  loss 0.6000" in shown


def test_a_loss_is_shown_beside_the_metrics_that_it_is_not():
    for metric, value, loss, has in (
        ("accuracy", 0.75, 0.25, True),
        ("reward", 0.75, 0.6, True),
        ("reward", 0.75, 0.25, False),
        ("loss", 0.25, 0.25, False),
    ):
        event = replace(evaluated("test", "test", value), metric=metric, loss=loss)
        assert (", loss" in evaluated_line(event)) == has
        result = {"metric": metric, "value": value, "loss": loss, "examples": 9, "split": "test", "task": "t"}
        result |= {"shots": 0, "calibrate": False, "before_training": None, "more": {}, "seconds": 1.0}
        labels = [label for label, _ in rows(result, "m", None)]
        assert labels.count("loss") == (metric == "loss" or has)


def test_steps_of_a_population_show_their_mean_reward():
    """The loss of such a step is 1 - reward, which nobody reads."""
    loaded = replace(RUN[2], objective="reward")
    view, file = view_on(80, False)
    view.show(loaded)
    view.show(events.Population(100, [7.0, 5.0], 0.5, 0.25))
    view.show(step(100, loss=-5.0))
    assert "reward 6.000  smoothed 0.400" in file.getvalue() and "1 - " not in file.getvalue()
    view.show(step(100, loss=None))
    assert "reward n/a" in file.getvalue()

    side_by_side = RunsView(Console(file=io.StringIO(), width=200), clock=Clock())
    for run in "ab":
        side_by_side.show(loaded, run)
    side_by_side.show(events.Population(100, [0.7, 0.1], 0.5, 0.25), "a")
    for run in "ba":
        side_by_side.show(step(100), run)
        side_by_side._clock.now += 20
    shown = side_by_side.console.file.getvalue()
    assert "a: step 100 of 100  reward 0.400" in shown and "b: step 100 of 100  1 - reward 0.6000" in shown


def test_a_loss_that_is_not_finite_is_said_and_not_stumbled_over():
    view, file = view_on(80, False)
    view.show(step(100, loss=None))
    assert "loss not finite" in file.getvalue()


def test_the_table_compares_on_the_test_split():
    history = RunHistory()
    for event in RUN:
        history.add(event)
    assert summary_rows(history) == [
        ("test accuracy", "61.0 % -> 78.0 %, standard error 4.1 points, n = 100"),
        ("majority class", "52.0 % on test"),
        ("training", "100 steps in 50 s, 2.00 steps/s"),
        ("peak memory", "812.0 MB (MLX's arrays 677.0 MB); cap 1.0 GB"),
    ]


def test_the_table_says_what_ended_a_run_and_counts_a_single_step():
    history = RunHistory()
    for event in (step(1), events.Finished({"stopped_by": "time"})):
        history.add(event)
    assert dict(summary_rows(history))["training"] == "1 step in 0.5 s, 2.00 steps/s, ended by its time limit"


def test_a_reward_has_the_scale_of_its_judge():
    history = RunHistory()
    for event in (evaluated("zero-shot", "test", 0.464), evaluated("test", "test", 0.498)):
        history.add(replace(event, metric="reward", majority=None))
    assert summary_rows(history) == [("test reward", "0.464 -> 0.498, n = 100")]


@pytest.mark.parametrize(("speed", "text"), [(2.0, "2.00 steps/s"), (0.03, "33 s/step"), (0.0, "0.00 steps/s")])
def test_slow_steps_are_told_in_seconds(speed, text):
    assert speed_text(speed) == text


def test_an_empty_run_has_an_empty_table():
    assert summary_rows(RunHistory()) == []


def test_tables_keep_markup_and_control_characters_as_text():
    console = Console(file=io.StringIO(), width=60)
    console.print(key_values([("run", "[red]a\x1b[31m")]))
    console.print(listing(["a", "b"], [["[b]x", "y"]], right=("b",)))
    assert "[red]a" in console.file.getvalue() and "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10.0 s"), (59, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min"), (90_000, "1 d 01 h")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100 %"), (0.996, "100 %"), (0.0751, "7.5 %"), (4.3e-5, "0.0043 %"), (8.2e-8, "0.0000082 %")],
)
def test_shares_in_percent_are_written_out(share, text):
    assert format_percent(share) == text


def test_commands_to_copy_hold_paths_as_a_shell_takes_them():
    rows = dict(result_rows({"out": "/tmp/Мои run's", "form": "fused"}))
    assert rows["use"].split(" --model ")[1] == "'/tmp/Мои run'\"'\"'s' \"...\""


def test_sizes_that_are_compared_have_one_unit():
    assert bytes_of(786_800_000, 900_000_000) == "786.8 of 900.0 MB"
    assert bytes_of(786_800_000, 2_000_000_000) == "0.79 of 2.00 GB"
    assert bytes_of(22_100_000_000, 25_300_000_000) == "22.1 of 25.3 GB"
    assert bytes_alike(512, 900) == ["512 B", "900 B"]


def test_counts_and_metrics():
    assert [format_count(count) for count in (960, 7488, 134_515_008, 1_711_376_384)] == [
        "960",
        "7.5k",
        "134.5M",
        "1.7B",
    ]
    assert format_metric("accuracy", 0.5) == "50.0 %" and format_metric("loss", 1.23456) == "1.235"
    assert format_metric("accuracy", None) == "n/a"


def test_errors_read_as_title_details_and_fix():
    failed = events.Failed("Data", "2 problems", "mend them", ["line 1: a", "line 2: b\nmore"], 4)
    assert describe(failed) == "Data: 2 problems\n  line 1: a\n  line 2: b\n  more\nFix: mend them"
    assert printable("a\tb\x00c\nd") == "a    b�c\nd"
