"""Files of others: read within bounds, and whatever a parser raises told as an error of that file.

A file may be damaged, hostile, or of another kind than its name says. Parsers then raise nearly anything: wrong types
in the middle of a calculation, recursion, numbers that overflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import MlxzoError
from .failures import raise_shortage
from .files import open_regular
from .formatting import brief

# No JSON file of a run or a model that is read whole comes near this; tokenizers, which may, are read elsewhere.
MOST_JSON_BYTES = 1 << 26
# No file of ours is nested as deeply. What is parsed can then be walked, compared and shown by recursion.
MOST_LEVELS = 50
# What parsers raise on content that is not what it should be, beside OSError.
CONTENT_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError, MemoryError),
    *(struct.error, zlib.error),
)


class ContentError(ValueError):
    """A file whose content is not what it should be; the text is a clause that follows the name of the file."""


@contextlib.contextmanager
def parsing(path: str | os.PathLike[str], refused: type[MlxzoError], fix: str) -> Iterator[None]:
    """Turns what is raised while a file is read and parsed into the error of that file.

    Args:
        refused: the type of the error.
        fix: its advice.

    Raises:
        refused: the file cannot be read, or its content makes no sense.
    """
    try:
        yield
    except MlxzoError:
        raise
    except (OSError, *CONTENT_ERRORS) as error:
        raise_shortage(error)
        raise refused(f"{path} {reason_of(error)}", fix) from None


def reason_of(error: Exception) -> str:
    """What is wrong with a file by the exception of its parser: a clause that follows the name of the file."""
    if isinstance(error, ContentError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or brief(error)}"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON at line {error.lineno}, column {error.colno}: {brief(error.msg)}"
    if isinstance(error, KeyError):
        return f"lacks {brief(error)}"
    return f"makes no sense: {brief(error)}"


def read_bytes(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The content of a file that `open_regular` opens.

    Raises:
        OSError: it cannot be read. ContentError: it is larger than `most_bytes`.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ContentError(f"is larger than {most_bytes // 1024:,} KB")
    return content


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read. ValueError, RecursionError: it is no JSON, or nested more than `MOST_LEVELS` deep;
            `parsing` turns all of them into one.
    """
    found = json.loads(read_bytes(path, most_bytes).decode("utf-8"))
    level = [found]
    for _ in range(MOST_LEVELS):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return found
    raise RecursionError


def read_json_object(path: Path, refused: type[MlxzoError], fix: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        refused: the file cannot be read, or does not hold an object.
    """
    with parsing(path, refused, fix):
        found = read_json(path)
        if not isinstance(found, dict):
            raise ContentError("holds no JSON object")
        return found
