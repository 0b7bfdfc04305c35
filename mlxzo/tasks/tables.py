"""Tables in text files, as spreadsheets and pandas write them.

The first line names the fields. The separator is the one that gives most names there. A cell in double quotes may hold
separators, doubled quotes and line ends. In tab-separated files quotes are often plain characters instead: where every
line has the right number of cells as it stands, each line is a row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

from ..core.errors import DataError
from .base import nfc, shown
from .row_file import RowFile

SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
# The line by which Excel is told a separator.
_EXCEL_HINT = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_table(lines: Sequence[str], found: RowFile, longest_cell: int) -> None:
    """Adds the rows of a table to `found`.

    Args:
        lines: all lines of the file, without their ends.
        longest_cell: in characters.

    Raises:
        DataError: the first line is no list of distinct names.
    """
    csv.field_size_limit(longest_cell)
    usual = SEPARATORS[found.path.suffix.lower()]
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    separator = None
    if first < len(lines) and (hint := _EXCEL_HINT.fullmatch(lines[first].strip(" "))):
        separator = hint[1]
        first += 1
    if first >= len(lines):
        return
    separator = separator or _separator(lines[first], usual)
    if separator != usual:
        found.remarks.append(f"cells are separated by {_NAMES.get(separator, separator)}")
    body = list(lines)
    body[:first] = [""] * first
    rows = _unquoted(body, separator, found) if separator == "\t" else None
    if rows is None:
        rows = _quoted(body, separator, found)
    names: list[str] = []
    for number, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = _names(cells, number, found)
        elif len(cells) != len(names):
            found.problems.append((number, f"has {len(cells)} cells, where the first line names {len(names)} fields"))
        else:
            found.rows.append((number, {name: cell for name, cell in zip(names, cells, strict=True) if name}))


def _separator(header: str, usual: str) -> str:
    """The separator that gives most names; the usual one of the file's suffix if several do."""
    return max((usual, ",", ";", "\t"), key=lambda each: len(next(csv.reader([header], delimiter=each), ())))


def _names(cells: Sequence[str], number: int, found: RowFile) -> list[str]:
    names = [nfc(cell.strip()) for cell in cells]
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        raise DataError(
            f"{found.path}, line {number}: the first line must name each field once; found {shown(names)}",
            "put the names of the fields in the first line",
        )
    if len(given) < len(names):
        which = "the first column" if not names[0] else "a column"
        found.remarks.append(f"{which} has no name and is passed over, as an index that pandas writes is")
    return names


def _unquoted(lines: Sequence[str], separator: str, found: RowFile) -> list[tuple[int, list[str]]] | None:
    """Numbers and cells of a file in which each line is a row; None unless all have as many cells as the first.

    A cell that is properly quoted as a whole loses its quotes; in any other, quotes are plain characters.
    """
    rows = [(number, line.split(separator)) for number, line in enumerate(lines, 1) if line.strip()]
    # In a single column nothing tells a row from a line of a quoted cell.
    if len(rows[0][1]) < 2 or any(len(cells) != len(rows[0][1]) for _, cells in rows):
        return None
    bare = [number for number, cells in rows if any(c.startswith('"') and not _QUOTED.fullmatch(c) for c in cells)]
    if bare:
        found.remarks.append(f"a quote opens in line {bare[0]} and does not close: quotes are read as characters")
    return [
        (number, [match[1].replace('""', '"') if (match := _QUOTED.fullmatch(cell)) else cell for cell in cells])
        for number, cells in rows
    ]


def _quoted(lines: Sequence[str], separator: str, found: RowFile) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of the rows; a row of several lines has the number of its first."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    width = 0
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            found.problems.append((first, _quote_problem(str(error))))
            continue
        if cells is None:
            return
        width = width or len(cells)
        # The lines of a cell that holds line ends are each shorter than a row: prose has commas, but no tabs.
        whole = sum(line.count(separator) + 1 == width for line in lines[first - 1 : reader.line_num])
        if separator == "\t" and whole > 1 < width:
            found.problems.append((first, "a quote opens here, and the rows up to its end would be one cell"))
        else:
            yield first, cells


def _quote_problem(reason: str) -> str:
    """The problem of a row in words, from the csv module's own."""
    if "end of data" in reason:
        return "a quote opens here and is never closed"
    if "expected after" in reason:
        return "text follows a closing quote: double the quotes inside a quoted cell"
    return f"not a row of a table: {reason}"
