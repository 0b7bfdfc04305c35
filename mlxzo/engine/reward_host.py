"""Runs a user's Python function as a reward program: `python -m mlxzo.engine.reward_host MODULE:FUNCTION`.

The function takes the prompt, the answer and the list of gold answers, and returns a number; higher is better. What it
raises costs that answer its score. Its prints go to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def main(name: str) -> int:
    module, _, function = name.partition(":")
    replies = sys.stdout
    score = getattr(importlib.import_module(module), function)
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(json.dumps(_reply(score, json.loads(line))), file=replies, flush=True)
    return 0


def _reply(score: Callable[..., Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"score": float(score(asked["prompt"], asked["answer"], asked["gold"]))}
    except Exception as error:
        traceback.print_exc()
        return {"error": traceback.format_exception_only(error)[-1].strip()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
