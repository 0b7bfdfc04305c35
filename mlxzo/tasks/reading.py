"""Reads data files in JSONL, CSV and TSV, and reports all problems of a file at once, by line number.

A file is UTF-8 (a byte-order mark is tolerated); lines end in LF or CRLF, blank ones are skipped. JSONL has one JSON
object a line; of a repeated key, the last value counts. CSV and TSV name their fields in the first line; a cell in
double quotes may contain separators, doubled quotes and line ends; all values are text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import DataError
from .base import Example, Origin, kind_of, shown

MAX_LINE_BYTES = 16 * 2**20
SPLITS = ("train", "validation", "test")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", *SEPARATORS)
FOLDER = "a data folder holds train.jsonl, validation.jsonl and, optionally, test.jsonl (or .csv, or .tsv)"


@dataclass
class RowReader:
    """The objects of a file with their line numbers, and the problems of the other lines.

    Attributes:
        unit: what the numbers count, lines or rows.
    """

    path: Path
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    unit: str = "line"

    def located(self) -> list[tuple[Origin, str]]:
        """The problems with the places they are about."""
        return [(Origin(self.path, number, self.unit), problem) for number, problem in self.problems]

    def examples(self, make: Callable[[Mapping[str, Any]], Example]) -> list[Example]:
        """The examples of the rows, in the order of the file; rows that have none are added to the problems.

        Args:
            make: a task's `example_from_row`; its ValueError is the problem of that row.
        """
        found = []
        for number, row in self.rows:
            try:
                found.append(replace(make(row), origin=Origin(self.path, number, self.unit)))
            except ValueError as error:
                self.problems.append((number, str(error)))
        return found


def split_paths(folder: Path) -> dict[str, Path]:
    """The files of a data folder by split; `test` is absent if it has no file.

    Raises:
        DataError: the folder does not exist, is a file, lacks training or validation rows, or has a split twice.
    """
    if not folder.exists():
        raise DataError(f"the data folder {folder} does not exist", f"check the path given to --data; {FOLDER}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, and --data takes a folder", f"name the folder it lies in; {FOLDER}")
    found = {split: [path for suffix in SUFFIXES if (path := folder / (split + suffix)).exists()] for split in SPLITS}
    for paths in found.values():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DataError(f"{folder} has both {names}", "keep one of them")
    missing = [f"{split}.jsonl" for split in ("train", "validation") if not found[split]]
    if missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}", f"{FOLDER}; add what is missing")
    return {split: paths[0] for split, paths in found.items() if paths}


def read_rows(path: Path) -> RowReader:
    """The rows of a file. Malformed lines are collected, to be reported with those that a task rejects.

    Raises:
        DataError: the file cannot be read, has no rows, or is a table without usable names in its first line.
    """
    found = RowReader(path)
    separator = SEPARATORS.get(path.suffix)
    try:
        with path.open("rb") as file:
            if separator is None:
                _read_objects(file, found)
            else:
                _read_table(file, separator, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "check the file's permissions") from None
    if not found.rows and not found.problems:
        form = "one JSON object on each line" if separator is None else "one row on each line, under a line of names"
        raise DataError(f"{path} is empty", f"put {form}")
    return found


def _read_objects(file: BinaryIO, found: RowReader) -> None:
    for number, line in _lines(file):
        try:
            row = _parse(line)
        except ValueError as error:
            found.problems.append((number, str(error)))
        else:
            if row is not None:
                found.rows.append((number, row))


def _read_table(file: BinaryIO, separator: str, found: RowReader) -> None:
    reader = csv.reader(_table_lines(file, found), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        # A row of several lines has the number of its first.
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            found.problems.append((number, f"not a row of a table: {error}"))
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [cell.strip() for cell in cells]
            if len(set(names)) < len(names) or "" in names:
                raise DataError(
                    f"{found.path}, line {number}: the first line must name each field once; found {shown(names)}",
                    "put the names of the fields in the first line",
                )
        elif len(cells) != len(names):
            found.problems.append((number, f"has {len(cells)} cells, where the first line names {len(names)} fields"))
        else:
            found.rows.append((number, dict(zip(names, cells, strict=True))))


def _table_lines(file: BinaryIO, found: RowReader) -> Iterator[str]:
    """The lines of a table as text; unreadable ones are reported, and replaced by empty lines."""
    for number, line in _lines(file):
        try:
            yield _text(line) + "\n"
        except ValueError as error:
            found.problems.append((number, str(error)))
            yield "\n"


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1 and lines without their ends; None for a line too long to take into memory."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        body = line.rstrip(b"\r\n")
        if len(body) <= MAX_LINE_BYTES:
            yield number, body
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(2**20)
        yield number, None


def _text(line: bytes | None) -> str:
    """A line as text.

    Raises:
        ValueError: it is too long, or not UTF-8.
    """
    if line is None:
        raise ValueError(f"longer than {MAX_LINE_BYTES // 2**20} MB")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x})") from None


def _parse(line: bytes | None) -> dict[str, Any] | None:
    """The object on a line, or None for a blank one.

    Raises:
        ValueError: the line is no JSON object; the message describes it.
    """
    text = _text(line)
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON: {error.msg.lower().removesuffix(' at')} at character {error.pos + 1}"
        ) from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    except ValueError:
        raise ValueError("not usable JSON: a number has too many digits") from None
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, not {kind_of(row)}")
    return row
