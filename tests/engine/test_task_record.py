"""The record of its task that an export carries."""

from __future__ import annotations

import json

import pytest
import yaml

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.engine.task_record import OPTIONS, TASK, export_options, recorded_task, task_record
from mlxzo.tasks.registry import get_task

OWN = """
name: opinions
template: |
  Title: {title}
  "It's": {{
labels: {no: dull, "1.0": great}
label_field: verdict
"""


def written(config, folder):
    told = []
    for name, text in task_record(config, told.append).items():
        (folder / name).write_text(text, encoding="utf-8")
    return told


@pytest.mark.parametrize("name", ["support_desk", "sst2", "boolq", "own"])
def test_a_task_with_labels_comes_back_as_it_was(name, tmp_path):
    if name == "own":
        (tmp_path / "own.yaml").write_text(OWN)
        name = str(tmp_path / "own.yaml")
    folder = tmp_path / "export"
    folder.mkdir()
    assert written(RunConfig(task=name, prompt_style="chat", max_tokens=77), folder) == []
    task, found = get_task(name), recorded_task(folder)
    for attribute in ("name", "template", "labels", "label_field", "input_fields"):
        assert getattr(found, attribute) == getattr(task, attribute)
    assert [label.text for label in found.classes] == [label.text for label in task.classes]
    # Where the task is no built-in one, its name is that of the file here, and not a path of the machine that trained.
    asked = {"task": str(folder / TASK) if name.endswith(".yaml") else name, "prompt_style": "chat", "max_tokens": 77}
    assert export_options(folder) == asked
    assert str(tmp_path) not in (folder / OPTIONS).read_text()


def test_labels_of_training_rows_are_recorded_and_missing_rows_are_told(tmp_path):
    rows = [{"text": "a", "label": label} for label in ("no", "007", "ja: \u00e4", "- x")]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(task="custom", data=str(tmp_path))
    assert written(config, tmp_path) == []
    assert recorded_task(tmp_path).labels == ("- x", "007", "ja: \u00e4", "no")
    (tmp_path / "train.jsonl").unlink()
    (told,) = [event for event in written(config, tmp_path) if isinstance(event, events.Note)]
    assert "does not record the labels" in told.text


def test_a_task_that_writes_is_recorded_by_its_name(tmp_path):
    written(RunConfig(task="squad"), tmp_path)
    assert recorded_task(tmp_path) is None and yaml.safe_load((tmp_path / OPTIONS).read_text())["task"] == "squad"
