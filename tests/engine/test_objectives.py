"""What has no gradient is minimised by the steps that minimise the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlxzo import events
from mlxzo.config import RunConfig
from mlxzo.errors import ConfigError
from mlxzo.objectives import OBJECTIVES
from mlxzo.runs import RunDirectory
from mlxzo.session import open_session
from mlxzo.trainer import Stuck
from mlxzo.zo.journal import read
from mlxzo.zo.perturb import Direction
from tests.engine.examples import BATCHES
from tests.engine.test_resume import train
from tests.zo.test_replay import mezo


def test_objectives_are_what_their_names_say():
    random = np.random.default_rng(0)
    scores = random.normal(size=(200, 4))
    scores[:, 3] = -np.inf  # one candidate fewer
    target = random.integers(0, 3, 200)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = shares[np.arange(200), target]
    assert np.allclose(OBJECTIVES["loss"](scores, target), -np.log(right))
    assert np.allclose(OBJECTIVES["soft-accuracy"](scores, target), 1 - right)
    wrong = OBJECTIVES["accuracy"](scores, target)
    assert wrong.tolist() == [float(row.argmax() != t) for row, t in zip(scores, target, strict=True)]


@pytest.mark.parametrize("objective", ["accuracy", "soft-accuracy"])
@pytest.mark.parametrize("kind", ["single", "several"])
def test_a_step_follows_the_difference_of_its_objective(objective, kind):
    """By hand: evaluate both sides as models of their own, and measure."""
    method = mezo({}, {"scope": "full", "objective": objective, "eps": 0.05, "update": "sgd", "lr": 1.0})
    batch = BATCHES[kind]()
    direction = Direction(3, 0, 0, "sign", method.scales)
    means = []
    for eps in (0.05, -0.05):
        scores = method.scorer.scores(batch, method.causal.view(direction, eps))
        pairs = [OBJECTIVES[objective](grid, part.target) for grid, part in zip(scores, batch.parts, strict=True)]
        means.append(float(np.concatenate(pairs).mean()))
    result = method.step(0, batch)
    assert result.directional_derivative == pytest.approx((means[0] - means[1]) / 0.1, abs=1e-4)
    assert result.loss == pytest.approx(sum(means) / 2)
    assert result.alike == (means[0] == means[1])


def test_where_both_sides_score_alike_nothing_moves(model, data, tmp_path):
    """So small an eps that no answer changes: every step is counted, told of, and leaves the weights as they were."""
    config = RunConfig(model=str(model), task="custom", data=str(data), out=str(tmp_path), scope="norms/last-1")
    config = replace(config, objective="accuracy", eps=1e-7, steps=55, batch_size=4, eval_every=55)
    run = RunDirectory.create(config.resolved())
    finished = train(run)
    assert isinstance(finished, events.Finished) and finished.result["alike_share"] == 1.0
    assert all(step.factors == (0.0,) for step in read(run.path / "journal.bin"))
    assert [e.text for e, _ in run.events() if isinstance(e, events.Note) and "on 100% of the directions" in e.text]


def test_accuracy_alone_teaches_the_task(model, data, tmp_path):
    config = RunConfig(model=str(model), task="custom", data=str(data), out=str(tmp_path), scope="full", steps=80)
    config = replace(config, objective="accuracy", lr=3e-3, eps=0.03, batch_size=40, eval_every=80, schedule="constant")
    result = train(RunDirectory.create(config.resolved())).result
    assert result["objective"] == "accuracy" and 0.0 < result["alike_share"] < 0.5
    assert result["training_loss"]["last"] < result["training_loss"]["first"] - 0.05


def test_the_user_is_told_once_of_directions_that_tell_nothing():
    stuck = Stuck(2)
    said = [stuck.after(alike) for alike in [2, 1] * 40]
    assert len([text for text in said if text]) == 1 and said[49].startswith("on 75% of the directions")
    seldom = Stuck(2)
    assert not any(seldom.after(step % 2) for step in range(100))


@pytest.mark.parametrize(
    "options, says",
    [
        ({"method": "bp"}, "objective: accuracy is for the method mezo"),
        ({"probe": "lr"}, "probe: it measures the loss"),
    ],
)
def test_what_does_not_go_together_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        RunConfig(objective="accuracy", **options)


def test_completions_have_no_answers_to_choose_among(model, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "one two", "completion": "three"}\n')
    config = RunConfig(model=str(model), task="custom", data=str(tmp_path), objective="accuracy").resolved()
    with pytest.raises(ConfigError, match="needs answers to choose among"):
        open_session(config, lambda event: None)
