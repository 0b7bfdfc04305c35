"""Runs gathered by contestant: means, ranges, what became of those that did not finish, and honest words about it."""

import csv
import io
import json

import pytest
from rich.console import Console

from mlxzo.cli.commands.compare import exit_code
from mlxzo.cli.console import listing
from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory
from mlxzo.experiments.report.run_record import ComparedRun, labelled
from mlxzo.experiments.report.spread import Spread
from mlxzo.experiments.report.summary import ComparisonReport
from mlxzo.experiments.report.tables import csv_text, problems, short_table, spread_text, summary_table
from tests.experiments.report.recorded import (
    EVALUATION_SECONDS,
    STEP_SECONDS,
    failed,
    finished,
    memory,
    probed,
    record,
    story,
)

OPTIONS = {"memory_cap": "2GB"}


def report(tmp_path, told, **options):
    """A report of contestants, each with the stories of its seeds 0, 1, ..."""
    runs = [
        record(tmp_path, name, seed, each, **OPTIONS, **options)
        for name, stories in told.items()
        for seed, each in enumerate(stories)
    ]
    return ComparisonReport.of("a comparison", runs)


def test_a_row_has_the_mean_and_the_range_over_seeds(tmp_path):
    tests = (0.70, 0.74, 0.75)
    found = report(tmp_path, {"a": [finished(story([0.5, 0.6, 0.7], test=value)) for value in tests]})
    (each,) = found.contenders
    assert each.tuned == Spread(pytest.approx(0.73), 0.70, 0.75, 3)
    assert each.zero_shot == Spread(0.5, 0.5, 0.5, 3)
    # The best is the last of two evaluations, each after two steps.
    assert each.seconds_to_best.mean == 2 * (2 * STEP_SECONDS + EVALUATION_SECONDS)
    assert each.steps_per_second.mean == 1 / STEP_SECONDS
    header, (row,) = summary_table(found)
    assert dict(zip(header, row, strict=True)) == {
        "contestant": "1  a",
        "runs": "3 of 3",
        "zero-shot": "50.0 %",
        "test accuracy": "73.0 % (70.0 to 75.0)",
        "steps": "4",
        "steps/s": "0.50",
        "time to best": "28 s",
        "peak footprint": "800.0 MB",
        "of it MLX": "600.0 MB",
    }


def test_a_ridge_probe_stands_beside_the_contestants(tmp_path):
    runs = [record(tmp_path, "a", seed, finished(story([0.5, 0.7], test=0.7))) for seed in (0, 1)]
    found = ComparisonReport.of("x", runs, [probed("smollm2-135m", 0.8, 0.9)])
    header, (_, row) = summary_table(found)
    assert dict(zip(header, row, strict=True)) == {
        "contestant": "2  ridge probe, smollm2-135m",
        "runs": "2 seeds",
        "zero-shot": "-",
        "test accuracy": "85.0 % (80.0 to 90.0)",
        "steps": "-",
        "steps/s": "-",
        "time to best": "1 min 00 s",
        "peak footprint": "-",
        "of it MLX": "-",
    }
    assert found.remarks()[-1] == (
        "The ridge probe of smollm2-135m has a test accuracy of 85.0 %, with a standard error of 5.0 points: a linear "
        "map from the states after layer 15 of 30, chosen on 1,000 training rows (seed 0, 1), in 1 min 00 s without "
        "training. No contestant has more."
    )
    (told,) = found.to_dict()["ridge_probes"]
    assert (told["value"]["mean"], told["standard_error"], len(told["seeds"])) == (pytest.approx(0.85), 0.05, 2)
    worse = ComparisonReport.of("x", runs, [probed("smollm2-135m", 0.6)])
    assert worse.remarks()[-1].endswith("without training.")


def test_only_finished_runs_count_and_the_others_are_told_with_their_sentence(tmp_path):
    begun = story([0.5, 0.99])
    found = report(
        tmp_path,
        {
            "does not fit": [failed([], "Does not fit", "it needs 3.1 GB of 2.0 GB", 3, 3_100_000_000)],
            "disk full": [failed([], "Does not fit", "the disk has no room", 3)],
            "over the cap": [failed(begun, "Does not fit", "it went over its memory cap", 3)],
            "diverged": [failed(begun, "Diverged", "the loss is not a finite number", 5), finished(story([0.5, 0.6]))],
            "to come": [None],
            "stopped": [failed(begun, "Interrupted", "the run was stopped", 130)],
        },
    )
    status = {each.name: each.status for each in found.contenders}
    assert status == {
        "does not fit": "does not fit",
        "disk full": "failed",
        "over the cap": "failed",
        "diverged": "failed",
        "to come": "not run",
        "stopped": "interrupted",
    }
    assert {each.name: each.tuned and each.tuned.mean for each in found.contenders}["diverged"] == 0.6
    assert [each.name for each in found.contenders if each.tuned] == ["diverged"]
    assert problems(found) == [
        ("does not fit", "it needs 3.1 GB of 2.0 GB"),
        ("disk full", "the disk has no room"),
        ("over the cap", "it went over its memory cap"),
        ("diverged", "the loss is not a finite number"),
    ]
    assert "2 of 7 runs are not done." in found.remarks()
    assert summary_table(found)[1][0][1] == "0 of 1, does not fit: needs 3.1 GB"
    assert exit_code(found) == 3
    assert (
        exit_code(report(tmp_path / "fits", {"large": [failed([], "Does not fit", "no", 3, 10)], "to come": [None]}))
        == 0
    )


def test_without_a_test_split_the_best_on_validation_is_told_as_such(tmp_path):
    found = report(tmp_path, {"a": [finished(story([0.5, 0.8, 0.6]))]})
    assert found.split == "validation" and found.contenders[0].tuned.mean == 0.8
    assert summary_table(found)[0][3] == "validation accuracy"


def test_a_curve_is_straight_between_evaluations_and_level_after_the_last(tmp_path):
    # Evaluations at 14, 28 and 42 s, and at 18 s.
    found = report(tmp_path, {"a": [finished(story([0.5, 0.6, 0.7, 0.8])), finished(story([0.5, 0.9], every=4))]})
    band = {seconds: (mean, low, high) for seconds, mean, low, high in found.contenders[0].band()}
    assert sorted(band) == [0, 14, 18, 28, 42]
    assert band[0] == (0.5, 0.5, 0.5)
    other = 0.5 + 0.4 * 14 / 18
    assert band[14] == (pytest.approx((0.6 + other) / 2), 0.6, pytest.approx(other))
    assert band[42] == (pytest.approx(0.85), pytest.approx(0.8), 0.9)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((0.9, 0.92), (0.6, 0.7), "Best test accuracy: a, 91.0 % (zero-shot 50.0 %); next: b, 65.0 %."),
        # 100 examples: two standard errors are 10 points.
        ((0.7, 0.7), (0.62, 0.62), "within two standard errors: these figures do not tell them apart."),
        ((0.95, 0.75), (0.5, 0.8), "Their ranges over seeds overlap."),
    ],
)
def test_the_verdict_says_whether_the_difference_means_something(tmp_path, first, second, words):
    told = {
        name: [finished(story([0.5, 0.6], test=value)) for value in values]
        for name, values in (("a", first), ("b", second))
    }
    assert words in report(tmp_path, told).verdict()


def test_a_loss_is_better_when_it_is_smaller(tmp_path):
    def losses(value):
        return [
            events.Evaluated("zero-shot", "validation", 0, "loss", 2.0, 2.0, 50, None, 1.0, False),
            events.Evaluated("validation", "validation", 2, "loss", value, value, 50, None, 1.0, True),
        ]

    found = report(tmp_path, {"worse": [finished(losses(1.5))], "better": [finished(losses(1.2))]})
    assert found.verdict().startswith("Best validation loss: better, 1.200 (zero-shot 2.000); next: worse, 1.500")
    assert found.standard_error is None
    # Ranges overlap, whichever way is better.
    near = report(
        tmp_path / "near",
        {name: [finished(losses(v)) for v in values] for name, values in (("a", (1.5, 1.2)), ("b", (1.4, 1.4)))},
    )
    assert near.verdict().endswith("Their ranges over seeds overlap.")


def test_what_makes_runs_incomparable_is_said(tmp_path):
    told = finished(story([0.5, 0.6], test=0.6))
    one = record(tmp_path, "one", 0, told, memory_cap="2GB", task="sst2")
    two = record(tmp_path, "two", 0, told, memory_cap="3GB", task="boolq")
    for run, sha in ((one, "a"), (two, "b")):
        (run.run.path / "environment.json").write_text(json.dumps({"data_sha256": sha, "platform": sha}))
    remarks = "\n".join(ComparisonReport.of("x", [one, two]).remarks())
    assert "the task (sst2, boolq)" in remarks and "the memory cap (2GB, 3GB)" in remarks
    assert "did not see the same data" in remarks and "do not compare their times" in remarks
    assert "With one seed there is no range" in remarks
    remarks = "\n".join(ComparisonReport.of("x", [one, one]).remarks())
    assert "Not the same" not in remarks and "same data" not in remarks


def test_runs_made_for_themselves_are_one_contestant_where_only_the_seed_differs(tmp_path):
    told = finished(story([0.5, 0.6]))
    runs = [
        record(tmp_path, f"run {number}", seed, told, scope=scope, lr=lr).run
        for number, (seed, scope, lr) in enumerate(
            [(0, "lora", 1e-3), (1, "lora", 1e-3), (0, "lora", 1e-2), (0, "full", 1e-2)]
        )
    ]
    names = [run.contestant for run in labelled(runs)]
    assert names[0] == names[1] == "smollm2-135m mezo lora lr=0.001 eps=0.01"
    assert len(set(names)) == 3 and "lr=0.01" in names[2] and names[3].startswith("smollm2-135m mezo full")


def test_csv_has_one_row_a_run_with_plain_numbers(tmp_path):
    found = report(
        tmp_path,
        {'=a, "quoted"': [finished(story([0.5, 0.6], test=0.7))], "b": [failed([], "Data", "no data", 4)]},
    )
    first, second = csv.DictReader(io.StringIO(csv_text(found)))
    assert first["contestant"] == '\'=a, "quoted"' and float(first["test"]) == 0.7 and first["seed"] == "0"
    assert float(first["footprint_bytes"]) == 800_000_000 and first["memory_cap_bytes"] == "2000000000"
    assert (second["status"], second["test"], second["problem"]) == ("failed", "", "no data")


def test_memory_is_that_of_runs_that_computed_something(tmp_path):
    stuck = failed([memory(9_000_000_000, 9_000_000_000)], "Model", "no such model", 4)
    found = report(tmp_path, {"a": [finished(story([0.5, 0.6])), stuck]})
    assert found.contenders[0].footprint_bytes.high == 800_000_000


def test_a_damaged_run_hides_no_other(tmp_path):
    good = record(tmp_path, "good", 0, finished(story([0.5, 0.6])))
    torn = record(tmp_path, "torn", 0, [])
    torn.run.events_path.write_bytes(b'\xff{"event": "step"')
    (torn.run.path / "environment.json").write_text("[1")
    found = ComparisonReport.of("x", [good, ComparedRun("torn", torn.config, RunDirectory(torn.run.path))])
    assert [each.status for each in found.contenders] == ["finished", "failed"]
    assert summary_table(found)[1][1][1] == "0 of 1, failed"


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (None, "-"),
        (Spread(0.7, 0.7, 0.7, 1), "70.0 %"),
        (Spread(0.7, 0.69999, 0.70001, 3), "70.0 %"),
        (Spread(0.7, 0.65, 0.75, 3), "70.0 % (65.0 to 75.0)"),
    ],
)
def test_a_range_is_shown_where_there_is_one(spread, text):
    assert spread_text(spread, lambda value: f"{100 * value:.1f} %") == text


def test_contestants_are_measured_on_one_split(tmp_path):
    told = {"with": [finished(story([0.5, 0.6], test=0.9))], "without": [finished(story([0.4, 0.7]))]}
    found = report(tmp_path, told)
    assert found.split == "validation"
    assert [each.tuned.mean for each in found.contenders] == [0.6, 0.7]
    assert [each.zero_shot.mean for each in found.contenders] == [0.5, 0.4]


def test_the_short_table_fits_80_columns(tmp_path):
    told = {"a long name " * 5: [finished(story([0.5, 0.6], step_seconds=9999.0, test=value)) for value in (0.7, 0.9)]}
    console = Console(file=io.StringIO(), width=80)
    header, rows = short_table(report(tmp_path, told))
    console.print(listing(header, rows, right=tuple(header[1:])))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3 and "80.0 % (70.0 to 90.0)" in lines[-1] and "5 h 33 min" in lines[-1]
