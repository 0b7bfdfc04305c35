"""Reads data folders: JSONL, JSON, CSV, TSV and parquet, with the problems of a file by line.

Text is UTF-8, or UTF-16 with a byte-order mark; blank lines are skipped. JSONL has one JSON object a line, JSON an
array of them; of a repeated key, the last value counts. Tables are read as `tables` says; all their values are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import open_regular
from .base import kind_of, listed
from .parquet import parquet_rows
from .row_file import RowFile
from .tables import SEPARATORS, read_table
from .text_lines import MAX_LINE_BYTES, lines_of

# A JSON array is one line in many files.
MAX_ARRAY_BYTES = 2**30
SPLITS = {"train": ("train",), "validation": ("validation", "valid"), "test": ("test",)}
"""The names of the files of a split; mlx-lm calls validation rows `valid`."""
SUFFIXES = (".jsonl", ".json", *SEPARATORS, ".parquet")
FOLDER = (
    "a data folder holds train.jsonl, validation.jsonl and, optionally, test.jsonl (or .json, .csv, .tsv, .parquet)"
)
_ARRAY = re.compile(r"\s*\[\s*([{\]]|$)")
_SPACE = re.compile(r"\s*")


def split_paths(folder: Path) -> dict[str, Path]:
    """The files of a data folder by split; `test` is absent if it has no file.

    Raises:
        DataError: the folder does not exist, is a file, lacks training or validation rows, or has a split twice.
    """
    if not folder.exists():
        raise DataError(f"the data folder {folder} does not exist", f"check the path; {FOLDER}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, and rows are given as a folder", f"name the folder it lies in; {FOLDER}")
    try:
        files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror or error}", "check the folder's permissions"
        ) from None
    found = {split: [path for path in files if path.stem.lower() in names] for split, names in SPLITS.items()}
    for paths in found.values():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DataError(f"{folder} has {names} for the same rows", "keep one of them")
    missing = [f"{split}.jsonl" for split in ("train", "validation") if not found[split]]
    if missing:
        there = f"; found {listed((path.name for path in files), 8)}" if files else ""
        raise DataError(f"{folder} has no {' and no '.join(missing)}{there}", f"{FOLDER}; add what is missing")
    return {split: paths[0] for split, paths in found.items() if paths}


def read_rows(path: Path) -> RowFile:
    """The rows of a file. Malformed lines are collected, to be reported with those that a task rejects.

    Raises:
        DataError: the file cannot be read, has no rows, or cannot be used as a whole.
    """
    found, suffix = RowFile(path), path.suffix.lower()
    form = "one row on each line, under a line of names" if suffix in SEPARATORS else "one JSON object on each line"
    try:
        if suffix == ".parquet":
            found.unit, form = "row", "rows"
            found.rows = list(enumerate(parquet_rows(path, "write it anew"), start=1))
        else:
            with open_regular(path) as file:
                most = MAX_ARRAY_BYTES if suffix == ".json" else MAX_LINE_BYTES
                lines = lines_of(file, path, most, found.problems)
                if suffix in SEPARATORS:
                    read_table([line for _, line in lines], found)
                else:
                    _read_objects(lines, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "check the file's permissions") from None
    if not found.rows and not found.problems:
        raise DataError(f"{path} is empty", f"put {form}")
    return found


def _read_objects(lines: Iterator[tuple[int, str]], found: RowFile) -> None:
    """Adds the objects of a file, one on each line or all in an array."""
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if _ARRAY.match(first[1]):
        _read_array("\n" * (first[0] - 1) + "\n".join([first[1], *(line for _, line in lines)]), found)
        return
    for number, line in chain([first], lines):
        if not line.strip():
            continue
        try:
            found.rows.append((number, parse_object(line)))
        except ValueError as error:
            found.problems.append((number, str(error)))
            if number == first[0] and found.path.suffix.lower() == ".json":
                raise DataError(
                    f"{found.path} is no JSON array of objects, nor has it one object on each line",
                    "write the rows as [{...}, {...}]",
                    [f"line {number}: {error}"],
                ) from None


def _read_array(text: str, found: RowFile) -> None:
    """Adds the objects of a JSON array; each has the number of the line on which it begins."""
    decoder = json.JSONDecoder()
    place, number, counted = text.index("[") + 1, 1, 0
    while True:
        place = _after_space(text, place)
        number += text.count("\n", counted, place)
        counted = place
        if text.startswith("]", place) and not found.rows:
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            # Where a value does not end, none after it can be found.
            number = error.lineno if isinstance(error, json.JSONDecodeError) else number
            found.problems.append((number, _json_problem(error)))
            return
        try:
            found.rows.append((number, _object(value)))
        except ValueError as error:
            found.problems.append((number, str(error)))
        place = _after_space(text, place)
        if not text.startswith(",", place):
            break
        place += 1
    if not text.startswith("]", place):
        number += text.count("\n", counted, place)
        found.problems.append((number, "not valid JSON: the array lacks a comma or its closing bracket"))


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def parse_object(line: str) -> dict[str, Any]:
    """The object on a line.

    Raises:
        ValueError: it is no JSON object; the message describes it.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(_json_problem(error)) from None
    return _object(value)


def _object(value: Any) -> dict[str, Any]:
    """The value if it is an object.

    Raises:
        ValueError: it is not; the message describes it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, not {kind_of(value)}")
    return value


def _json_problem(error: Exception) -> str:
    """The problem of a line in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg.lower().removesuffix(' at')} at character {error.colno}"
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
    return f"not usable JSON: {reason}"
