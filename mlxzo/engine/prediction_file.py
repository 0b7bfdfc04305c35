"""Files of labelled rows: how a row is written, and a file that goes on where its writing was ended. Imports no MLX."""

from __future__ import annotations

import csv
import fcntl
import glob
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..core.errors import ConfigError, DataError
from ..core.files import explained, fsync_folder, sync_to_disk
from ..core.formatting import json_text, spreadsheet_cell
from ..tasks.classification import Label
from ..tasks.row_stream import RowStream, StreamedRow

LABEL, PROBABILITY = "predicted_label", "probability_"
"""Names of the added columns; the second is followed by a label."""
_DECIMALS = 6


class RowWriter:
    """Writes rows as they came, with label and probabilities behind them.

    Attributes:
        added: names of the added columns.
    """

    def __init__(self, classes: Sequence[Label], stream: RowStream, separator: str | None):
        """Args:
            separator: of the table to write; None for JSON objects.

        Raises:
            DataError: the table to read has a column of an added name.
        """
        self.separator, self._classes = separator, classes
        self.added = (LABEL, *(PROBABILITY + label.text for label in classes))
        self._columns = dict.fromkeys(stream.table.header if stream.table else ())
        self._is_table = stream.table is not None
        if stream.table and (clash := self._clash(stream.table.names)):
            raise DataError(f"{stream.name}: {clash}", "rename it")

    def check(self, row: StreamedRow) -> None:
        """Takes the names of a row, which become columns.

        Raises:
            ValueError: it has a field of an added name.
        """
        if not self._is_table:
            if clash := self._clash(row.fields):
                raise ValueError(clash)
            self._columns.update(dict.fromkeys(row.fields))

    def header(self) -> str:
        """The line of the names; empty for JSON objects."""
        if self.separator is None:
            return ""
        return self._line([*self._columns, *self.added])

    def line(self, row: StreamedRow, probabilities: np.ndarray) -> str:
        """A row, with the probability of each label, float64 [C]."""
        label = self._classes[int(probabilities.argmax())]
        if self.separator is not None:
            own = row.written
            # The cells of a table are the user's, and come out as they came.
            cells = own if isinstance(own, list) else [_cell(row.fields.get(name, "")) for name in self._columns]
            return self._line([*cells, spreadsheet_cell(label.text), *(f"{p:.{_DECIMALS}f}" for p in probabilities)])
        values = (label.value, *(round(float(p), _DECIMALS) for p in probabilities))
        added = json_text(dict(zip(self.added, values, strict=True)))
        # An object is not written anew: its numbers and escapes stay as they are.
        before = row.written if isinstance(row.written, str) else json_text(row.fields)
        return f"{before[:-1].rstrip()}, {added[1:]}\n"

    def _line(self, cells: Sequence[str]) -> str:
        line = io.StringIO()
        csv.writer(line, delimiter=self.separator or ",", lineterminator="\n").writerow(cells)
        return line.getvalue()

    def _clash(self, names: Sequence[str] | dict[str, Any]) -> str:
        clash = next((name for name in self.added if name in names), None)
        return f"{clash!r} is there already, and is what predict adds" if clash else ""


def _cell(value: Any) -> str:
    """A JSON value in a table: text as `spreadsheet_cell` writes it, null as nothing, anything else as JSON."""
    if isinstance(value, str):
        return spreadsheet_cell(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def check_new(out: Path) -> None:
    """Raises ConfigError if the file to write exists, or its folder does not."""
    if out.exists():
        raise ConfigError(f"{out} exists already", "name another file with --out, or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"the folder {out.parent} does not exist", "make it, or name another file with --out")


class PartialFile:
    """A file under the name FILE.KEY.part until it is whole; whoever opens it again goes on where it ended.

    Attributes:
        rows: whole rows in it, a multiple of the window.
        is_new: nothing is in it.
    """

    def __init__(self, out: Path, key: str, window: int, *, is_table: bool):
        """Args:
            key: tells what is written: a part with another key is another file.
            window: rows that are written at once; what follows the last whole window is removed.
            is_table: the file begins with a line of names, and a row may have several lines.

        Raises:
            ConfigError: another process writes the file, or it cannot be written.
        """
        self._out, self.path = out, out.with_name(f"{out.name}.{key}.part")
        with explained(self.path, "the labels"):
            self._file = self.path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise ConfigError(f"another process writes {self.path}", "wait until it is done") from None
            self._file.seek(0)
            self.rows, end = _whole_windows(self._file, window, is_table)
            self._file.truncate(end)
            self.is_new = end == 0

    @property
    def others(self) -> list[Path]:
        """Parts of the same file with another key."""
        found = self.path.parent.glob(f"{glob.escape(self._out.name)}.*.part")
        return sorted(path for path in found if path != self.path)

    def write(self, text: str) -> None:
        with explained(self.path, "the labels"):
            # Half of a surrogate pair, which JSON can hold, is no character.
            self._file.write(text.encode("utf-8", errors="replace"))
            self._file.flush()

    def publish(self) -> None:
        """Gives the file its name.

        Raises:
            ConfigError: another file has it by now.
        """
        with explained(self._out, "the labels"):
            sync_to_disk(self._file.fileno())
            check_new(self._out)
            self.path.replace(self._out)
            self._file.close()
            fsync_folder(self._out.parent)


def _whole_windows(file: BinaryIO, window: int, is_table: bool) -> tuple[int, int]:
    """Rows in the whole windows of a file, and the bytes that they take."""
    rows, position, in_quotes = -1 if is_table else 0, 0, False
    whole = (0, 0)
    for line in file:
        position += len(line)
        if not line.endswith(b"\n"):
            break
        # A quote inside a cell is doubled, so the lines of a row have an even number of them.
        in_quotes ^= is_table and line.count(b'"') % 2 == 1
        if in_quotes:
            continue
        rows += 1
        if rows % window == 0:
            whole = (rows, position)
    return whole
