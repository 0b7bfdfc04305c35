"""Labels of the rows of files: they come out as they came in, whatever is among them and however often it was ended."""

from __future__ import annotations

import csv
import io
import json
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.cli.main import main
from mlxzo.core.formatting import spreadsheet_cell
from mlxzo.engine import prediction
from mlxzo.engine.prediction_file import PartialFile
from mlxzo.models.loading import load_model
from mlxzo.tasks.registry import get_task

pytestmark = pytest.mark.device

ADDED = ["predicted_label", "probability_0", "probability_1"]
TABLE = [
    ["id", "sentence", "label", "=note"],
    ["1", 'a "good" film', "1", "=1+1"],
    ["2", "two\nlines, and a comma", "0", "@SUM(A1)"],
    ["3", "dull", "-1", "-5 "],
    ["4", "a much longer sentence about a garden, a clock and a river", "", "+x"],
]


def predict(model, *arguments) -> int:
    return main(["predict", "--model", str(model), "--task", "sst2", *map(str, arguments)])


def plain_probabilities(model, sentence: str) -> np.ndarray:
    """By one forward pass for each candidate."""
    loaded = load_model(model)
    example = get_task("sst2").example_from_row({"sentence": sentence, "label": 0})
    scores = []
    for candidate in example.candidates:
        tokens = loaded.tokenizer.encode(example.prompt + candidate)
        first = len(loaded.tokenizer.encode(example.prompt))
        logits = loaded.model(mx.array([tokens]))[0]
        logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        scores.append(np.mean([logprobs[i - 1, tokens[i]] for i in range(first, len(tokens))]))
    return np.exp(scores) / np.exp(scores).sum()


def test_a_table_comes_out_as_it_came_with_labels_behind(model, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(TABLE)
    assert predict(model, path) == 0
    said = capsys.readouterr()
    header, *rows = csv.reader(io.StringIO(said.out), delimiter=";")
    assert header == TABLE[0] + ADDED
    assert [row[:4] for row in rows] == TABLE[1:]
    for row in rows:
        shares = [float(share) for share in row[5:]]
        np.testing.assert_allclose(shares, plain_probabilities(model, row[1]), atol=2e-5)
        assert row[4] == str(int(np.argmax(shares)))
    right = sum(row[2] == row[4] for row in rows[:2])
    assert f"accuracy {50 * right:.1f} % on 2 rows" in said.err


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\tx", "-", "=", "--5"])
def test_a_cell_that_a_spreadsheet_would_compute_is_text(text):
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "-5", "+1e3", "-0.25", "1-2", "'=x"])
def test_any_other_cell_stays_as_it_is(text):
    assert spreadsheet_cell(text) == text


def test_objects_keep_their_spelling_and_broken_ones_are_named_before_anything_is_written(
    model, tmp_path, capsys, monkeypatch
):
    good = ['{"sentence": "good", "n": 1.50, "big": 12345678901234567890}', '{"sentence":"caf\\u00e9","x":[null]  }']
    text = "\n".join([good[0], "{bad", "", '{"sentence": 3}', good[1], '{"sentence": "x", "predicted_label": 1}'])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert predict(model, "-") == 4
    said = capsys.readouterr()
    assert said.out == ""
    for words in ("line 2: not valid JSON", "line 4: 'sentence' must be text", "line 6: 'predicted_label' is there"):
        assert words in said.err
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert predict(model, path, "--skip-broken", "--out", tmp_path / "labels.jsonl") == 0
    said = capsys.readouterr()
    assert "line 4: 'sentence' must be text" in " ".join(said.err.split()) and said.out == ""
    lines = (tmp_path / "labels.jsonl").read_text().splitlines()
    for line, before in zip(lines, good, strict=True):
        assert line.startswith(before[:-1].rstrip() + ', "predicted_label": ')
        assert list(json.loads(line)) == [*json.loads(before), *ADDED]
    assert predict(model, path, "--skip-broken", "--out", tmp_path / "labels.csv") == 0
    with (tmp_path / "labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sentence", "n", "big", "x", *ADDED]
    assert [row[:4] for row in rows] == [["good", "1.5", "12345678901234567890", ""], ["café", "", "", "[null]"]]


def test_an_ended_prediction_goes_on_where_it_stopped(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prediction, "WINDOW", 3)
    path, out = tmp_path / "rows.csv", tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["sentence"], *([f'a "{"very " * (i % 4)}\ngood" film {i}'] for i in range(11))])
    assert predict(model, path, "--out", tmp_path / "whole.csv") == 0
    write, windows = PartialFile.write, []

    def end_after_three(self, text):
        windows.append(text)
        # The names and two windows; of the third only a piece reaches the disk.
        write(self, text if len(windows) < 4 else text[:50])
        if len(windows) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "write", end_after_three)
        assert predict(model, path, "--out", out) == 130
    assert "the same command goes on" in " ".join(capsys.readouterr().err.split()) and not out.exists()
    (part,) = tmp_path.glob("labels.csv.*.part")
    # Other rows are another file, and leave the part alone.
    (tmp_path / "other.csv").write_text("sentence\ngood\n")
    assert predict(model, tmp_path / "other.csv", "--out", out) == 0
    assert f"{part.name} holds labels of another model" in " ".join(capsys.readouterr().err.split())
    out.unlink()
    assert predict(model, path, "--out", out) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{part.name} is continued after 6 of 11 rows" in shown and "5 rows labelled" in shown
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes() and not part.exists()
    assert predict(model, path, "--out", out) == 2
    assert "labels.csv exists already" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "content", "task", "code", "says"),
    [
        ("rows.csv", "sentence\n", "sst2", 4, "rows.csv has no rows"),
        ("rows.csv", "sentence,probability_0\nx,1\n", "sst2", 4, "'probability_0' is there already"),
        ("rows.json", '[{"sentence": "x"}]', "sst2", 4, "is a JSON array"),
        ("rows.csv", "text\nx\n", "copa", 2, "copa has no fixed set of labels"),
        ("rows.csv", "text\nx\n", "custom", 2, "pass --data DIR"),
        ("none.csv", None, "sst2", 4, "none.csv cannot be read"),
    ],
)
def test_what_cannot_be_labelled_is_said(name, content, task, code, says, model, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["predict", "--model", str(model), "--task", task, str(tmp_path / name)]) == code
    said = capsys.readouterr()
    assert says in " ".join(said.err.split()) and said.out == ""


def test_a_task_of_several_fields_is_asked_by_an_object(model, capsys):
    asked = ["generate", "--model", str(model), "--task", "boolq", "--json"]
    assert main([*asked, '{"question": "do bees sleep", "passage": "Bees rest."}']) == 0
    found = json.loads(capsys.readouterr().out)["base"]
    assert set(found["probabilities"]) == {"true", "false"} and isinstance(found["label"], bool)
    assert main([*asked[:-1], "do bees sleep"]) == 2
    assert "the fields passage, question" in " ".join(capsys.readouterr().err.split())
