"""Tables in text files, as spreadsheets and pandas write them.

The first line names the fields. The separator is the one that gives most names there. A cell in double quotes may hold
separators, doubled quotes and line ends. In tab-separated files quotes are often plain characters instead: where every
line has the right number of cells as it stands, each line is a row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..core.errors import DataError
from ..core.formatting import counted, shown
from .base import nfc
from .row_file import RowFile
from .text_lines import MAX_LINE_BYTES

SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
# The line by which Excel is told a separator.
_EXCEL_HINT = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class Table:
    """A table of any length, read row by row as often as asked.

    Attributes:
        separator: between cells.
        header: the cells of the first line; empty if no line has any.
        names: the same as the names of fields; empty for a column without one.
    """

    def __init__(self, lines: Callable[[], Iterable[str]], path: Path, usual: str, remarks: list[str]):
        """Reads the names; of a file that is separated by tabs all lines, to see whether quotes mean anything.

        Args:
            lines: begins a pass over all lines of the file, without their ends.
            path: the file's, for messages.
            usual: the separator to expect.
            remarks: sentences on what is not plain are added to it.

        Raises:
            DataError: the first line is no list of distinct names.
        """
        csv.field_size_limit(MAX_LINE_BYTES)
        self._lines, self._first, self._quoted = lines, 0, True
        self.separator, self.header, self.names = usual, list[str](), list[str]()
        if not self._find_first():
            return
        if self.separator != usual:
            remarks.append(f"cells are separated by {_NAMES.get(self.separator, self.separator)}")
        self._quoted = self.separator != "\t" or not self._is_plain(remarks)
        number, self.header = next(self._cells([]), (0, []))
        self.names = _names(self.header, number, path, remarks)

    def rows(self, problems: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
        """Line numbers and cells of the rows, as many as there are names; the others are added to `problems`."""
        rows = self._cells(problems)
        next(rows, None)
        for number, cells in rows:
            if len(cells) == len(self.names):
                yield number, cells
            else:
                found = (
                    f"has {counted(len(cells), 'cell')}, where the first line names {counted(len(self.names), 'field')}"
                )
                problems.append((number, found))

    def fields(self, cells: Sequence[str]) -> dict[str, str]:
        """The cells of a row by name, without those that have none."""
        return {name: cell for name, cell in zip(self.names, cells, strict=True) if name}

    def _find_first(self) -> bool:
        """Finds the line of the names and the separator; returns whether there is one."""
        hinted = False
        for index, line in enumerate(self._lines()):
            if not line.strip():
                continue
            if not hinted and (hint := _EXCEL_HINT.fullmatch(line.strip(" "))):
                self.separator, hinted = hint[1], True
                continue
            if not hinted:
                self.separator = _separator(line, self.separator)
            self._first = index
            return True
        return False

    def _body(self) -> Iterator[str]:
        """All lines, empty before the names."""
        return ("" if index < self._first else line for index, line in enumerate(self._lines()))

    def _is_plain(self, remarks: list[str]) -> bool:
        """True if each line is a row as it stands: all have as many cells as the first."""
        width, bare = 0, 0
        for number, line in enumerate(self._body(), 1):
            if not line.strip():
                continue
            cells = line.split(self.separator)
            width = width or len(cells)
            # In a single column nothing tells a row from a line of a quoted cell.
            if width < 2 or len(cells) != width:
                return False
            if not bare and any(cell.startswith('"') and not _QUOTED.fullmatch(cell) for cell in cells):
                bare = number
        if bare:
            remarks.append(f"a quote opens in line {bare} and does not close: quotes are read as characters")
        return True

    def _cells(self, problems: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
        """Numbers and cells of all rows that are not blank, the names first."""
        body = self._body()
        rows = _quoted(body, self.separator, problems) if self._quoted else _unquoted(body, self.separator)
        return ((number, cells) for number, cells in rows if any(cell.strip() for cell in cells))


def read_table(lines: Sequence[str], found: RowFile) -> None:
    """Adds the rows of a table to `found`.

    Args:
        lines: all lines of the file, without their ends.

    Raises:
        DataError: the first line is no list of distinct names.
    """
    table = Table(lambda: lines, found.path, SEPARATORS[found.path.suffix.lower()], found.remarks)
    found.rows += ((number, table.fields(cells)) for number, cells in table.rows(found.problems))


def _separator(header: str, usual: str) -> str:
    """The separator that gives most names; the usual one of the file's suffix if several do."""
    return max((usual, ",", ";", "\t"), key=lambda each: len(next(csv.reader([header], delimiter=each), ())))


def _names(cells: Sequence[str], number: int, path: Path, remarks: list[str]) -> list[str]:
    names = [nfc(cell.strip()) for cell in cells]
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        raise DataError(
            f"{path}, line {number}: the first line must name each field once; found {shown(names)}",
            "put the names of the fields in the first line",
        )
    if len(given) < len(names):
        which = "the first column" if not names[0] else "a column"
        remarks.append(f"{which} has no name and is passed over, as an index that pandas writes is")
    return names


def _unquoted(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of a file in which each line is a row.

    A cell that is properly quoted as a whole loses its quotes; in any other, quotes are plain characters.
    """
    for number, line in enumerate(lines, 1):
        cells = line.split(separator)
        yield number, [match[1].replace('""', '"') if (match := _QUOTED.fullmatch(cell)) else cell for cell in cells]


def _quoted(lines: Iterable[str], separator: str, problems: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of the rows; a row of several lines has the number of its first."""
    taken: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield f"{line}\n"

    reader = csv.reader(feed(), delimiter=separator, strict=True)
    width = 0
    while True:
        first = reader.line_num + 1
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problems.append((first, _quote_problem(str(error))))
            continue
        if cells is None:
            return
        width = width or len(cells)
        # The lines of a cell that holds line ends are each shorter than a row: prose has commas, but no tabs.
        whole = sum(line.count(separator) + 1 == width for line in taken)
        if separator == "\t" and whole > 1 < width:
            problems.append((first, "a quote opens here, and the rows up to its end would be one cell"))
        else:
            yield first, cells


def _quote_problem(reason: str) -> str:
    """The problem of a row in words, from the csv module's own."""
    if "end of data" in reason:
        return "a quote opens here and is never closed"
    if "expected after" in reason:
        return "text follows a closing quote: double the quotes inside a quoted cell"
    return f"not a row of a table: {reason}"
