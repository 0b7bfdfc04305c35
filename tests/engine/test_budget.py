"""The budget of a run by default: frozen layers first, then steps until the time is up or the loss no longer falls."""

from __future__ import annotations

import dataclasses

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.trainer import evaluations_since_the_lowest
from mlxzo.runtime.resume import resume_config
from mlxzo.runtime.supervisor import Supervisor


def test_frozen_layers_are_computed_before_the_first_step_and_reported(model, data, tmp_path):
    run = RunDirectory.create(
        RunConfig(
            model=str(model),
            task="custom",
            data=str(data),
            steps=3,
            batch_size=1000,
            eval_every=3,
            out=str(tmp_path),
            name="whole",
        ).resolved()
    )
    assert run.config.estimator == "rsgn" and run.config.scope == "norms/last-0"
    supervisor = Supervisor(run)
    supervisor.start()
    found = list(supervisor.events())
    cached = [event for event in found if isinstance(event, events.Progress) and event.label.startswith("caching")]
    count = run.last_event(events.Loaded).train_examples
    assert cached and cached[-1].done == cached[-1].total == count
    first = next(i for i, event in enumerate(found) if isinstance(event, events.Step))
    assert all(found.index(event) < first for event in cached)
    losses = [event.loss for event in found if isinstance(event, events.Step)]
    assert losses == sorted(losses, reverse=True) and run.result()["stopped_by"] == "steps"


@pytest.mark.parametrize(
    ("losses", "since"),
    [
        ([], 0),
        ([1.0], 0),
        ([1.0, 0.9, 0.8], 0),
        ([1.0, 0.9, 0.9], 1),
        # Lower by less than a thousandth.
        ([1.0, 0.9, 0.8995, 0.8992], 2),
        ([1.0, 0.9, 0.95, 0.91, 0.85], 0),
        ([1.0, 2.0, 3.0], 2),
        ([-1.0, -1.0005, -1.1], 0),
    ],
)
def test_evaluations_since_the_lowest_loss(losses, since):
    assert evaluations_since_the_lowest(losses) == since


def test_a_run_ends_on_a_plateau_and_more_patience_takes_it_on(model, data, tmp_path):
    config = RunConfig(model=str(model), task="custom", data=str(data), out=str(tmp_path), name="flat", eval_every=1)
    # Steps without a lower loss from the first one on: eps is so small that no score changes.
    run = RunDirectory.create(dataclasses.replace(config, patience=2, max_seconds=60, eps=1e-30).resolved())
    result = finish(run)
    assert (result["stopped_by"], result["steps"]) == ("plateau", 2)
    assert any(isinstance(e, events.Note) and "has not fallen in the last 2" in e.text for e, _ in run.events())
    with pytest.raises(ConfigError, match="finished"):
        resume_config(run, {"steps": "5"})
    run.update_config(resume_config(run, {"patience": "4"}))
    result = finish(run, resume=True)
    assert (result["stopped_by"], result["steps"]) == ("plateau", 4)


def finish(run: RunDirectory, resume: bool = False) -> dict:
    supervisor = Supervisor(run, resume=resume)
    supervisor.start()
    for _ in supervisor.events():
        pass
    assert isinstance(supervisor.outcome, events.Finished), supervisor.outcome
    return supervisor.outcome.result
