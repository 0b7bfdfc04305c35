"""What has no gradient is minimised by the steps that minimise the loss."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from mlxzo.cli.main import main
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.evaluation import Evaluator
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.methods.ties import TieDetector
from mlxzo.engine.objectives import SCORE_OBJECTIVES
from mlxzo.engine.session import open_session
from mlxzo.zo.journal import read
from mlxzo.zo.perturb import Direction
from tests.engine.examples import BATCHES
from tests.engine.test_resume import train
from tests.zo.test_replay import mezo

pytestmark = pytest.mark.device


def test_objectives_are_what_their_names_say():
    random = np.random.default_rng(0)
    scores = random.normal(size=(200, 4))
    scores[:, 3] = -np.inf  # one candidate fewer
    target = random.integers(0, 3, 200)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = shares[np.arange(200), target]
    assert np.allclose(SCORE_OBJECTIVES["loss"](scores, target), -np.log(right))
    assert np.allclose(SCORE_OBJECTIVES["soft-accuracy"](scores, target), 1 - right)
    wrong = SCORE_OBJECTIVES["accuracy"](scores, target)
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
        pairs = [SCORE_OBJECTIVES[objective](grid, part.target) for grid, part in zip(scores, batch.parts, strict=True)]
        means.append(float(np.concatenate(pairs).mean()))
    result = method.step(0, batch)
    assert result.directional_derivative == pytest.approx((means[0] - means[1]) / 0.1, abs=1e-4)
    assert result.loss == pytest.approx(sum(means) / 2)
    assert result.ties == (means[0] == means[1])


def test_where_both_sides_score_alike_nothing_moves(model, data, tmp_path):
    """So small an eps that no answer changes: every step is counted, told of, and leaves the weights as they were."""
    config = RunConfig(model=str(model), task="custom", data=str(data), out=str(tmp_path), scope="norms/last-1")
    config = replace(config, objective="accuracy", eps=1e-7, steps=50, batch_size=4, eval_every=50)
    run = RunDirectory.create(config.resolved())
    finished = train(run)
    assert isinstance(finished, events.Finished) and finished.result["tie_share"] == 1.0
    assert all(step.factors == (0.0,) for step in read(run.path / "journal.bin"))
    assert [e.text for e, _ in run.events() if isinstance(e, events.Note) and "on 100% of the directions" in e.text]


def test_accuracy_alone_teaches_the_task(model, data, tmp_path):
    config = RunConfig(
        model=str(model), task="custom", data=str(data), out=str(tmp_path), scope="norms/last-0", steps=24
    )
    config = replace(config, objective="accuracy", lr=3.0, eps=3.0, batch_size=40, eval_every=24, schedule="constant")
    result = train(RunDirectory.create(config.resolved())).result
    assert result["objective"] == "accuracy" and 0.0 < result["tie_share"] < 0.5
    assert result["training_loss"]["last"] < result["training_loss"]["first"] - 0.15


def test_many_directions_without_signal_are_reported_once():
    often = TieDetector(2)
    said = [often.after(ties) for ties in [2, 1] * 40]
    assert len([text for text in said if text]) == 1 and said[49].startswith("on 75% of the directions")
    seldom = TieDetector(2)
    assert not any(seldom.after(step % 2) for step in range(100))


@pytest.mark.parametrize(
    "options, says",
    [
        ({"method": "bp"}, "objective: accuracy is for the method mezo"),
        ({"objective": "reward"}, "reward needs a judge"),
        ({"objective": "reward", "reward_command": "a", "reward_function": "b:c"}, "leave one of them out"),
        ({"objective": "reward", "reward_function": "__import__('os')"}, "expected MODULE:FUNCTION"),
        ({"temperature": 0.7}, "temperature: with the objective accuracy no answers are generated"),
        ({"objective": "f1", "top_p": 0.9}, "top_p: it applies to sampling"),
        ({"objective": "f1", "temperature": 0.7, "top_p": 0.0}, "top_p: expected a number above 0 and at most 1"),
    ],
)
def test_what_does_not_go_together_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        RunConfig(**{"objective": "accuracy", **options})


def test_completions_have_no_answers_to_choose_among(model, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "one two", "completion": "three"}\n')
    config = RunConfig(model=str(model), task="custom", data=str(tmp_path), objective="accuracy").resolved()
    with pytest.raises(ConfigError, match="needs answers to choose among"):
        open_session(config, lambda event: None)


LENGTH_JUDGE = "import json, sys\nfor line in sys.stdin:\n" + (
    "    print(json.dumps({'score': len(json.loads(line)['answer']) / 100}), flush=True)\n"
)


@pytest.fixture
def prompts(tmp_path):
    """Completions, of which a judge looks at the answers alone."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    rows = "".join(json.dumps({"prompt": f"number {i} is", "completion": " fine"}) + "\n" for i in range(3))
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(rows)
    return folder


def test_a_reward_is_what_both_sides_are_judged_by(model, prompts):
    """By hand: write both sides' answers, and measure them."""
    config = RunConfig(model=str(model), task="custom", data=str(prompts), scope="full", eps=0.05, batch_size=3)
    config = replace(config, objective="reward", reward_function="unused:here", estimator="spsa").resolved()
    session = replace(open_session(config, lambda event: None), judge=Lengths())
    method = MeZO(session.scorer, session.trainable, config, Evaluator(session).of_answers())
    batch = session.batch(session.splits["train"])
    means = []
    for eps in (0.05, -0.05):
        view = session.causal.view(Direction(0, 0, 0, "sign", method.scales), eps)
        answers = Evaluator(session).write("train", session.data.train, view=view)
        means.append(sum(1 - len(answer) / 100 for answer in answers) / 3)
    assert means[0] != means[1]
    assert method.step(0, batch).directional_derivative == pytest.approx((means[0] - means[1]) / 0.1, abs=1e-4)
    assert session.metric == "reward"


def test_drawn_answers_have_the_same_luck_on_both_sides_and_other_luck_in_another_batch(model, prompts):
    options = {
        "objective": "reward",
        "reward_function": "unused:here",
        "temperature": 1.5,
        "top_p": 0.95,
        "scope": "full",
    }
    config = RunConfig(model=str(model), task="custom", data=str(prompts), **options).resolved()
    session = replace(open_session(config, lambda event: None), judge=Lengths())
    values, encoded = Evaluator(session).of_answers(), session.splits["train"]
    view = session.causal.view()
    first = values(session.batch(encoded), view)
    assert (values(session.batch(encoded), view) == first).all()
    assert (values(session.batch(encoded[::-1]), view)[::-1] != first).any()
    # Evaluations take the likeliest tokens.
    likeliest = np.array([len(answer) / 100 for answer in Evaluator(session).write("train", session.data.train)])
    assert (1 - first != likeliest).any()
    assert Evaluator(session).evaluate("train", lambda event: None).value == pytest.approx(likeliest.mean())


class Lengths:
    """A judge that likes long answers."""

    def scores(self, answers):
        return [len(answer.answer) / 100 for answer in answers]


def test_a_reward_runs_only_where_the_user_says_so(model, prompts, tmp_path, monkeypatch, capsys):
    (tmp_path / "judge.py").write_text(LENGTH_JUDGE)
    monkeypatch.chdir(tmp_path)
    config = {"model": str(model), "task": "custom", "data": str(prompts), "objective": "reward", "steps": 2}
    config |= {
        "reward_command": f"{sys.executable} judge.py",
        "scope": "last-1",
        "batch_size": 3,
        "eps": 0.02,
        "lr": 0.01,
        "estimator": "spsa",
    }
    (tmp_path / "run.yaml").write_text(json.dumps({**config, "out": str(tmp_path / "runs"), "name": "r"}))
    assert main(["train", "--config", "run.yaml"]) == 2
    assert "--allow-code" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert main(["train", "--config", "run.yaml", "--allow-code", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metric"] == "reward" and result["zero_shot"]["validation"]["value"] > 0
    # A worker that is asked without the user's word runs nothing either.
    run = RunDirectory.create(RunConfig.from_mapping({**config, "out": str(tmp_path), "name": "again"}).resolved())
    failed = train(run)
    assert failed.exit_code == 2 and "wants to run" in failed.message


def test_a_judge_that_fails_ends_the_run_in_words_and_once_it_is_mended_the_run_goes_on(
    model, prompts, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text("import sys\nsys.stdin.readline()\nsys.exit('out of ideas')\n")
    options = ["--model", str(model), "--task", "custom", "--data", str(prompts), "--out", "runs", "--name", "r"]
    judge = ["--objective", "reward", "--reward-command", f"{sys.executable} judge.py", "--allow-code"]
    few = ["--scope", "last-1", "--estimator", "spsa", "--steps", "1", "--batch-size", "2"]
    assert main(["train", *options, *judge, *few]) == 4
    shown = " ".join(capsys.readouterr().err.split())
    assert "ended with exit code 1" in shown and "out of ideas" in shown and "Traceback" not in shown
    run = RunDirectory(tmp_path / "runs" / "r")
    assert (run.path / "checkpoints" / "best.safetensors").exists()
    resume = ["train", "--resume", str(run.path), "--allow-code"]
    assert run.outcome[0].fix.endswith(f"; then `mlxzo {' '.join(resume)}` continues the run")
    (tmp_path / "judge.py").write_text(LENGTH_JUDGE)
    assert main([*resume, "--reward-seconds", "90"]) == 0
    assert run.config.reward_seconds == 90 and run.result()["judge"]["failed"] == 0
