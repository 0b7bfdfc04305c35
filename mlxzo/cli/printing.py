"""Plain text and JSON on stdout and stderr. Every command prints by these, or by the console of `console`, which both
keep control characters of names, files and models from the terminal."""

from __future__ import annotations

import sys
from typing import Any

from ..core.formatting import json_text, printable


def say(text: str = "", *, end: str = "\n", error: bool = False) -> None:
    """Prints text to stdout, or to stderr for an `error` or a question."""
    print(printable(text), end=end, file=sys.stderr if error else sys.stdout, flush=True)


def print_json(value: Any) -> None:
    """Prints one JSON document to stdout; keys keep their order."""
    print(json_text(value, indent=2))
