"""Characters that a terminal would execute, or that turn text around or hide it, for tests to put everywhere."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import yaml

ACTING = "".join(
    chr(code) for code in range(0xE0080) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp")
).translate({ord(c): None for c in "\n\u200c\u200d"})
# The first writes the clipboard, the second clears the screen, the third is the same in one byte.
HOSTILE = "\x1b]52;c;cm0=\x07\x1b[2J\x9b2J" + ACTING
# As a name of a file may have it.
HOSTILE_NAME = "\x1b]52;c;cm0=\x07\u202e\x9b[red]*"


def acting(text: str) -> set[str]:
    """The characters of a text that must not reach a terminal."""
    return set(text) & set(ACTING)


def hostile_data(folder: Path) -> Path:
    """Rows whose texts and labels hold such characters, and the task that reads them."""
    folder.mkdir()
    rows = [json.dumps({"text": f"film {i}{HOSTILE_NAME}", "label": f"{i % 2}{HOSTILE_NAME}"}) + "\n" for i in range(6)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(rows))
    task = {
        "name": "evil",
        "description": HOSTILE,
        "template": "{text} " + HOSTILE_NAME + " it was",
        "labels": {f"0{HOSTILE_NAME}": f" bad{HOSTILE_NAME}", f"1{HOSTILE_NAME}": " good"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder
