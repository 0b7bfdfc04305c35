"""Scores answers as a reward program (see `reward`): `python -m mlxzo.engine.reward_host MODULE:FUNCTION | TASK.yaml`.

A user's function takes the prompt, the answer and the list of gold answers, and `fields` where it has a parameter of
that name; it returns a number, higher is better. What it raises costs that answer its score. What it, its module and
programs that it starts print goes to standard error. Tracebacks show the user's code alone. A task YAML names its
judges under `reward`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Score = Callable[[Mapping[str, Any]], float]
"""A score of an answer, given as in the protocol."""


def main(name: str) -> int:
    # A line of anything else would be taken for a reply, and each later one for that to another answer.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            score = _of_task(name) if name.endswith((".yaml", ".yml")) else _of_function(name)
        except Exception as error:
            _print_error(error)
            print(f"the judge {name} cannot be loaded: {_line(error)}", file=sys.stderr)
            return 1
        for line in sys.stdin:
            print(json.dumps(_reply(score, json.loads(line))), file=replies, flush=True)
    return 0


def _of_function(name: str) -> Score:
    module, _, function = name.partition(":")
    score = getattr(importlib.import_module(module), function)
    more = ("fields",) if "fields" in inspect.signature(score).parameters else ()
    return lambda asked: score(asked["prompt"], asked["answer"], asked["gold"], **{key: asked[key] for key in more})


def _of_task(path: str) -> Score:
    from ..tasks.from_yaml import read_task_yaml

    reward = read_task_yaml(path).reward
    if reward is None:
        raise ValueError(f"{path} names no reward")
    return lambda asked: reward(asked["answer"], asked["gold"])


def _reply(score: Score, asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"score": float(score(asked))}
    except Exception as error:
        _print_error(error)
        return {"error": _line(error)}


def _line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _print_error(error: Exception) -> None:
    """Prints the part of the traceback that is of the user's code, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen ")]
    print("".join(traceback.format_list(own) + traceback.format_exception_only(error)), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
