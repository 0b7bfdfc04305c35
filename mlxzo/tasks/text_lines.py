"""The lines of a text file in UTF-8 or, with a byte-order mark, UTF-16; another encoding is an error."""

from __future__ import annotations

import codecs
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..core.errors import DataError
from ..core.formatting import shown

MAX_LINE_BYTES = 16 * 2**20

# What a file begins with that is no text, and the advice.
_NO_TEXT = {
    b"PK\x03\x04": ("a zip archive, as an Excel workbook is", "save the sheet as `CSV UTF-8`, or unpack the archive"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save the sheet as `CSV UTF-8`"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it with gunzip"),
    b"PAR1": ("a parquet file", "end its name with .parquet"),
}
_UNDECODED = re.compile(r"[\udc80-\udcff]")
_WORD = re.compile(r"[\w\udc80-\udcff]+")


def lines_of(file: BinaryIO, path: Path, most: int, problems: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and lines without their ends (LF, CRLF or CR).

    Args:
        path: the file's, for messages.
        most: characters of the longest line that is taken into memory.
        problems: lines that are longer, or not UTF-8, are added to it, and come as empty lines.

    Raises:
        DataError: the file is no text, or in another encoding throughout.
    """
    start = file.read(4)
    file.seek(0)
    for mark, (kind, fix) in _NO_TEXT.items():
        if start.startswith(mark):
            raise DataError(f"{path} is {kind}, and no text", fix)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = io.TextIOWrapper(file, encoding="utf-16")
    else:
        # A byte that is not UTF-8 becomes a lone surrogate, which no UTF-8 text holds.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    undecoded: list[tuple[int, str]] = []
    is_utf8 = False
    try:
        for number, line in _numbered(text, most):
            if line is None:
                problems.append((number, f"longer than {most // 2**20} MB"))
            elif number == 1 and "\0" in line:
                raise DataError(
                    f"{path} holds NUL bytes: UTF-16 without a byte-order mark, it seems", "save it as UTF-8"
                )
            elif _UNDECODED.search(line):
                undecoded.append((number, line))
            else:
                is_utf8 = is_utf8 or not line.isascii()
                yield number, line
                continue
            yield number, ""
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-16: {error.reason}", "save it as UTF-8") from None
    if undecoded and not is_utf8:
        raise _other_encoding(path, *undecoded[0])
    problems += [(number, _not_utf8(line)) for number, line in undecoded]


def _numbered(text: io.TextIOWrapper, most: int) -> Iterator[tuple[int, str | None]]:
    """Line numbers and lines without their ends; None for a line that is too long."""
    number = 0
    while line := text.readline(most + 1):
        number += 1
        if len(line) <= most or line.endswith("\n"):
            yield number, line.removesuffix("\n")
            continue
        while line and not line.endswith("\n"):
            line = text.readline(2**20)
        yield number, None


def _bytes(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


def _not_utf8(line: str) -> str:
    try:
        _bytes(line).decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x})"
    raise ValueError("the line is UTF-8")


def _other_encoding(path: Path, number: int, line: str) -> DataError:
    """The error of a file that is UTF-8 in no line beyond ASCII.

    Windows-1252, of Excel, is the likeliest; the words it gives let a reader judge.
    """
    word = next(match[0] for match in _WORD.finditer(line) if _UNDECODED.search(match[0]))
    place = f"{path} is not UTF-8: line {number} has"
    try:
        guess = _bytes(word).decode("cp1252")
    except UnicodeDecodeError:
        return DataError(f"{place} {_bytes(word)[:40]!r}", "save it as UTF-8 (in Excel: `CSV UTF-8`)")
    name = shlex.quote(path.name)
    return DataError(
        f"{place} {shown(guess)} if it is Windows-1252",
        f"save it as UTF-8 (in Excel: `CSV UTF-8`; or iconv -f WINDOWS-1252 -t UTF-8 {name} > FILE)",
    )
