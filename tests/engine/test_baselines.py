"""In-context demonstrations and contextual calibration, on a tiny model through the real command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlxzo.cli.main import main
from mlxzo.engine.baselines import calibrated, demonstrations, label_bias, with_demonstrations
from mlxzo.engine.evaluation import Scored
from mlxzo.tasks.base import Example
from mlxzo.tasks.chat import in_style
from tests.tiny import tiny_folder

LABELS = (" no", " yes")


def examples(count: int) -> list[Example]:
    return [Example(f"Row {i}:", LABELS, int(i % 4 == 0)) for i in range(count)]


def test_demonstrations_are_so_many_of_each_label_drawn_by_the_seed():
    rows = examples(40)
    shown = demonstrations(rows, 3, seed=0)
    assert sorted(example.target for example in shown) == [0, 0, 0, 1, 1, 1]
    assert shown == demonstrations(rows, 3, seed=0)
    assert shown != demonstrations(rows, 3, seed=1)
    # What is there of a rare label, no more.
    assert sorted(example.target for example in demonstrations(examples(5), 3, seed=0)) == [0, 0, 0, 1, 1]
    assert demonstrations(rows, 0, seed=0) == []


def test_where_candidates_differ_demonstrations_are_so_many_in_all():
    rows = [Example(f"Question {i}:", (f" {i}\n",), 0, answers=(str(i),)) for i in range(9)]
    shown = demonstrations(rows, 4, seed=0)
    assert len(shown) == 4
    asked = with_demonstrations(shown[:2], rows[0])
    first, second = (f"{one.prompt}{one.candidates[0].rstrip()}" for one in shown[:2])
    assert asked.prompt == f"{first}\n\n{second}\n\nQuestion 0:"
    assert (asked.candidates, asked.gold) == (rows[0].candidates, rows[0].gold)


def test_demonstrations_of_a_conversation_are_turns():
    rows = [in_style(example, "chat") for example in examples(3)]
    asked = with_demonstrations(rows[:2], rows[2])
    assert [(turn.role, turn.content) for turn in asked.messages] == [
        ("user", "Row 0:"),
        ("assistant", "yes"),
        ("user", "Row 1:"),
        ("assistant", "no"),
        ("user", "Row 2:"),
    ]
    assert (asked.candidates, asked.target) == (("no", "yes"), 0)


def test_calibration_divides_probabilities_by_those_of_content_free_inputs():
    empty = Scored([np.log([0.8, 0.2]) + 5.0, np.log([0.6, 0.4]) - 1.0], np.zeros(2))
    assert np.exp(label_bias(empty)) == pytest.approx([0.7, 0.3])
    # 0.65 against 0.35 looks like the first label, but is less than that label gets for nothing.
    found = calibrated(Scored([np.log([0.65, 0.35])], np.zeros(1)), label_bias(empty), np.array([1]))
    weighed = np.array([0.65 / 0.7, 0.35 / 0.3])
    assert found.scores[0].argmax() == 1
    assert found.losses == pytest.approx([-np.log(weighed[1] / weighed.sum())])


def measured(capsys, *arguments):
    code = main(["eval", *map(str, arguments), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0, said
    return said


def test_all_baselines_stand_in_one_table(model, data, capsys):
    on = ("--model", model, "--task", "custom", "--data", data)
    found = measured(capsys, *on, "--baselines", "--shots", 2)
    ways = ["zero-shot", "zero-shot, calibrated", "2-shot", "2-shot, calibrated", "ridge probe"]
    assert [each["asked"] for each in found] == ways
    alone = measured(capsys, *on)
    assert (found[0]["value"], found[0]["loss"]) == (alone["value"], alone["loss"])
    again = measured(capsys, *on, "--shots", 2, "--calibrate")
    assert (found[3]["value"], found[3]["loss"]) == (again["value"], again["loss"])
    assert len({each["loss"] for each in found[:4]}) == 4
    assert main(["eval", *map(str, on), "--baselines"]) == 0
    table = capsys.readouterr().out
    assert "majority class" in table and "4-shot, calibrated" in table


def test_baselines_can_be_asked_in_the_model_s_chat_template(model, data, capsys):
    on = ("--model", model, "--task", "custom", "--data", data)
    plain = measured(capsys, *on)
    found = measured(capsys, *on, "--prompt-style", "chat", "--baselines", "--shots", 1)
    ways = ["zero-shot", "zero-shot, calibrated", "1-shot", "1-shot, calibrated", "ridge probe"]
    assert [each["asked"] for each in found] == ways
    assert len({each["loss"] for each in (plain, *found[:4])}) == 5


def test_a_model_without_a_chat_template_is_told_apart(data, tmp_path, capsys):
    folder = tiny_folder(tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    on = ("--model", str(folder), "--task", "custom", "--data", str(data), "--prompt-style", "chat")
    assert main(["eval", *on]) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "this model has no chat template" in said and "--prompt-style plain" in said


def test_demonstrations_that_do_not_fit_are_left_out_and_counted(model, data, capsys):
    on = ("--model", model, "--task", "custom", "--data", data, "--max-tokens", 40)
    assert main(["eval", *map(str, on), "--shots", "9"]) == 0
    assert "have room for fewer than 18 demonstrations within max_tokens (40)" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--shots", "-1"), "--shots: expected a whole number from 0 to 9999, not '-1'"),
        (("--shots", "many"), "--shots: expected a whole number from 0 to 9999, not 'many'"),
    ],
)
def test_a_bad_number_of_shots_is_explained(options, sentence, capsys):
    assert main(["eval", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_what_does_not_suit_a_task_is_said(model, tmp_path, capsys):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "Once upon a time."}\n')
    on = ("--model", str(model), "--task", "custom", "--data", str(tmp_path), "--split", "validation")
    assert main(["eval", *on, "--calibrate"]) == 2
    assert "nothing to calibrate" in capsys.readouterr().err
    assert main(["eval", *on, "--shots", "1"]) == 2
    assert "no plain prompts" in capsys.readouterr().err
