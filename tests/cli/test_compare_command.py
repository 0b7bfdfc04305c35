"""Whole comparisons from the command line: real workers on tiny models; broken, stopped, and gone on with."""

import csv
import json

import pytest

from mlxzo.cli.commands.compare import read_comparison
from mlxzo.cli.main import command_parser
from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory, list_runs
from tests.command import ctrl_c, mlxzo, once
from tests.tiny import tiny_folder

SMALL = ["--estimator", "spsa", "--steps", "4", "--eval-every", "2", "--batch-size", "4", "--schedule", "constant"]
SMALL += ["--train-examples", "16", "--validation-examples", "8", "--test-examples", "8", "--name", "contest"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def compare(*arguments):
    return mlxzo("compare", *arguments)


@pytest.fixture
def unprobed(tmp_path):
    """The options of a comparison without ridge probes."""
    path = tmp_path / "unprobed.yaml"
    path.write_text("ridge_probe: false\n")
    return ["--config", str(path)]


def contestants(*texts):
    return [word for text in texts for word in ("--contestant", text)]


@pytest.fixture(scope="module")
def contest(model, tmp_path_factory):
    """Three contestants, one of them broken: its scope is wrong for the model, which only loading shows."""
    root = tmp_path_factory.mktemp("runs")
    three = contestants(f"name='norms & co' {model} norms/last-2", f"name=broken {model} match:none.*", f"{model} lora")
    done = compare(*SMALL, "--out", root, *three, "--json")
    return done, root, {run.id: run.status for run in list_runs(root)}


def test_one_broken_contestant_does_not_keep_the_others_from_finishing(contest):
    done, root, statuses = contest
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert {each["name"]: (each["status"], each["finished"], each["problem"]) for each in found["contestants"]} == {
        "norms & co": ("finished", 1, None),
        "broken": ("failed", 0, "match:none.* fits no parameter that can train"),
        "tiny mezo lora": ("finished", 1, None),
    }
    # One model and one seed have one probe, whatever the contestants.
    (probe,) = found["ridge_probes"]
    assert probe["model"] == "tiny" and [each["seed"] for each in probe["seeds"]] == [0]
    assert probe["seeds"][0]["examples"] == 8 and (root / "contest" / "probe-tiny-s0.json").exists()
    assert "run 3 of 3, all done in about" in done.stderr
    assert "contest-broken-s0: match:none.* fits no parameter" in done.stderr
    # They are ordinary runs; the report beside them is none.
    assert statuses == {
        "contest-norms-co-s0": "finished",
        "contest-broken-s0": "failed",
        "contest-tiny-mezo-lora-s0": "finished",
    }
    rows = csv.DictReader((root / "contest" / "runs.csv").read_text().splitlines())
    steps = {row["contestant"]: row["steps"] for row in rows if row["seed"] == "0"}
    assert (steps["norms & co"], steps["broken"]) == ("4", "0")
    page = (root / "contest" / "report.html").read_text()
    assert "norms &amp; co" in page and "fits no parameter that can train" in page


def test_asked_again_with_one_more_seed_it_runs_what_is_missing(contest, model):
    _, root, _ = contest
    first = RunDirectory(root / "contest-norms-co-s0").path.stat().st_ino
    two = contestants(f"name='norms & co' {model} norms/last-2", f"name=broken {model} match:none.*")
    done = compare(*SMALL, "--seeds", "0,1", "--out", root, *two)
    assert done.returncode == 2, done.stderr
    assert [word for word in ("norms-co-s0", "broken-s0", "norms-co-s1", "broken-s1") if word in done.stderr] == [
        "broken-s0",
        "norms-co-s1",
        "broken-s1",
    ]
    assert RunDirectory(root / "contest-norms-co-s0").path.stat().st_ino == first
    assert "ridge probe of tiny, seed 1" in done.stderr and "ridge probe of tiny, seed 0" not in done.stderr
    for words in (
        "3  ridge probe, tiny\n",
        "1  norms & co\n",
        "2  broken (failed)",
        "2/2",
        "0/2",
        "test accuracy",
        "Best test accuracy: norms & co",
        "report.html",
    ):
        assert words in done.stdout


def test_a_comparison_has_the_name_in_its_file_unless_a_flag_gives_another(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: mine\ncontestants:\n  - smollm2-135m mezo lora\n  - smollm2-135m bp lora\n")
    parser = command_parser("compare")
    for more, name in (([], "mine"), (["--name", "other"], "other")):
        assert read_comparison(parser.parse_arguments(["--config", str(path), *more])).name == name


def test_runs_of_these_names_with_other_options_are_refused(contest, model):
    _, root, _ = contest
    before = {run.id for run in list_runs(root)}
    one = contestants(f"name='norms & co' {model} norms/last-2 batch_size=5", f"name=new {model}")
    done = compare(*SMALL, "--out", root, *one)
    assert done.returncode == 2 and "contest-norms-co-s0: batch_size: 4, not 5" in done.stderr
    assert {run.id for run in list_runs(root)} == before


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", ".", "a/b"])
def test_a_name_does_not_lead_out_of_the_folder(name, contest):
    _, root, _ = contest
    done = compare("--runs", "contest-norms-co-s0", "--out", root, "--name", name)
    assert done.returncode == 2 and "must be 1-40 letters" in done.stderr


def test_runs_that_exist_are_compared_without_training(contest, tmp_path):
    _, root, _ = contest
    names = ["contest-norms-co-s0", root / "contest-tiny-mezo-lora-s0"]
    done = compare("--runs", *names, "--out", root, "--report", tmp_path / "report", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["name"].split(" ")[:3] for each in found["contestants"]] == [
        ["tiny", "mezo", "norms/last-2"],
        ["tiny", "mezo", "lora"],
    ]
    assert (tmp_path / "report" / "report.html").exists() and found["report"] == str(tmp_path / "report")


def test_a_contestant_that_does_not_fit_the_cap_is_listed_with_its_need_and_is_no_failure(model, unprobed, tmp_path):
    # 28 MB of weights, which gradients and Adam's means make 112; Python and MLX take some 100 themselves.
    larger = tiny_folder(tmp_path / "larger", hidden=512)
    two = contestants(f"name=fits {model} norms/last-2", f"name=large {larger} bp full")
    done = compare(*SMALL, *unprobed, "--memory-cap", "150MB", "--out", tmp_path, *two, "--json")
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)["ridge_probes"] and "ridge probe" not in done.stderr
    fits, large = json.loads(done.stdout)["contestants"]
    assert (fits["status"], fits["needed_bytes"], fits["finished"]) == ("finished", None, 1)
    assert fits["footprint_bytes"]["high"] < 150e6
    assert large["status"] == "does not fit" and large["needed_bytes"] > 150e6 and "needs" in large["problem"]
    page = (tmp_path / "contest" / "report.html").read_text()
    assert "does not fit: needs" in page and "predicted peak" in page


def test_ctrl_c_ends_the_comparison_and_keeps_what_is_done(model, unprobed, tmp_path):
    two = contestants(f"name=quick {model} norms/last-2", f"name=slow {model} norms/last-1")
    options = ["--minutes", "0.01", "--name", "c", "--estimator", "spsa", "--batch-size", "4", "--eval-every", "50"]
    options += ["--train-examples", "16", "--validation-examples", "8", "--test-examples", "8"]
    arguments = ["compare", *unprobed, *options, "--out", str(tmp_path), *two]
    second = RunDirectory(tmp_path / "c-slow-s0")
    with once(lambda: second.last_event(events.Phase), ctrl_c):
        done = mlxzo(*arguments)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert "stopping after this step" in done.stderr
    assert {run.id: run.status for run in list_runs(tmp_path)} == {"c-quick-s0": "finished", "c-slow-s0": "interrupted"}
    assert "2  slow (interrupted)" in done.stdout and "1 of 2 runs are not done" in done.stdout
    assert (tmp_path / "c" / "report.html").exists()
    done = mlxzo(*arguments)
    assert done.returncode == 0 and "c-quick-s0" not in done.stderr, done.stderr
    assert [run.status for run in list_runs(tmp_path)] == ["finished", "finished"]
