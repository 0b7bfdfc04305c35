"""Classification: a template filled with a row's texts, and a word for each label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..core.formatting import shown
from .base import Example, Task, label_text, labelled, listed, require, require_text
from .template import Template


@dataclass(frozen=True)
class Label:
    """A class: its value in the rows, the word that the model answers, and the meaning of the value."""

    value: int | bool | str
    word: str
    meaning: str = ""

    @property
    def text(self) -> str:
        """The value as text, as in a table of comma-separated values."""
        return label_text(self.value)

    def __str__(self) -> str:
        return f"{self.text} ({self.meaning})" if self.meaning else self.text


class Classification(Task):
    """Rows: the fields of the template as text, without surrounding white space, and the label field."""

    classes: tuple[Label, ...] = ()
    label_field: str = "label"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label.word for label in self.classes)

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self._parsed.fields, self.label_field)

    def prompt(self, values: Mapping[str, str]) -> str:
        """The prompt for these texts of the template's fields."""
        return self._parsed.render(values)

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Names of the fields that a row needs where its label is not known."""
        return self._parsed.fields

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        return replace(self.question(row), target=self._target(row))

    def question(self, row: Mapping[str, Any]) -> Example:
        """The example of a row whose label is not known; its target has no meaning.

        Raises:
            ValueError: a field of the template is missing or no text.
        """
        values = {name: require_text(row, name).strip() for name in self.input_fields}
        return labelled(self.prompt(values), self.labels, 0)

    def known_label(self, row: Mapping[str, Any]) -> int | None:
        """The index of a row's label; None if it has none, or one that is not the task's."""
        try:
            return self._target(row)
        except ValueError:
            return None

    def content_free(self, text: str) -> Example:
        """A content-free prompt, with `text` in every field (Zhao et al. 2021); its target has no meaning."""
        return labelled(self.prompt(dict.fromkeys(self._parsed.fields, text)), self.labels, 0)

    def remarks(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Sentences on labels of rows that are not taken as they stand."""
        labels = [label for row in rows if isinstance(label := row.get(self.label_field), str)]
        spaced = [label for label in labels if label != label.strip()]
        found = []
        if spaced:
            found.append(f"spaces around labels, such as {shown(spaced[0])}, are left out (rows: {len(spaced)})")
        spellings: dict[str, str] = {}
        for label in sorted({label.strip() for label in labels}):
            if (other := spellings.setdefault(label.casefold(), label)) != label:
                found.append(f"the labels {shown(other)} and {shown(label)} differ by capitals alone, and are two")
        return found

    @cached_property
    def _parsed(self) -> Template:
        return Template(self.template)

    def _target(self, row: Mapping[str, Any]) -> int:
        value = require(row, self.label_field)
        # Public test splits withhold their labels (-1); labels in a table are text.
        given = label_text(value, self.label_field)
        for number, label in enumerate(self.classes):
            if given == label.text or (isinstance(label.value, bool) and given.lower() == label.text):
                return number
        known = [str(label) for label in self.classes]
        meant = f"one of {listed(known)}" if len(known) > 12 else f"{', '.join(known[:-1])} or {known[-1]}"
        raise ValueError(f"the {self.label_field} {shown(value)} is not {meant}")
