"""Whole batches from the command line: real workers on a tiny model; some fail, some are stopped and gone on with."""

import json

import pytest

from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory, list_runs
from tests.command import ctrl_c, mlxzo, once
from tests.tiny import tiny_folder

SMALL = "estimator: spsa, steps: 4, eval_every: 2, batch_size: 4, "
SMALL += "train_examples: 16, validation_examples: 8, test_examples: 8"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def batch(*arguments):
    return mlxzo("batch", *arguments)


def summary(folder):
    return [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def four(model, tmp_path_factory):
    """Four runs of which two fail by design: their scope is wrong for the model, which only loading shows."""
    root = tmp_path_factory.mktemp("runs")
    path = root / "four.yaml"
    path.write_text(
        f"seeds: [0, 1]\nout: {root}\ndefaults: {{model: {model}, {SMALL}}}\ngrid: {{scope: ['match:none.*', lora]}}\n"
    )
    return batch(path), path, root


def test_two_of_four_fail_and_the_others_finish(four):
    done, _, root = four
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    found = summary(root / "four")
    failed = [each for each in found if each["status"] == "failed"]
    finished = [each for each in found if each["status"] == "finished"]
    assert [each["id"] for each in failed] == ["four-scope-match-none-s0", "four-scope-match-none-s1"]
    assert all(each["exit_code"] == 2 and "fits no parameter" in each["problem"] for each in failed)
    assert len(finished) == 2 and len(found) == 4
    for each in finished:
        result = RunDirectory(root / each["id"]).result()
        assert each["value"] == result["test"]["value"] and each["zero_shot"] == result["zero_shot"]["test"]["value"]
        assert each["majority"] == result["test"]["majority"] and each["exit_code"] == 0 and each["seconds"] > 0
        assert each["peak_bytes"] > 5e7
    assert found[3]["options"] == {"scope": "lora", "seed": 1}
    assert "4 runs: 2 failed, 2 finished" in done.stdout and "run 4 of 4, all done in about" in done.stderr
    # They are ordinary runs; the summary beside them is none.
    assert {run.id for run in list_runs(root)} == {each["id"] for each in found}


def test_asked_again_it_runs_only_the_two(four):
    _, path, root = four
    before = {run.id: run.events_path.read_text() for run in list_runs(root)}
    planned = json.loads(batch(path, "--dry-run", "--json").stdout)
    assert [each["state"] for each in planned["runs"]] == ["to run", "done"] * 2
    again = batch(path, "--json")
    document = json.loads(again.stdout)
    assert again.returncode == document["exit_code"] == 2 and len(document["runs"]) == 4
    begun = [line.split(": ")[-1] for line in again.stderr.splitlines() if line.startswith("Note: run ")]
    assert begun == ["four-scope-match-none-s0", "four-scope-match-none-s1"]
    for run in list_runs(root):
        assert (run.events_path.read_text() == before[run.id]) is ("none" not in run.id)
        assert len([event for event, _ in run.events() if isinstance(event, events.Finished | events.Failed)]) == 1


def test_what_made_runs_fail_can_be_mended_in_the_file(model, tmp_path):
    path = tmp_path / "b.yaml"
    text = f"out: {tmp_path}\ndefaults: {{model: {model}, {SMALL}}}\nruns: [{{name: a, scope: SCOPE}}]\n"
    path.write_text(text.replace("SCOPE", "match:none.*"))
    assert batch(path).returncode == 2
    path.write_text(text.replace("SCOPE", "norms/last-2"))
    assert batch(path).returncode == 0
    # What has finished is not another run by a change of the file.
    path.write_text(text.replace("SCOPE", "lora"))
    done = batch(path)
    assert done.returncode == 2 and "b-a-s0: scope: norms/last-2, not lora" in done.stderr


def test_a_dry_run_says_what_fits_and_trains_nothing(model, tmp_path):
    path = tmp_path / "b.yaml"
    path.write_text(
        f"out: {tmp_path / 'runs'}\ndefaults: {{model: {model}, {SMALL}}}\n"
        "grid: {memory_cap: [1GB, 20MB]}\nruns: [{name: far, model: someone/unheard-of}]\n"
    )
    done = batch(path, "--dry-run")
    assert done.returncode == 3, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("b-")}
    assert rows["b-memory-cap-1GB-s0"][-4:] == ["1.0", "GB", "yes", "unknown"]
    assert rows["b-memory-cap-20MB-s0"][-4:] == ["20.0", "MB", "no", "unknown"]
    assert "unknown" in rows["b-far-s0"] and "not known before it is downloaded" in done.stdout
    assert "3 of 3 runs to do" in done.stdout and "plan --calibrate" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_two_jobs_at_a_time_tell_of_each_by_name(model, tmp_path):
    path = tmp_path / "pair.yaml"
    path.write_text(
        f"out: {tmp_path}\nseeds: [0, 1]\ndefaults: {{model: {model}, scope: lora, memory_cap: 1GB, {SMALL}}}\n"
    )
    done = batch(path, "--jobs", "2", "--memory-cap", "2GB")
    assert done.returncode == 0, done.stderr
    assert [each["status"] for each in summary(tmp_path / "pair")] == ["finished", "finished"]
    lines = done.stderr.splitlines()
    for run in ("pair-s0", "pair-s1"):
        assert any(line.startswith(f"{run}: zero-shot: test accuracy") for line in lines), done.stderr


def test_ctrl_c_leaves_every_run_so_that_the_same_command_goes_on(model, tmp_path):
    path = tmp_path / "long.yaml"
    text = f"out: {tmp_path}\nseeds: [0, 1]\ndefaults: {{model: {model}, scope: lora, STEPS}}\n"
    path.write_text(text.replace("STEPS", SMALL.replace("steps: 4", "steps: 100000")))
    first = RunDirectory(tmp_path / "long-s0")
    with once(lambda: first.last_event(events.Step), ctrl_c):
        done = batch(path)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert [each["status"] for each in summary(tmp_path / "long")] == ["interrupted", "not run"]
    assert "1 interrupted, 1 not run" in done.stdout
    reached = first.last_event(events.Step).step
    # Fewer steps than asked for before: the run that is half done takes the file's new number.
    path.write_text(text.replace("STEPS", SMALL.replace("steps: 4", f"steps: {reached + 2}")))
    done = batch(path)
    assert done.returncode == 0, done.stderr
    assert f"the run continues after step {reached}" in done.stderr
    assert [(each["status"], each["steps"]) for each in summary(tmp_path / "long")] == [("finished", reached + 2)] * 2
