"""A run that dies at any moment goes on where it stopped, and ends with the weights it would have had."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RunDirectory
from mlxzo.core.run_history import RunHistory
from mlxzo.engine.checkpoint_file import saved_step
from mlxzo.runtime.resume import resume_config
from mlxzo.runtime.supervisor import Supervisor
from tests.variants import slow

pytestmark = pytest.mark.device

STEPS = 16
METHODS = {
    "mezo": {"scope": "full", "lr": 1e-3},
    "rsgn": {"scope": "norms/last-0", "estimator": "rsgn", "queries": 3, "batch_size": 1000},
    "rsgn, batches": {"scope": "lora/last-1", "estimator": "rsgn", "queries": 3},
    "lora": {"scope": "lora/last-2", "estimator": "spsa", "queries": 2},
    "bp": {"method": "bp", "scope": "last-2", "dtype": "bfloat16"},
}


def config(model: Path, data: Path, out: Path, method: str, **more) -> RunConfig:
    return RunConfig(
        model=str(model),
        task="custom",
        data=str(data),
        out=str(out),
        steps=STEPS,
        eval_every=5,
        **{"batch_size": 8, **METHODS[method]},
        **more,
    ).resolved()


def train(
    run: RunDirectory, *, resume: bool = False, until: int | None = None, config: RunConfig | None = None
) -> events.Event:
    """Trains to the end, or kills the worker once it has told of step `until`."""
    supervisor = Supervisor(run, resume=resume, config=config)
    supervisor.start()
    for event in supervisor.events():
        if until is not None and isinstance(event, events.Step) and event.step >= until:
            os.kill(supervisor.pid, signal.SIGKILL)
            until = None
    return supervisor.outcome


def told(result: dict) -> dict:
    """What of a result does not depend on how long things took, with the accuracies and losses of all states."""
    measured = ("train_seconds", "validation_seconds", "total_seconds", "paused_seconds", "steps_per_second", "memory")
    # The answers that the last process had judged.
    measured += ("judge",)
    found = json.loads(json.dumps({key: value for key, value in result.items() if key not in measured}))
    for outcome in (*found["zero_shot"].values(), found["best"]["validation"], found["test"]):
        del outcome["seconds"]
    return found


def check_totals(run: RunDirectory, result: dict) -> None:
    """The times of a result are those of all steps and evaluations, each counted once, whatever processes they were in,
    with the mean of the others for a step whose event was lost; the best state is that of the best step."""
    history = RunHistory.read(run.events())
    longest = max(event.seconds for event, _ in run.events() if isinstance(event, events.Step))
    lost = longest * (result["steps"] - len(history.steps))
    assert 0.0 < history.training_seconds <= result["train_seconds"] + 1e-6
    assert result["train_seconds"] <= history.training_seconds + lost + 1e-6
    assert result["validation_seconds"] == pytest.approx(history.seconds - history.training_seconds)
    assert saved_step(run.path / BEST_STATE) == result["best"]["step"]


@pytest.fixture(scope="module")
def uninterrupted(model, data, tmp_path_factory):
    """The result of each method, trained in one go."""
    found = {}

    def result(method: str) -> dict:
        if method not in found:
            run = RunDirectory.create(config(model, data, tmp_path_factory.mktemp("whole"), method))
            found[method] = train(run).result
        return found[method]

    return result


@pytest.mark.parametrize("method", ["mezo", "rsgn", *(slow(name) for name in ("rsgn, batches", "lora", "bp"))])
def test_a_run_killed_again_and_again_ends_as_the_uninterrupted_one(method, model, data, tmp_path, uninterrupted):
    run = RunDirectory.create(config(model, data, tmp_path, method))
    assert isinstance(train(run, until=3), events.Failed)
    if method != "bp":
        # The last record is torn as well.
        path = run.path / JOURNAL
        path.write_bytes(path.read_bytes()[:-7])
    for until in (7, 10):
        assert isinstance(train(run, resume=True, until=until), events.Failed)
    finished = train(run, resume=True)
    assert isinstance(finished, events.Finished), finished
    assert told(finished.result) == told(uninterrupted(method))


def test_a_stopped_run_of_backpropagation_goes_on_from_its_snapshot(model, data, tmp_path, uninterrupted):
    run = RunDirectory.create(config(model, data, tmp_path, "bp"))
    supervisor = Supervisor(run)
    supervisor.start()
    for event in supervisor.events():
        if isinstance(event, events.Step) and event.step == 7:
            supervisor.stop()
    assert supervisor.outcome.title == "Interrupted"
    assert (run.path / LAST_STATE).exists()
    finished = train(run, resume=True)
    assert told(finished.result) == told(uninterrupted("bp"))
    steps = [event.step for event, _ in run.events() if isinstance(event, events.Step)]
    assert steps == list(range(1, STEPS + 1))


def test_a_finished_run_may_get_more_steps(model, data, tmp_path):
    run = RunDirectory.create(config(model, data, tmp_path, "mezo", schedule="constant"))
    train(run)
    longer = RunDirectory.create(dataclasses.replace(run.config, steps=STEPS + 6, name="longer"))
    expected = train(longer).result["final_sha256"]
    # Killed on the way, it is no longer finished, and goes on without being given more.
    more = resume_config(run, {"steps": STEPS + 6})
    assert isinstance(train(run, resume=True, config=more, until=STEPS + 2), events.Failed)
    run = RunDirectory(run.path)
    assert run.status == "died" and run.result() is None
    assert train(run, resume=True, config=resume_config(run, {})).result["final_sha256"] == expected


def test_other_data_and_other_options_are_refused(model, data, tmp_path, monkeypatch):
    own = tmp_path / "data"
    shutil.copytree(data, own)
    run = RunDirectory.create(config(model, own, tmp_path, "mezo"))
    train(run, until=3)
    with pytest.raises(ConfigError) as error:
        resume_config(run, {"lr": "0.5", "seed": "4", "steps": "30"})
    assert error.value.details == ["lr: 0.001 in the run, 0.5 now", "seed: 0 in the run, 4 now"]
    assert "`mlxzo train --model FOLDER --task custom --data DIR`" in error.value.fix
    monkeypatch.chdir(tmp_path)
    assert resume_config(run, {"data": "data", "steps": "30"}).data == run.config.data
    lines = (own / "train.jsonl").read_text().splitlines()
    (own / "train.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    failed = train(run, resume=True, config=resume_config(run, {"steps": 99}))
    assert failed.exit_code == 2
    assert "cannot go on: data" in failed.message
    # A run that does not go on keeps its configuration.
    assert RunDirectory(run.path).config.steps == STEPS
