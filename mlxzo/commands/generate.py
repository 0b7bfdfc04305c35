"""Try a tuned model beside its base.

mlxzo generate --run runs/RUN "The soup was cold and nobody came. The customer is"
mlxzo generate --adapter DIR "The soup was cold and nobody came. The customer is"
mlxzo generate --model smollm2-135m "The capital of France is"
"""

from __future__ import annotations

import argparse
import json

from ..errors import EXIT_DONE, ConfigError
from .options import add_config_options, add_json, add_source, config_values, print_json, source_of

_OPTIONS = ("model", "dtype", "out")
_LONGEST = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on from; `-` reads it from stdin")
    add_source(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=40,
        metavar="N",
        help=f"longest answer (tokens; 1 to {_LONGEST}; default: 40)",
    )
    add_json(parser)
    parser.add_argument(
        "--stream",
        action="store_true",
        help="with --json: a JSON object a line as the models speak, one for each piece",
    )
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.max_new_tokens <= _LONGEST:
        raise ConfigError(f"--max-new-tokens must be 1 to {_LONGEST}, not {arguments.max_new_tokens}")
    prompt = arguments.prompt
    if prompt == "-":
        import sys

        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ConfigError("the prompt is empty", "give the text to go on from")
    from .train import read_tuned_config

    source = source_of(arguments)
    config = read_tuned_config(config_values(arguments), source)
    from ..blas import load_fast_blas

    load_fast_blas()
    from ..formatting import printable
    from ..jobs import generate_job

    pieces = generate_job(
        config,
        source=source,
        prompt=prompt,
        max_new_tokens=arguments.max_new_tokens,
        on_event=lambda event: None,
    )
    if arguments.json and arguments.stream:
        for speaker, piece in pieces:
            print(json.dumps({"speaker": speaker, "text": piece}), flush=True)
        return EXIT_DONE
    # Whichever model speaks first is shown as it speaks; the other is shown after it.
    texts: dict[str, str] = {}
    for speaker, piece in pieces:
        if not arguments.json and speaker not in texts:
            print("\n\n" if texts else "", f"--- {speaker} ---\n", printable(prompt), sep="", end="", flush=True)
        texts[speaker] = texts.get(speaker, "") + piece
        if not arguments.json:
            print(printable(piece), end="", flush=True)
    if arguments.json:
        print_json({"prompt": prompt, **texts})
    else:
        print()
    return EXIT_DONE
