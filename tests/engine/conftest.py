"""A tiny model and a task that it learns in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import tiny_folder

POSITIVE = ("great", "wonderful", "moving", "good")
NEGATIVE = ("dull", "empty", "terrible", "bad")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_folder(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Which of two groups of words a sentence holds: easy, so that a few steps show."""
    folder = tmp_path_factory.mktemp("data")
    subjects = ("film", "book", "story", "music", "ending", "garden", "clock", "river")
    rows = [
        {"text": f"What a {word} {subject}!", "label": label}
        for subject in subjects
        for label, words in (("positive", POSITIVE), ("negative", NEGATIVE))
        for word in words
    ]
    for split, part in (("train", rows[:40]), ("validation", rows[40:56]), ("test", rows[48:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder
