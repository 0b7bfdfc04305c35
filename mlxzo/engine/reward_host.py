"""Calls a Python function of the user's as a reward program: `python -m mlxzo.engine.reward_host MODULE:FUNCTION`.

The function takes the prompt, the answer and the list of gold answers, and gives a number; higher is better. Whatever
it prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys


def main(name: str) -> int:
    module, _, function = name.partition(":")
    score = getattr(importlib.import_module(module), function)
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            asked = json.loads(line)
            value = float(score(asked["prompt"], asked["answer"], asked["gold"]))
            sys.__stdout__.write(json.dumps({"score": value}) + "\n")
            sys.__stdout__.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
