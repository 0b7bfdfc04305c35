"""Tasks of a user's own, from files to a trained model through the real command line."""

from __future__ import annotations

import json

import pytest

from mlxzo.cli.main import main
from tests.command import mlxzo
from tests.tiny import tiny_folder

TASK = """\
# A task in a file: data, never executed.
name: opinions
description: what visitors say
template: |
  {title}
  {body}
  In short:
label_field: mood
labels:
  glad: great
  sad: dull
"""
FEW = ("--steps", 4, "--batch-size", 4, "--eval-every", 2, "--scope", "full", "--lr", "1e-3", "--json")


def table(rows: int) -> str:
    words = {"glad": ("wonderful", "moving"), "sad": ("empty", "terrible")}
    lines = ["title,body,mood"]
    for i in range(rows):
        mood = ("glad", "sad")[i % 2]
        lines.append(f'Visit {i},"A {words[mood][i // 2 % 2]} story, told in the garden",{mood}')
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture
def opinions(tmp_path):
    task, data = tmp_path / "opinions.yaml", tmp_path / "data"
    data.mkdir()
    task.write_text(TASK)
    for split, rows in (("train", 24), ("validation", 8), ("test", 8)):
        (data / f"{split}.csv").write_bytes(b"\xef\xbb\xbf" + table(rows).encode())
    return task, data


def test_a_task_of_a_yaml_file_and_csv_tables_trains_and_is_measured_again(opinions, model, tmp_path):
    assert len(TASK.splitlines()) <= 20
    task, data = opinions
    on = ("--model", model, "--task", task, "--data", data, "--out", tmp_path / "runs")
    done = mlxzo("train", *on, *FEW)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["task"], result["steps"], result["test"]["examples"]) == ("opinions", 4, 8)
    again = json.loads(mlxzo("eval", "--run", result["run"], "--json").stdout)
    assert again["value"] == result["test"]["value"]
    assert again["before_training"] == result["zero_shot"]["test"]["value"]


def test_questions_train_on_their_answer_and_are_measured_by_what_the_model_writes(model, tmp_path, capsys):
    rows = [
        {
            "title": f"T{i}",
            "context": "Days of a week: seven.",
            "question": "How many days?",
            "answers": {"text": ["seven"]},
        }
        for i in range(12)
    ]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", model, "--task", "squad", "--data", tmp_path, "--out", tmp_path / "runs")
    done = mlxzo("train", *options, *FEW)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metric"] == "f1"
    assert set(result["test"]["more"]) == {"exact_match"}
    assert result["training_loss"]["last"] != result["training_loss"]["first"]
    story = (tmp_path / "runs").glob("*/events.jsonl")
    told = [json.loads(line) for path in story for line in path.read_text().splitlines()]
    samples = [event for event in told if event["event"] == "samples"]
    assert samples and all(item["right"] == "seven" and item["share"] is None for item in samples[0]["items"])
    assert main(["eval", *map(str, options[:-2]), "--shots", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["asked"] == "1-shot"


def test_conversations_and_texts_train_by_their_loss(model, tmp_path):
    chat = {"messages": [{"role": "user", "content": "Is it true?"}, {"role": "assistant", "content": "Yes."}]}
    for name, row in (("chat", chat), ("text", {"text": "The old clock in the hall struck nine."})):
        data = tmp_path / name
        data.mkdir()
        for split in ("train", "validation"):
            (data / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        done = mlxzo("train", "--model", model, "--task", "custom", "--data", data, "--out", tmp_path / "runs", *FEW)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["metric"] == "loss" and result["test"] is None


def chat(*messages: str, system: str | None = None) -> dict:
    turns = [{"role": role, "content": text} for role, text in (each.split(": ") for each in messages)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


GOOD_CHAT = chat("user: Is it true?", "assistant: Yes.")
LONG_CHAT = chat("user: Is it true?", f"assistant: {'Yes. ' * 60}")
STRICT = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must take turns') }}{% endif %}{{ message.content + '<|im_end|>' }}{% endfor %}"
)
CANNOT_BE_ENCODED = [
    (
        STRICT,
        [GOOD_CHAT, chat("user: One", "user: Two", "assistant: Three")],
        [GOOD_CHAT],
        ["train.jsonl, line 2: the model's chat template refuses the conversation: Roles must take turns"],
    ),
    (
        STRICT,
        [GOOD_CHAT, chat("user: One", "assistant: Two", system="Be good.")],
        [chat("user: One", "assistant: Two", system="Be brief.")],
        ["the model's chat template takes no system message: Roles must take turns (train.jsonl, line 2; validation."],
    ),
    ("{{ messages[0].nothing.at_all }}", [GOOD_CHAT] * 3, [GOOD_CHAT], ["refuses the conversation", "lines 1-3"]),
    (
        None,
        [GOOD_CHAT] * 3,
        [GOOD_CHAT],
        ["this model has no chat template (train.jsonl, lines 1-3; validation.jsonl, line 1)"],
    ),
    (
        STRICT,
        [GOOD_CHAT, LONG_CHAT],
        [chat("user: One", "user: Two", "assistant: Three"), GOOD_CHAT, LONG_CHAT],
        [
            "3 lines cannot be used",
            "train.jsonl, line 2: the answer has 122 tokens, which is longer than max_tokens (64)",
            "validation.jsonl, line 1: the model's chat template refuses",
            "validation.jsonl, line 3: the answer has 122 tokens",
            "shorten the answers; change the conversation",
        ],
    ),
]


@pytest.mark.parametrize(("template", "train", "validation", "sentences"), CANNOT_BE_ENCODED)
def test_rows_that_the_model_cannot_read_are_named_at_once_by_file_and_line(
    tmp_path, capsys, template, train, validation, sentences
):
    model, data = tiny_folder(tmp_path / "strict"), tmp_path / "data"
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    data.mkdir()
    for split, rows in (("train", train), ("validation", validation)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    on = ("--model", str(model), "--task", "custom", "--data", str(data), "--max-tokens", "64")
    assert main(["tasks", "check", *on]) == 4
    said = capsys.readouterr().err
    assert said.startswith("Data: ") and all(sentence in said for sentence in sentences), said
    # A run reads its rows in the same way.
    assert main(["eval", *on, "--split", "validation"]) == 4
    assert capsys.readouterr().err.endswith(said)


def test_data_is_checked_before_a_run(opinions, model, capsys):
    task, data = opinions
    on = ("--task", str(task), "--data", str(data), "--model", str(model))
    assert main(["tasks", "check", *on]) == 0
    said = capsys.readouterr().out
    assert "opinions (folder data)" in said
    assert "train: 24 rows of " in said and "great 50 %, dull 50 %" in said
    assert "validation or test examples have a prompt that is also a training prompt" in said
    assert main(["tasks", "check", *on, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [split["rows"] for split in found["splits"]] == [24, 8, 8]
    assert found["splits"][0]["labels"] == {"great": 12, "dull": 12}
    (data / "train.csv").write_text(table(2) + "no cells\nVisit 9,A story,angry\n")
    assert main(["tasks", "check", *on]) == 4
    problems = capsys.readouterr().err
    assert "line 4: has 1 cell, where" in problems and "line 5: the mood 'angry' is not glad or sad" in problems


def test_nothing_is_longer_than_the_context_of_the_model(tmp_path, capsys):
    model = tiny_folder(tmp_path / "short")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 500}))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": "The clock struck nine. " * 200}) + "\n")
    on = ("--task", "custom", "--data", str(tmp_path), "--model", str(model))
    assert main(["tasks", "check", *on, "--max-tokens", "1000"]) == 0
    said = capsys.readouterr()
    assert "max_tokens is 500, the context length of short" in " ".join(said.err.split())
    assert "500 at most; 1 cut" in said.out and "indexing errors" not in said.err
    assert main(["generate", "--model", str(model), "The clock struck nine. " * 200]) == 4
    refused = " ".join(capsys.readouterr().err.split())
    assert "tokens, and the context length of the model is 500, answer included Fix: shorten the prompt" in refused


def test_a_task_is_shown_with_its_prompt(opinions, capsys):
    assert main(["tasks", "show", str(opinions[0])]) == 0
    said = capsys.readouterr().out
    assert "<title>" in said and "great / dull" in said and "title, body, mood" in said
    assert main(["tasks", "show", "squad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"].startswith("Title: ")
