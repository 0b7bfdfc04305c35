"""`mlxzo runs` as a user meets it, on runs that a worker has left: lists, plots, differences, removal."""

import fcntl
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from mlxzo.cli.main import main
from mlxzo.cli.plots import plots
from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory, list_runs
from mlxzo.core.run_history import RunHistory
from tests.experiments.report.recorded import evaluated, failed, finished, memory, record, step, story
from tui.run_list import read_entry


def result(value, metric="accuracy"):
    return {
        "steps": 4,
        "zero_shot": {"test": {"metric": metric, "value": 0.5}},
        "test": {"metric": metric, "value": value},
    }


@pytest.fixture
def root(tmp_path):
    """Four runs: two finished, one failed, one that died."""
    folder = tmp_path / "runs"
    for name, value in (("best", 0.75), ("worse", 0.5)):
        run = record(folder, name, 0, finished(story([0.5, value], test=value)), scope="lora", model="gemma-3-270m").run
        run.write_json("result.json", result(value))
    record(folder, "broken", 1, failed(story([0.5, 0.6]), "Diverged", "not finite", 5), method="bp", scope="full")
    record(folder, "dead", 2, story([0.5, 0.5]))
    return folder


def runs(capsys, root, *arguments):
    code = main(["runs", *arguments, "--out", str(root)])
    return code, capsys.readouterr()


def ids(capsys, root, *arguments):
    return [each["id"] for each in json.loads(runs(capsys, root, "ls", "--json", *arguments)[1].out)]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], {"best-s0", "worse-s0", "broken-s1", "dead-s2"}),
        (["--status", "failed"], {"broken-s1"}),
        (["--status", "failed", "--status", "died"], {"broken-s1", "dead-s2"}),
        (["--model", "GEMMA"], {"best-s0", "worse-s0"}),
        (["--method", "bp"], {"broken-s1"}),
        (["--task", "reviews", "--model", "smollm2"], {"broken-s1", "dead-s2"}),
        (["lora", "best"], {"best-s0"}),
        (["lora", "--status", "died"], set()),
    ],
)
def test_the_list_holds_what_was_asked_for(capsys, root, arguments, found):
    assert set(ids(capsys, root, *arguments)) == found


def test_the_list_is_sorted_as_asked(capsys, root):
    assert ids(capsys, root, "--sort", "name") == ["best-s0", "broken-s1", "dead-s2", "worse-s0"]
    assert ids(capsys, root, "--sort", "name", "--reverse")[0] == "worse-s0"
    assert ids(capsys, root, "--sort", "accuracy")[:2] == ["best-s0", "worse-s0"]
    assert ids(capsys, root, "--sort", "status")[0] == "dead-s2"
    # Of a loss, the lowest is the best; of a reward, the highest.
    for metric, first in (("loss", "worse-s0"), ("reward", "best-s0")):
        for name, value in (("best-s0", 2.5), ("worse-s0", 1.5)):
            RunDirectory(root / name).write_json("result.json", result(value, metric))
        assert ids(capsys, root, "--sort", "accuracy")[0] == first


def test_a_list_without_a_match_says_so(capsys, root):
    assert "matches (4 runs)" in runs(capsys, root, "ls", "nothing-like-it")[1].out


def test_a_run_is_shown_with_its_curves(capsys, root):
    shown = runs(capsys, root, "show", "best-s0")[1].out
    for words in ("training loss", "validation accuracy\n75.0 % ┤", "step 2"):
        assert words in shown, shown


def test_a_run_that_was_killed_and_resumed_shows_every_step_once(capsys, root):
    """A run of 100 steps that was killed at step 60 and went on from step 20 had "140 steps" and their seconds."""
    told = [step(n, 100, 1000) for n in range(1, 61)] + [memory(9_000_000, 1000), events.Resumed(20)]
    told += [step(n, 100, 1000) for n in range(21, 101)] + [memory(5_000_000, 1000)]
    record(root, "resumed", 0, finished(told), method="bp")
    shown = runs(capsys, root, "show", "resumed-s0")[1].out
    assert "100 steps in 3 min 20 s, 0.50 steps/s" in shown
    # The most that either of its processes took.
    assert "9.0 MB (MLX's arrays 1.0 kB)" in shown


@pytest.mark.parametrize("members", [True, False])
def test_a_run_by_rewards_shows_no_loss_where_there_is_none(root, capsys, members):
    """The loss of prompts without right answers is 1 - reward: what spsa minimises, while a step of es has members."""
    told = [events.Loaded("m", "hub", 10, 2, 1, "ab", "orders", 1, 2, 3, 4, "reward")]
    told.append(events.Evaluated("zero-shot", "validation", 0, "reward", 0.25, 0.75, 9, None, 1.0, True))
    for number in (1, 2, 3):
        told += [events.Population(number, [0.25 * number, 0.25], 0.1, 0.3)] if members else []
        told += [replace(step(number, 3, 1000), smoothed_loss=1 - number / 8)]
    record(root, "rewards", 0, told)
    shown = runs(capsys, root, "show", "rewards-s0")[1].out
    assert "zero-shot: validation reward 0.250 (9 examples" in shown
    assert ("\nmean reward of the members\n0.500 ┤" in shown) == members
    assert ("\ntraining 1 - reward, smoothed\n0.8750 ┤" in shown) == (not members)


def test_a_plot_goes_up_where_its_values_do_and_leaves_out_what_is_not_known():
    history = RunHistory()
    for number, value in enumerate((0.2, 0.4, None, 0.8)):
        history.add(replace(step(number + 1, 4, 1000), smoothed_loss=value))
    title, *rows, axis = plots(history, 60)[1:]
    assert title == "training loss, smoothed" and rows[0].startswith("0.8000 ┤") and rows[-1].startswith("0.2000 ┤")
    assert re.fullmatch(r" +step 1 +step 4", axis)
    # Where the first dot of each row is: the higher the row, the further right.
    first = [re.search("[\u2801-\u28ff]", row).start() for row in rows]
    assert first == sorted(first, reverse=True) and len(set(first)) == len(rows)
    assert all(len(row) <= 60 for row in (*rows, axis))


def test_flat_and_missing_curves_and_time_that_went_back_are_plotted_without_a_fuss():
    history = RunHistory()
    assert plots(history, 80) == []
    for number in range(1, 9):
        history.add(step(number, 8, 1000))
        history.add(memory(5_000_000, 1000))
    history.add(events.Resumed(2))
    history.add(memory(9_000_000, 1000))
    history.add(evaluated("validation", "validation", 2, np.nan))
    lines = plots(history, 10, 10**9)
    assert sum("0.6000 ┤⠤⠤" in line for line in lines) == 1 and "memory, cap 1.0 GB" in lines


def test_two_runs_differ_in_options_and_then_in_results(capsys, root):
    code, printed = runs(capsys, root, "diff", "best-s0", "broken-s1", "--json")
    found = json.loads(printed.out)
    assert code == 0 and found["runs"] == ["best-s0", "broken-s1"]
    assert found["options"]["scope"] == ["lora", "full"] and found["options"]["seed"] == [0, 1]
    assert not {"name", "out", "batch_size"} & found["options"].keys()
    assert found["results"]["status"] == ["finished", "failed"] and found["results"]["test"] == [0.75, None]
    text = runs(capsys, root, "diff", "best-s0", "worse-s0")[1].out
    assert "No option differs." in text and re.search(r"test +75.0 % +50.0 %", text)


def test_runs_are_removed_where_it_was_said_that_they_may(capsys, root):
    code, printed = runs(capsys, root, "rm", "dead-s2", str(root / "worse-s0"), "--yes")
    assert code == 0 and "Removed dead-s2, worse-s0" in printed.out
    assert {run.id for run in list_runs(root)} == {"best-s0", "broken-s1"}


@pytest.mark.parametrize(("answer", "left"), [("y\n", 3), ("n\n", 4), ("", 4)])
def test_removing_asks_first(capsys, root, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: answer, raising=False)
    assert runs(capsys, root, "rm", "dead-s2")[0] == 0
    assert len(list_runs(root)) == left


def test_without_a_terminal_nothing_is_removed_unasked(capsys, root):
    code, printed = runs(capsys, root, "rm", "dead-s2")
    assert code == 2 and "--yes" in printed.err and len(list_runs(root)) == 4


def test_nothing_but_a_run_inside_the_folder_is_removed_and_all_that_is_wrong_is_told(capsys, root, tmp_path):
    outside = record(tmp_path / "elsewhere", "mine", 0, story([0.5, 0.5])).run.path
    (root / "link").symlink_to(outside)
    (root / "notes").mkdir()
    (root / "notes" / "thesis.tex").write_text("x")
    with (root / "best-s0" / "worker.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        arguments = ["link", "notes", "..", ".", str(outside), "../elsewhere/mine-s0", "best-s0", "dead-s2", "none"]
        code, printed = runs(capsys, root, "rm", *arguments, "--yes")
    assert code == 2 and "nothing was removed" in printed.err
    for words in ("link is a link", "no run notes", "no run ..", "mine-s0 does not lie in", "run best-s0 is running"):
        assert words in printed.err, printed.err
    assert len(printed.err.splitlines()) == len(arguments) - 1 + 2
    assert outside.exists() and (root / "notes" / "thesis.tex").exists()
    assert {"best-s0", "dead-s2"} <= {run.id for run in list_runs(root)}


def test_a_damaged_run_and_one_of_a_newer_version_can_be_removed_and_are_told_by_the_list(capsys, root):
    (root / "dead-s2" / "config.yaml").write_text("steps: [")
    (root / "worse-s0" / "schema.json").write_text('{"version": 99, "mlxzo": "9.0"}')
    os.mkfifo(root / "broken-s1" / "result.json")
    listed = " ".join(runs(capsys, root, "ls")[1].out.split())
    assert "files of version 99" in listed and "not valid YAML" in listed and "no regular file" in listed
    problems = {run.id: read_entry(run).problem for run in list_runs(root)}
    assert problems.pop("best-s0") == "" and all(problems.values())
    code, printed = runs(capsys, root, "show", "worse-s0")
    assert code == 2 and "upgrade mlxzo to 9.0 or later" in printed.err
    assert runs(capsys, root, "rm", "dead-s2", "worse-s0", "--yes")[0] == 0
    assert {run.id for run in list_runs(root)} == {"best-s0", "broken-s1"}
