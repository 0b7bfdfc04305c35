"""Try a tuned model beside its base.

mlxzo generate --run runs/RUN "The soup was cold and nobody came."
mlxzo generate --run runs/RUN '{"question": "do bees sleep", "passage": "Honey bees rest at night."}'
mlxzo generate --adapter DIR --task reviews "The soup was cold and nobody came."
mlxzo generate --run runs/RUN --max-new-tokens 40 "The soup was cold and nobody came. The customer is"
mlxzo generate --model smollm2-135m --prompt-style chat --temperature 0.7 "Name a river in France."

Of a task with labels their probabilities are printed, for the text of a row; where a row has several fields, for
these as a JSON object. The task is that of the run, journal or export, or --task. Both models continue the prompt
instead where no such task is known, and with --max-new-tokens or an option of sampling. The prompt style is that of the
run.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from ...core.config import options
from ...core.config_checks import option_problems
from ...core.errors import EXIT_DONE, ConfigError
from ...core.options import parse_value
from ...engine.sampling import LONGEST
from ...memory.mlx_limits import start_mlx
from ..options import add_config_options, add_json, add_source, config_values, source_of
from ..printing import print_json, say

if TYPE_CHECKING:
    import numpy as np

    from ...engine.side_by_side import SideBySide
    from ...tasks.base import Example, Task
    from ...tasks.classification import Classification

_OPTIONS = ("model", "dtype", "task", "data", "prompt_style", "max_tokens", "out")
_MAX_NEW_TOKENS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text to label or to continue; `-` reads it from stdin")
    add_source(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"most tokens of an answer (1 to {LONGEST}; default: {_MAX_NEW_TOKENS})",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature",
        dest="drawn_temperature",
        metavar="X",
        help="sample tokens, with the logits divided by this (0 to 100; default: 0, always the likeliest token)",
    )
    sampling.add_argument(
        "--top-p",
        dest="drawn_top_p",
        metavar="X",
        help="sample among the likeliest tokens that together have this probability (above 0, at most 1; default: 1)",
    )
    sampling.add_argument(
        "--seed",
        dest="drawn_seed",
        metavar="N",
        help="seed of the sampling (default: 0)",
    )
    add_json(parser)
    parser.add_argument(
        "--serve",
        action="store_true",
        help="load the models once and answer prompts from stdin, for other programs: one JSON object a line with "
        "`prompt` and `max_new_tokens`, or with `row`, the fields of a row to label. An answer is printed in pieces "
        "and then its end, one JSON object a line each; a new line on stdin ends it early. PROMPT must be `-`",
    )
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    max_new_tokens = _MAX_NEW_TOKENS if arguments.max_new_tokens is None else arguments.max_new_tokens
    _check_length(max_new_tokens, "--max-new-tokens")
    prompt = arguments.prompt
    if arguments.serve and prompt != "-":
        raise ConfigError("--serve reads its prompts from stdin", "give `-` in place of a prompt")
    if prompt == "-" and not arguments.serve:
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ConfigError("the prompt is empty", "give the text to label or to continue")
    temperature, top_p, seed = (_sampling_value(arguments, name) for name in ("temperature", "top_p", "seed"))
    from ...tasks.classification import Classification
    from .predict import known_task
    from .train import read_tuned_config

    source = source_of(arguments)
    flags = config_values(arguments)
    config = read_tuned_config(flags, source)
    task = None if _continues(arguments) else known_task(config, source, flags)
    question = _question(task, _row(task, prompt)) if isinstance(task, Classification) else None
    start_mlx()
    from ...engine.sampling import Sampling
    from ...engine.side_by_side import SideBySide

    sampling = Sampling(temperature, top_p, (seed,)) if temperature else None
    # What `--run` names is tuned; a fused export is so without a base.
    models = SideBySide(config, source, sampling, alone="base" if arguments.run is None else "tuned")
    if arguments.serve:
        serve(models, sys.stdin, lambda: known_task(config, source, flags))
    elif question is not None and isinstance(task, Classification):
        _print_labels(task, models.choose(question), prompt, as_json=arguments.json)
    else:
        # In a chat the answer is a turn of its own; in plain style it continues the line of the prompt.
        heading = f"{prompt}\n" if config.prompt_style == "chat" else prompt
        _print_answers(models, prompt, heading, max_new_tokens, as_json=arguments.json)
    return EXIT_DONE


def _continues(arguments: argparse.Namespace) -> bool:
    """True if a continued text is asked for, by an option that nothing else has a use for."""
    given = (getattr(arguments, name) for name in ("max_new_tokens", "drawn_temperature", "drawn_top_p", "drawn_seed"))
    return arguments.serve or any(value is not None for value in given)


def _row(task: Classification, prompt: str) -> dict[str, Any]:
    """The row that a prompt stands for: the text of the task's field, or a JSON object with its fields.

    Raises:
        ConfigError: it is no such object.
    """
    from ...tasks.reading import parse_object

    first, *others = task.input_fields
    try:
        return parse_object(prompt) if others else {first: prompt}
    except ValueError as error:
        raise _no_row(task, error) from None


def _question(task: Classification, row: dict[str, Any]) -> Example:
    """The example of a row whose label is not known.

    Raises:
        ConfigError: fields are missing.
    """
    try:
        return task.question(row)
    except ValueError as error:
        raise _no_row(task, error) from None


def _no_row(task: Classification, error: ValueError) -> ConfigError:
    wanted = json.dumps(dict.fromkeys(task.input_fields, "..."), ensure_ascii=False)
    return ConfigError(
        f"a row of the task {task.name} has the fields {', '.join(task.input_fields)}: {error}",
        f"give them as a JSON object, '{wanted}'",
    )


def _print_labels(task: Classification, probabilities: dict[str, np.ndarray], prompt: str, *, as_json: bool) -> None:
    """Prints the label and the probability of each, of one model beside the other.

    Args:
        probabilities: float64 [C] by model.
    """
    found = _labels(task, probabilities)
    if as_json:
        print_json({"prompt": prompt, **found})
        return
    from ...tasks.base import label_text
    from ..console import listing, output

    rows = [
        [str(label), *(f"{100 * shares[place]:.1f} %" for shares in probabilities.values())]
        for place, label in enumerate(task.classes)
    ]
    models = list(probabilities)
    rows.append(["label", *(label_text(found[model]["label"]) for model in models)])
    output().print(listing(["", *models], rows, right=tuple(models)))


def _labels(task: Classification, probabilities: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The likeliest label and the probability of each by model; `probabilities`: float64 [C] by model."""
    return {
        model: {
            "label": task.classes[int(shares.argmax())].value,
            "probabilities": {label.text: float(p) for label, p in zip(task.classes, shares, strict=True)},
        }
        for model, shares in probabilities.items()
    }


def _sampling_value(arguments: argparse.Namespace, name: str) -> Any:
    """The value of a sampling flag, checked as the option of a run of the same name.

    Raises:
        ConfigError: the value is out of range.
    """
    option = next(each for each in options() if each.name == name)
    text = getattr(arguments, f"drawn_{name}")
    if text is None:
        return option.default
    if problems := option_problems(options(), name, text):
        raise ConfigError(f"--{problems[0].replace('_', '-', 1)}", "see `mlxzo generate --help`")
    return parse_value(option, text)


def _print_answers(models: SideBySide, prompt: str, heading: str, max_new_tokens: int, *, as_json: bool) -> None:
    """Prints the answer of each model, piece by piece unless as JSON.

    Args:
        heading: the prompt as it is printed before an answer.
    """
    texts: dict[str, str] = {}
    for model, piece in models.answer(prompt, max_new_tokens):
        if not as_json and model not in texts:
            say(("\n\n" if texts else "") + f"--- {model} ---\n{heading}", end="")
        texts[model] = texts.get(model, "") + piece
        if not as_json:
            say(piece, end="")
    if as_json:
        print_json({"prompt": prompt, **texts})
    else:
        say()


def serve(models: SideBySide, requests: TextIO, find_task: Callable[[], Task | None] = lambda: None) -> None:
    """Answers the requests of a stream, one JSON object a line, until the stream ends.

    {"prompt": text, "max_new_tokens": count} is answered by pieces {"speaker": "base" or "tuned", "text": piece};
    {"row": {field: text, ...}}, a row of the task without its label, by {"speaker": ..., "label": value,
    "probabilities": {label: share, ...}}. Then comes {"done": true}. A new line ends the current answer; `{}` does
    nothing else.

    Args:
        find_task: called for the first row; None stands for a task that is not known.

    Raises:
        ConfigError: a line is no request, or the task has no labels.
    """
    inbox = _Inbox(requests)
    task: Classification | None = None
    while (line := inbox.take()) is not None:
        request = _request(line)
        if not request:
            continue
        if "row" in request:
            task = task or _with_labels(find_task())
            for model, found in _labels(task, models.choose(_question(task, request["row"]))).items():
                print(json.dumps({"speaker": model, **found}), flush=True)
        else:
            for model, piece in models.answer(request["prompt"], request["max_new_tokens"]):
                if inbox.has_line:
                    break
                print(json.dumps({"speaker": model, "text": piece}), flush=True)
        print(json.dumps({"done": True}), flush=True)


def _with_labels(task: Task | None) -> Classification:
    """The task, if it has labels.

    Raises:
        ConfigError: it has none, or is not known.
    """
    from ...tasks.classification import Classification

    if not isinstance(task, Classification):
        what = "no task is known" if task is None else f"the task {task.name} has no fixed set of labels"
        raise ConfigError(f"{what}, and `row` asks for a label", "send a prompt, or name a task with labels")
    return task


class _Inbox:
    """The lines of a stream, read in a thread of their own, so that a waiting line can be detected."""

    def __init__(self, stream: TextIO):
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._came = self._taken = 0
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            self._came += 1
            self._lines.put(line)
        self._lines.put(None)

    @property
    def has_line(self) -> bool:
        """True if a line waits; the end of the stream is no line."""
        return self._came > self._taken

    def take(self) -> str | None:
        """Waits for the next line and returns it; None at the end of the stream."""
        line = self._lines.get()
        self._taken += 1
        return line


def _request(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if found == {} or isinstance(found.get("row"), dict):
            return found
        if isinstance(found["prompt"], str) and isinstance(found["max_new_tokens"], int):
            _check_length(found["max_new_tokens"], "max_new_tokens")
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ConfigError(
        f"{line.strip()[:80]!r} is no request", 'send lines such as {"prompt": "...", "max_new_tokens": 40}'
    )


def _check_length(count: int, name: str) -> None:
    if not 1 <= count <= LONGEST:
        raise ConfigError(f"{name} must be 1 to {LONGEST}, not {count}")
