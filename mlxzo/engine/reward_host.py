"""Runs a user's Python function as a reward program: `python -m mlxzo.engine.reward_host MODULE:FUNCTION`.

The function takes the prompt, the answer and the list of gold answers, and returns a number; higher is better. Its
prints go to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys


def main(name: str) -> int:
    module, _, function = name.partition(":")
    replies = sys.stdout
    score = getattr(importlib.import_module(module), function)
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            asked = json.loads(line)
            value = float(score(asked["prompt"], asked["answer"], asked["gold"]))
            print(json.dumps({"score": value}), file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
