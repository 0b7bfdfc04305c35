"""Prompt templates: `{field}` stands for a row's field, `{{` and `}}` for braces; there is no other syntax.

`str.format` would let a template from a file reach attributes (`{text.__class__}`); this cannot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PART = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}]*)\}|(?P<stray>[{}])")
_FIELD = re.compile(r"[^\W\d][\w-]*")


class Template:
    """A parsed template.

    Raises:
        ValueError: one sentence with every unmatched brace and every name that is no plain field name (letters, digits,
            `_` and `-`, starting with a letter or `_`).
    """

    def __init__(self, text: str):
        self.text = text
        self._parts: list[tuple[bool, str]] = []
        problems: list[str] = []
        position = 0
        for match in _PART.finditer(text):
            self._parts.append((False, text[position : match.start()]))
            position = match.end()
            name, stray = match["field"], match["stray"]
            if stray:
                problems.append(f"a single {stray} at character {match.start() + 1} (write {stray * 2} for a brace)")
            elif name is None:
                self._parts.append((False, match[0][0]))
            elif not _FIELD.fullmatch(name):
                problems.append(f"{match[0]} is not a plain field name")
            else:
                self._parts.append((True, name))
        self._parts.append((False, text[position:]))
        if problems:
            raise ValueError("; ".join(problems))
        self.fields = tuple(dict.fromkeys(part for is_field, part in self._parts if is_field))
        """Names of the fields, in order of first use."""

    def render(self, values: Mapping[str, str]) -> str:
        """The text with every field filled in; braces in the values have no meaning."""
        return "".join(values[part] if is_field else part for is_field, part in self._parts)
