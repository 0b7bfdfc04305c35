"""Try a tuned model beside its base.

mlxzo generate --run runs/RUN "The soup was cold and nobody came. The customer is"
mlxzo generate --adapter DIR "The soup was cold and nobody came. The customer is"
mlxzo generate --model smollm2-135m "The capital of France is"
mlxzo generate --model smollm2-135m --prompt-style chat --temperature 0.7 "Name a river in France."

A run's prompt style is that of its configuration.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO

from ...core.config import option_problems, options
from ...core.errors import EXIT_DONE, ConfigError
from ...core.options import parse_value
from ...engine.sampling import LONGEST
from ..options import add_config_options, add_json, add_source, config_values, print_json, source_of

if TYPE_CHECKING:
    from ...engine.side_by_side import SideBySide

_OPTIONS = ("model", "dtype", "prompt_style", "out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on from; `-` reads it from stdin")
    add_source(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=40,
        metavar="N",
        help=f"longest answer (tokens; 1 to {LONGEST}; default: 40)",
    )
    drawing = parser.add_argument_group("drawing")
    drawing.add_argument(
        "--temperature",
        dest="drawn_temperature",
        default="0",
        metavar="X",
        help="draw tokens by their probabilities, the logits divided by this (0 to 100; default: 0, the likeliest)",
    )
    drawing.add_argument(
        "--top-p",
        dest="drawn_top_p",
        default="1",
        metavar="X",
        help="draw only among the likeliest tokens that together have this probability (above 0, to 1; default: 1)",
    )
    drawing.add_argument(
        "--seed",
        dest="drawn_seed",
        default="0",
        metavar="N",
        help="seed of the draws, which repeat with it (default: 0)",
    )
    add_json(parser)
    parser.add_argument(
        "--serve",
        action="store_true",
        help="load the models once and answer prompts from stdin, for programs: a JSON object a line with `prompt` and "
        "`max_new_tokens`; each piece of an answer is one as well, and so is its end. A further line ends the answer "
        "in hand. PROMPT is then `-`",
    )
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    _check_length(arguments.max_new_tokens, "--max-new-tokens")
    prompt = arguments.prompt
    if arguments.serve and prompt != "-":
        raise ConfigError("--serve reads its prompts from stdin", "give `-` in place of a prompt")
    if prompt == "-" and not arguments.serve:
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ConfigError("the prompt is empty", "give the text to go on from")
    temperature, top_p, seed = (_drawn(arguments, name) for name in ("temperature", "top_p", "seed"))
    from .train import read_tuned_config

    source = source_of(arguments)
    config = read_tuned_config(config_values(arguments), source)
    from ...core.blas import load_fast_blas

    load_fast_blas()
    from ...engine.sampling import Sampling
    from ...engine.side_by_side import SideBySide

    voices = SideBySide(config, source, Sampling(temperature, top_p, (seed,)) if temperature else None)
    if arguments.serve:
        serve(voices, sys.stdin)
    else:
        # A conversation's answer is a turn of its own; in plain style it goes on in the prompt's line.
        asked = f"{prompt}\n" if config.prompt_style == "chat" else prompt
        _say(voices, prompt, asked, arguments.max_new_tokens, as_json=arguments.json)
    return EXIT_DONE


def _drawn(arguments: argparse.Namespace, name: str) -> Any:
    """The value of a flag that says how tokens are drawn; its range is that of the run's option of this name.

    Raises:
        ConfigError: it is no such value.
    """
    text = getattr(arguments, f"drawn_{name}")
    if problems := option_problems(name, text):
        raise ConfigError(f"--{problems[0].replace('_', '-', 1)}", "see `mlxzo generate --help`")
    return parse_value(next(f for f in options() if f.name == name), text)


def _say(voices: SideBySide, prompt: str, asked: str, max_new_tokens: int, *, as_json: bool) -> None:
    """Prints one answer of each model, as they speak unless it is to be JSON.

    Args:
        asked: the prompt as it stands before an answer.
    """
    from ...core.formatting import printable

    # Whichever model speaks first is shown as it speaks; the other is shown after it.
    texts: dict[str, str] = {}
    for speaker, piece in voices.answer(prompt, max_new_tokens):
        if not as_json and speaker not in texts:
            print("\n\n" if texts else "", f"--- {speaker} ---\n", printable(asked), sep="", end="", flush=True)
        texts[speaker] = texts.get(speaker, "") + piece
        if not as_json:
            print(printable(piece), end="", flush=True)
    if as_json:
        print_json({"prompt": prompt, **texts})
    else:
        print()


def serve(voices: SideBySide, requests: TextIO) -> None:
    """Answers the prompts of a stream, a JSON object a line, until it ends.

    A request is {"prompt": text, "max_new_tokens": count}. Its answer is pieces {"speaker": "base" or "tuned", "text":
    piece} and then {"done": true}. A line that comes meanwhile ends the answer; `{}` asks for nothing else.

    Raises:
        ConfigError: a line that is no request.
    """
    inbox = _Inbox(requests)
    while (line := inbox.take()) is not None:
        request = _request(line)
        if not request:
            continue
        for speaker, piece in voices.answer(request["prompt"], request["max_new_tokens"]):
            if inbox.waits:
                break
            print(json.dumps({"speaker": speaker, "text": piece}), flush=True)
        print(json.dumps({"done": True}), flush=True)


class _Inbox:
    """The lines of a stream, read in a thread of their own, so that one can be seen to have come."""

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
    def waits(self) -> bool:
        """Whether a line waits; the end of the stream is none."""
        return self._came > self._taken

    def take(self) -> str | None:
        """The next line, as soon as there is one; None at the end."""
        line = self._lines.get()
        self._taken += 1
        return line


def _request(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if found == {} or (isinstance(found["prompt"], str) and isinstance(found["max_new_tokens"], int)):
            if found:
                _check_length(found["max_new_tokens"], "max_new_tokens")
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(
        f"{line.strip()[:80]!r} is no request", 'send lines such as {"prompt": "...", "max_new_tokens": 40}'
    )


def _check_length(count: int, name: str) -> None:
    if not 1 <= count <= LONGEST:
        raise ConfigError(f"{name} must be 1 to {LONGEST}, not {count}")
