"""Tasks that name their own judges: no code, no consent, and the same judges in training and in every evaluation."""

from __future__ import annotations

import json
import sys

import pytest

from mlxzo.cli.main import main
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, DataError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.baselines import evaluate_job
from mlxzo.engine.session import load_data
from mlxzo.engine.tuned_source import Source
from mlxzo.memory.forecast import sizes_of
from mlxzo.runtime.preflight import check_names
from mlxzo.tasks.registry import check_answers, task_alone
from tests.engine.test_resume import train

TASK = """\
name: long
reward:
  - kind: length
    unit: characters
    least: 1000
"""


@pytest.fixture
def task(tmp_path):
    """A task file, beside prompts alone."""
    rows = "".join(json.dumps({"prompt": f"number {i} is", "wanted": i}) + "\n" for i in range(3))
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows)
    (tmp_path / "long.yaml").write_text(TASK)
    return tmp_path / "long.yaml"


def test_a_task_with_judges_is_evaluated_by_them_without_code(model, task, tmp_path):
    config = RunConfig(model=str(model), task=str(task), data=str(tmp_path)).resolved()
    (found,) = evaluate_job(config, source=None, split="test", on_event=events.ignore)
    # A loss of 1 less the reward, since there is no answer to take one of.
    assert found["metric"] == "reward" and 0 < found["value"] <= 1 and found["more"] == {}
    assert found["loss"] == pytest.approx(1 - found["value"])


@pytest.mark.slow
@pytest.mark.variant
def test_a_run_is_measured_by_the_judges_of_its_task_as_eval_is(model, task, tmp_path):
    options = {"model": str(model), "task": str(task), "data": str(tmp_path), "objective": "reward"}
    options |= {"scope": "last-1", "steps": 2, "batch_size": 3, "eps": 0.02, "lr": 0.01, "estimator": "spsa"}
    options["out"] = str(tmp_path / "runs")
    run = RunDirectory.create(check_names(RunConfig.from_mapping(options)).resolved())
    result = train(run).result
    assert result["metric"] == "reward" and result["judge"] == {"answers": 24, "failed": 0}
    before = result["zero_shot"]["test"]
    base = RunConfig.from_mapping({**options, "objective": "loss"}).resolved()
    for source, value in ((None, before["value"]), (Source("run", run.path), result["test"]["value"])):
        (measured,) = evaluate_job(base, source=source, split="test", on_event=events.ignore)
        assert (measured["metric"], measured["value"]) == ("reward", value)
        assert measured["before_training"] == (before["value"] if source else None)


def test_what_does_not_go_with_the_judges_of_a_task_is_refused(model, task, tmp_path):
    config = RunConfig(model=str(model), task=str(task), data=str(tmp_path), objective="reward")
    with pytest.raises(ConfigError, match="reward_command: the task long names judges of its own, under reward"):
        check_names(RunConfig.from_mapping({**config.to_dict(), "reward_command": "python score.py"}))
    plain = tmp_path / "plain.yaml"
    plain.write_text("name: plain\ntemplate: '{prompt}'\nanswer_field: wanted\n")
    with pytest.raises(ConfigError, match="the task plain names no judge, which the objective reward needs"):
        check_names(RunConfig.from_mapping({**config.to_dict(), "task": str(plain)}))
    for objective in ("loss", "f1"):
        lossy = RunConfig.from_mapping({**config.to_dict(), "objective": objective})
        with pytest.raises(DataError, match=f"without an answer, which the objective {objective} needs"):
            check_answers(lossy, task_alone(lossy))
    alone = RunConfig.from_mapping({**config.to_dict(), "task": "custom", "objective": "loss"}).resolved()
    with pytest.raises(DataError, match="are prompts without an answer to compare with"):
        evaluate_job(alone, source=None, split="test", on_event=events.ignore)


JUDGED = "reward:\n  - kind: json\n"
_TO_MEZO = "use --method mezo --objective reward"


@pytest.mark.parametrize(
    "yaml, row, options, fix",
    [
        (None, {"prompt": "a"}, {}, 'add the field "completion" to each row, or use --objective reward and a judge'),
        (
            None,
            {"messages": [{"role": "user", "content": "a"}]},
            {"reward_function": "a:b"},
            'end the "messages" of each row with an answer of the assistant, or use --objective reward',
        ),
        (None, {"prompt": "a"}, {"method": "bp"}, f'add the field "completion" to each row, or {_TO_MEZO} and a judge'),
        (
            "name: t\n" + JUDGED,
            {"prompt": "a"},
            {},
            "give the task file `answer_field` and a `template`, and each row the field that it names, or use "
            "--objective reward",
        ),
        (
            "name: t\ntemplate: 'Q: {q}'\n" + JUDGED,
            {"q": "a"},
            {"method": "bp"},
            f"give the task file `answer_field`, and each row the field that it names, or {_TO_MEZO}",
        ),
    ],
)
def test_prompts_alone_are_told_what_their_task_reads_as_an_answer(yaml, row, options, fix, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    if yaml is not None:
        (tmp_path / "task.yaml").write_text(yaml)
    config = RunConfig(task="custom" if yaml is None else str(tmp_path / "task.yaml"), data=str(tmp_path), **options)
    with pytest.raises(DataError) as error:
        check_answers(config, load_data(config, events.ignore).task)
    assert error.value.fix == fix


def test_prompts_alone_are_generated_in_the_prediction_of_memory(task, tmp_path):
    data = load_data(RunConfig(task=str(task), data=str(tmp_path), objective="reward"), events.ignore)
    sizes = sizes_of(data, 2048, "reward")
    assert {(size.candidates, size.scored, size.written) for size in (*sizes.train, *sizes.evaluated)} == {(1, 1, True)}


def test_the_fields_of_a_row_reach_the_user_s_judge_in_eval_as_well(model, task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(
        "import json, sys\nfor line in sys.stdin:\n"
        "    print(json.dumps({'score': json.loads(line)['fields']['wanted']}), flush=True)\n"
    )
    command = ["eval", "--model", str(model), "--task", "custom", "--data", ".", "--json"]
    command += ["--reward-command", f"{sys.executable} judge.py"]
    assert main([*command, "--allow-code"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["metric"], result["value"]) == ("reward", 1.0)
    assert main(command) == 2 and "--allow-code" in capsys.readouterr().out


MOODY = """\
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if asked["fields"]["wanted"] == 1:
        {mood}
    print('{{"score": 1}}', flush=True)
"""


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize(
    "mood", ["sys.exit('out of ideas')", "time.sleep(600)", "print('mumble')", "print('{{\"score\": NaN}}'); continue"]
)
def test_a_run_goes_on_while_its_judge_fails_on_some_answers(mood, model, task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(MOODY.format(mood=mood.replace("{{", "{").replace("}}", "}")))
    command = ["train", "--model", str(model), "--task", "custom", "--data", ".", "--objective", "reward", "--json"]
    command += ["--reward-command", f"{sys.executable} -u judge.py", "--reward-seconds", "5", "--allow-code"]
    few = ["--scope", "last-1", "--estimator", "spsa", "--steps", "1", "--batch-size", "3"]
    assert main([*command, *few, "--name", "r"]) == 0
    result = json.loads(capsys.readouterr().out)
    answers, failed = result["judge"]["answers"], result["judge"]["failed"]
    assert (answers, failed) == (18, 6)
    assert result["test"]["value"] == pytest.approx(2 / 3)
    told = [e.text for e, _ in RunDirectory(tmp_path / "runs" / "r").events() if isinstance(e, events.Note)]
    assert [text for text in told if text.startswith("the judge has failed on 1 of ")]
