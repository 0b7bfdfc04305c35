"""Preferences that persist between sessions: a small JSON file in mlxzo's folder.

A missing or damaged file counts as empty: no preference is worth an error.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mlxzo.core.files import mlxzo_home, write_atomic
from mlxzo.core.parsing import CONTENT_ERRORS, read_json


class Preferences:
    """The theme and the panels; a change is written at once."""

    def __init__(self, path: Path | None = None):
        """The file at `path`; None for the user's own."""
        self._path = path or mlxzo_home() / "tui.json"
        self._values: dict[str, Any] = {}
        with contextlib.suppress(OSError, *CONTENT_ERRORS):
            found = read_json(self._path)
            self._values = found if isinstance(found, dict) else {}

    @property
    def theme(self) -> str:
        """The name of the theme; '' for the default."""
        found = self._values.get("theme")
        return found if isinstance(found, str) else ""

    @theme.setter
    def theme(self, name: str) -> None:
        self._save("theme", name)

    @property
    def panels(self) -> dict[str, bool]:
        """Panels of the monitor that the user showed or hid."""
        found = self._values.get("panels")
        return {k: v for k, v in found.items() if isinstance(v, bool)} if isinstance(found, dict) else {}

    @panels.setter
    def panels(self, shown: dict[str, bool]) -> None:
        self._save("panels", shown)

    def _save(self, name: str, value: Any) -> None:
        if self._values.get(name) == value:
            return
        self._values[name] = value
        # A full disk or a read-only home must not interrupt the user.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(self._values, indent=2) + "\n")
