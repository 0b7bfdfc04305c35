"""Problems of rows as one error: every row by file and line, a sentence about several rows once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import DataError
from .base import Origin

SHOWN_PROBLEMS = 20
SHOWN_RANGES = 8


def bad_rows(problems: Sequence[tuple[Origin, str]], fix: str, *, whole: bool = False) -> DataError:
    """The error that names the rows that cannot be used; its details are at most `SHOWN_PROBLEMS` sentences.

    Args:
        problems: at least one row with a sentence about it, file by file.
        whole: name all of them, however many they are.
    """
    rows: dict[tuple[Path, str], list[Origin]] = {}
    for origin, sentence in problems:
        rows.setdefault((origin.path, sentence), []).append(origin)
    files = list(dict.fromkeys(path for path, _ in rows))
    sentences = {sentence for _, sentence in rows}
    ordered = sorted(rows, key=lambda key: (files.index(key[0]), min(origin.number for origin in rows[key])))
    one_file = len(files) == 1
    most_ranges, most_sentences = (sys.maxsize, sys.maxsize) if whole else (SHOWN_RANGES, SHOWN_PROBLEMS)
    where = f"{files[0]}" if one_file else f"{files[0].parent}"
    if len(rows) == 1:
        return DataError(f"{where}, {_places(rows[ordered[0]], most_ranges)}: {ordered[0][1]}", fix)
    if len(sentences) == 1:
        places = "; ".join(f"{path.name}, {_places(rows[path, sentence], most_ranges)}" for path, sentence in ordered)
        return DataError(f"{where}: {ordered[0][1]} ({places})", fix)
    details = [
        ("" if one_file else f"{path.name}, ") + f"{_places(rows[path, sentence], most_ranges)}: {sentence}"
        for path, sentence in ordered
    ]
    if len(details) > most_sentences:
        hidden = sum(len(rows[key]) for key in ordered[most_sentences:])
        details[most_sentences:] = [f"and {hidden} more"]
    count = len({(origin.path, origin.number) for origin, _ in problems})
    return DataError(f"{where}: {count} {problems[0][0].unit}s cannot be used", fix, details)


def _places(origins: Sequence[Origin], most: int) -> str:
    """`line 3`, or `lines 1-8, 12`; beyond `most` ranges, the rest is counted."""
    numbers = sorted({origin.number for origin in origins})
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:most])
    hidden = sum(last - first + 1 for first, last in ranges[most:])
    return f"{origins[0].unit}{'s' if len(numbers) > 1 else ''} {words}" + (f" and {hidden} more" if hidden else "")
