"""A user's files of version 0.1.0, from before modules moved: runs, a journal, an adapter, a batch file.

`written_by_0.1.0/` was written by the code of commit 7f636ba: on a two-layer model, runs that finished, one killed by
SIGKILL after step 5, one interrupted by SIGINT, a batch of four, an exported adapter and an exported journal; and the
journals of two more runs, with estimator `fzoo` and with momentum 0.5.
`@FOLDER@` in its text files stands for where the folder lies.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlxzo.cli import main
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import DataError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.core.yaml_file import read_yaml
from mlxzo.engine.tuned_source import read_journal

WRITTEN = Path(__file__).parent / "written_by_0.1.0"
TEXTS = ("config.yaml", "adapter_config.json")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the files, made the current folder."""
    folder = tmp_path / "written"
    shutil.copytree(WRITTEN, folder)
    for path in (path for name in TEXTS for path in folder.rglob(name)):
        path.write_text(path.read_text().replace("@FOLDER@", str(folder)))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def mlxzo(folder, capsys):
    """Runs a command in `folder` and returns what its `--json` says; `table` is what it has shown beside that."""

    def run(*arguments: str) -> dict | list:
        code = main([*arguments, "--json"])
        shown, run.table = capsys.readouterr()
        assert code == 0, shown
        return json.loads(shown)

    return run


def test_every_run_is_listed_with_its_status(folder):
    statuses = {path.name: RunDirectory.open(path.name).status for path in (folder / "runs").glob("*-*")}
    assert statuses == {
        **dict.fromkeys(("mezo-done", "bp-done", "lora-done"), "finished"),
        **{f"rates-lr-{lr}-s{seed}": "finished" for lr in (0.1, 0.2) for seed in (0, 1)},
        "mezo-killed": "died",
        "bp-interrupted": "interrupted",
    }


@pytest.mark.parametrize(("cut", "whole"), [("mezo-killed", "mezo-done"), ("bp-interrupted", "bp-done")])
def test_a_run_that_was_cut_goes_on_to_the_weights_of_the_whole_one(mlxzo, cut, whole):
    result = mlxzo("train", "--resume", cut)
    assert result["steps"] == 12 and "12 steps in" in mlxzo.table and "validation accuracy" in mlxzo.table
    expected = RunDirectory.open(whole).result()
    assert close(result, expected)


def close(result: dict, expected: dict) -> bool:
    """Whether two results agree up to the rounding of a forward pass.

    0.1.0 computed the last decoder layer at all positions, this version at the scored ones only, in micro-batches of
    half the size: the same numbers, with other last bits.
    """
    losses = [[each["best"]["validation"]["loss"], each["training_loss"]["last"]] for each in (result, expected)]
    return losses[0] == pytest.approx(losses[1], rel=1e-3) and result["best"]["step"] == expected["best"]["step"]


def test_a_journal_is_replayed_to_the_weights_that_it_names(mlxzo, folder):
    mlxzo("replay", "tuned.mlxzo", "--to", "fused", "--out", "tuned")
    assert (folder / "tuned" / "model.safetensors").is_file()


def test_a_journal_of_an_estimator_that_was_removed_is_replayed_to_the_weights_that_it_names(mlxzo, folder):
    found = mlxzo("replay", "fzoo.mlxzo", "--to", "fused", "--out", "tuned")
    assert found["verified"] and found["steps"] == 12
    assert found["sha256"] == read_journal(folder / "fzoo.mlxzo").header.sha256
    mlxzo("eval", "--journal", "fzoo.mlxzo", "--data", "data", "--split", "validation")


def test_a_journal_with_momentum_is_refused_with_the_version_that_replays_it(folder, capsys):
    assert main(["replay", "momentum.mlxzo", "--to", "fused", "--out", "tuned", "--json"]) == DataError.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"] == (
        "momentum.mlxzo is of a run with momentum 0.5: this mlxzo has no momentum, and version 0.1 replays it"
    )
    assert error["fix"] == "use mlxzo 0.1 for this journal" and not (folder / "tuned").exists()


def test_an_adapter_evaluates_as_the_run_that_it_was_exported_from(mlxzo):
    data = ("--model", "model", "--task", "custom", "--data", "data")
    of_adapter = mlxzo("eval", *data, "--adapter", "adapter")
    of_run = mlxzo("eval", "--run", "lora-done")
    for name in ("value", "loss", "examples", "more"):
        assert of_adapter[name] == of_run[name]


def test_a_batch_that_is_done_stays_done(mlxzo, folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("events.jsonl")}
    mlxzo("batch", "rates.yaml")
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("events.jsonl")}


def test_a_configuration_trains_again(mlxzo, folder):
    values = read_yaml(folder / "runs" / "mezo-done" / "config.yaml")
    assert values["prefix_cache"] == "ram"
    again = mlxzo("train", "--config", "runs/mezo-done/config.yaml", "--name", "again")
    assert close(again, RunDirectory.open("mezo-done").result())


def test_directions_without_signal_are_read_under_their_name_of_today(folder):
    """0.1.0 called them `alike`."""
    run = RunDirectory.open("mezo-done")
    result = run.result()
    assert result is not None and result["tie_share"] == 0.0 and "alike_share" not in result
    assert [event.result for event, _ in run.events() if isinstance(event, events.Finished)] == [result]
    line = (run.path / "events.jsonl").read_text().replace('"alike": 0', '"alike": 3')
    assert {event.ties for event, _ in events.read(line.splitlines()) if isinstance(event, events.Step)} == {3}


@pytest.mark.parametrize("flag", ["--prefix-cache", "--activation-cache"])
def test_either_spelling_of_a_renamed_flag_goes_over_a_file_of_the_old_one(mlxzo, flag):
    mlxzo("train", "--config", "runs/mezo-done/config.yaml", "--name", "again", "--steps", "2", flag, "off")
    again = RunDirectory.open("again")
    assert again.config.activation_cache == "off"
    assert "\nactivation_cache: off" in (again.path / "config.yaml").read_text().replace("'", "")


def test_the_header_of_a_journal_is_read_with_the_old_name_of_an_option(folder):
    found = read_journal(folder / "tuned.mlxzo").header.config
    assert "prefix_cache" in found
    assert RunConfig.from_mapping(found).activation_cache == found["prefix_cache"]
