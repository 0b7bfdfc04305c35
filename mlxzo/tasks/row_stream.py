"""The rows of a file of any length, read anew for each pass: tables, or one JSON object on each line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import open_regular
from .base import Origin
from .reading import parse_object
from .tables import SEPARATORS, Table
from .text_lines import MAX_LINE_BYTES, lines_of

OBJECTS = (".jsonl", ".ndjson", ".json")
"""Names of files with one JSON object on each line end in these."""


@dataclass(frozen=True)
class StreamedRow:
    """A row, with the number of the line on which it begins.

    Attributes:
        fields: its values by name.
        written: it as it stands in the file: the text of a JSON object, or the cells of a table.
    """

    number: int
    fields: dict[str, Any]
    written: str | list[str]


@dataclass
class RowStream:
    """The rows of one file.

    Attributes:
        path: the file that is read.
        name: the file for messages, where `path` is a copy of it.
        table: the table; None for JSON objects.
        problems: of the lines that are no rows, found by the latest pass so far.
        remarks: sentences on how the file is read, where it is not plain.
    """

    path: Path
    name: Path
    table: Table | None = field(init=False, default=None)
    problems: list[tuple[int, str]] = field(init=False, default_factory=list)
    remarks: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Finds the form of the file, by its name or by what it begins with.

        Raises:
            DataError: the file cannot be read, or has another form.
        """
        suffix = self.name.suffix.lower()
        if suffix == ".parquet":
            raise DataError(f"{self.name} is a parquet file", "write its rows as .csv or .jsonl")
        start = next((line.strip() for line in self._lines() if line.strip()), "")
        if suffix in SEPARATORS or (suffix not in OBJECTS and not start.startswith(("{", "["))):
            self.table = Table(self._lines, self.name, SEPARATORS.get(suffix, ","), self.remarks)
        elif start.startswith("["):
            raise DataError(
                f"{self.name} is a JSON array", "write one object on each line: jq -c '.[]' FILE.json > FILE.jsonl"
            )

    def rows(self) -> Iterator[StreamedRow]:
        """One pass over the rows that can be read; the others are added to `problems`.

        Raises:
            DataError: the file cannot be read, or is in another encoding throughout.
        """
        self.problems.clear()
        if self.table is not None:
            for number, cells in self.table.rows(self.problems):
                yield StreamedRow(number, self.table.fields(cells), cells)
            return
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            try:
                yield StreamedRow(number, parse_object(line), line.strip())
            except ValueError as error:
                self.problems.append((number, str(error)))

    def examples(self, make: Callable[[StreamedRow], Any]) -> Iterator[tuple[StreamedRow, Any]]:
        """One pass over the rows, each with what `make` makes of it; its ValueError is the problem of that row."""
        for row in self.rows():
            try:
                made = make(row)
            except ValueError as error:
                self.problems.append((row.number, str(error)))
                continue
            yield row, made

    def located(self) -> list[tuple[Origin, str]]:
        """The problems with the places they are about, in the order of the file."""
        return [(Origin(self.name, number), problem) for number, problem in sorted(self.problems)]

    def _lines(self) -> Iterator[str]:
        """One pass over the lines; those that are no text are added to `problems`, and come as empty ones."""
        try:
            with open_regular(self.path) as file:
                for _, line in lines_of(file, self.name, MAX_LINE_BYTES, self.problems):
                    yield line
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}", "check the path") from None
