"""The rows of one data file as they are read: what can be used, the problems of the rest, and remarks on the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .base import Example, Origin


@dataclass
class RowFile:
    """The objects of a file by number, and the problems of the other lines.

    Attributes:
        remarks: sentences on how the file was read, where it is not plain.
        unit: what the numbers count, lines or rows.
    """

    path: Path
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unit: str = "line"

    def located(self) -> list[tuple[Origin, str]]:
        """The problems with the places they are about."""
        return [(Origin(self.path, number, self.unit), problem) for number, problem in self.problems]

    def examples(self, make: Callable[[Mapping[str, Any]], Example], *, keep_fields: bool = False) -> list[Example]:
        """The examples of the rows, in the order of the file; rows that have none are added to the problems.

        Args:
            make: a task's `example_from_row`; its ValueError is the problem of that row.
            keep_fields: the examples keep the fields of their rows.
        """
        found = []
        for number, row in self.rows:
            try:
                origin, fields = Origin(self.path, number, self.unit), row if keep_fields else {}
                found.append(replace(make(row), origin=origin, fields=fields))
            except ValueError as error:
                self.problems.append((number, str(error)))
        return found
