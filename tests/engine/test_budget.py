"""The budget of a run by default: frozen layers first, then steps until the time is up or the loss no longer falls."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.defaults import ALL_EXAMPLES, RSGN_FEWEST_BEHIND
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.activation_cache import DiskActivationCache
from mlxzo.engine.batching import Shapes, make_batch
from mlxzo.engine.encoding import encode
from mlxzo.engine.scoring import Scorer
from mlxzo.engine.session import with_batch_size
from mlxzo.engine.trainer import Trainer, evaluations_since_the_lowest
from mlxzo.models.causal import CausalLM
from mlxzo.runtime.resume import resume_config
from mlxzo.runtime.supervisor import Supervisor
from tests.engine.examples import TOKENIZER, completion_examples, several_token_examples, single_token_examples
from tests.tiny import tiny_model


def test_frozen_layers_are_computed_before_the_first_step_and_reported(model, data, tmp_path):
    run = RunDirectory.create(
        RunConfig(
            model=str(model),
            task="custom",
            data=str(data),
            steps=3,
            batch_size=1000,
            eval_every=3,
            queries=4,
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


@pytest.fixture(scope="module")
def flat(model, data, tmp_path_factory):
    """A finished run without a lower loss from the first step on: eps is so small that no score changes."""
    out = str(tmp_path_factory.mktemp("flat"))
    config = RunConfig(model=str(model), task="custom", data=str(data), out=out, name="flat", eval_every=1)
    limits = {"patience": 2, "max_seconds": 60, "eps": 1e-30, "queries": 2, "train_examples": 8}
    run = RunDirectory.create(dataclasses.replace(config, **limits).resolved())
    finish(run)
    return run


@pytest.fixture
def run(flat, tmp_path):
    """A copy of it, to resume."""
    return RunDirectory(shutil.copytree(flat.path, tmp_path / "flat"))


def test_a_run_ends_on_a_plateau_and_more_patience_takes_it_on(run):
    result = run.result()
    assert (result["stopped_by"], result["steps"]) == ("plateau", 2)
    (note,) = (e.text for e, _ in run.events() if isinstance(e, events.Note) and "has not fallen" in e.text)
    assert "in the last 2 evaluations" in note and "it trained on 8 of 40 training rows, and more" in note
    first = next(e for e, _ in run.events() if isinstance(e, events.Step))
    assert 0.0 < first.eta_seconds < 90.0, "the time limit is known before the speed of the steps"
    with pytest.raises(ConfigError, match="finished"):
        resume_config(run, {"steps": "5"})
    run.update_config(resume_config(run, {"patience": "4"}))
    result = finish(run, resume=True)
    assert (result["stopped_by"], result["steps"]) == ("plateau", 4)


@pytest.mark.parametrize(("stopped_by", "max_seconds"), [("plateau", 60.0), ("time", 1e-6)])
def test_a_run_killed_on_its_plateau_ends_there(stopped_by, max_seconds, run):
    """Nor does a run go on that was killed when its time was up."""
    uninterrupted = run.result()
    (run.path / "result.json").unlink()
    path = run.path / "events.jsonl"
    told = [json.loads(line) for line in path.read_text().splitlines()]
    last = next(i for i, event in enumerate(told) if (event["event"], event.get("step")) == ("evaluated", 2))
    path.write_text("".join(json.dumps(event) + "\n" for event in told[: last + 1]))
    run.update_config(dataclasses.replace(run.config, max_seconds=max_seconds))
    result = finish(run, resume=True)
    assert (result["steps"], result["stopped_by"]) == (2, stopped_by)
    assert result["final_sha256"] == uninterrupted["final_sha256"]


@pytest.mark.parametrize("given", [None, RSGN_FEWEST_BEHIND, ALL_EXAMPLES, 7])
def test_the_default_batch_follows_the_tokens_scored_and_one_that_is_given_stays(given):
    config = RunConfig(batch_size=given)
    for examples, by_default in (
        (single_token_examples(), 5),
        (several_token_examples(), 5),
        # 500 examples with 10 scored tokens each, and with 7; a step takes some 384.
        (several_token_examples() * 100, 38),
        (completion_examples() * 100, 54),
    ):
        train = [encode(example, TOKENIZER, 64) for example in examples]
        found = with_batch_size(config, {"train": train}).batch_size
        assert found == (by_default if given is None else given)


def test_caching_ends_where_the_disk_is_full(tmp_path, monkeypatch):
    examples = [encode(example, TOKENIZER, 64) for example in single_token_examples() * 20]
    causal = CausalLM(tiny_model())
    scorer = Scorer(causal, len(causal.layers), DiskActivationCache(tmp_path))

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scorer.cache, "_file", SimpleNamespace(write=full, seek=lambda *_: 0))
    session = SimpleNamespace(
        config=SimpleNamespace(batch_size=len(examples)),
        splits={"train": examples},
        scorer=scorer,
        batch=lambda part: make_batch(part, Shapes()),
        team=SimpleNamespace(size=1),
        judge=None,
    )
    told, checkpoints = [], SimpleNamespace(run=SimpleNamespace(path=tmp_path))
    trainer = Trainer(session, None, checkpoints, told.append, SimpleNamespace(consume=lambda request: False))
    trainer._fill_cache()
    (progress,) = (event for event in told if isinstance(event, events.Progress))
    assert progress.done < len(examples)


def finish(run: RunDirectory, resume: bool = False) -> dict:
    supervisor = Supervisor(run, resume=resume)
    supervisor.start()
    for _ in supervisor.events():
        pass
    assert isinstance(supervisor.outcome, events.Finished), supervisor.outcome
    return supervisor.outcome.result
