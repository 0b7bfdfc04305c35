"""What the app remembers from one session to the next: a small file of JSON in the folder of mlxzo.

A file that is missing, damaged or of other make is as none: nothing of what it holds is worth an error.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mlxzo.core.files import mlxzo_home, write_atomic


class Preferences:
    """Named values, each read and written at once."""

    def __init__(self, path: Path | None = None):
        """The file at `path`; None for the user's own."""
        self._path = path or mlxzo_home() / "tui.json"
        self._values: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._values = found if isinstance(found, dict) else {}

    @property
    def theme(self) -> str:
        """The name of a theme; '' for none."""
        found = self._values.get("theme")
        return found if isinstance(found, str) else ""

    @theme.setter
    def theme(self, name: str) -> None:
        self._keep("theme", name)

    @property
    def panels(self) -> dict[str, bool]:
        """Panels of the monitor that were shown or hidden by hand."""
        found = self._values.get("panels")
        return {k: v for k, v in found.items() if isinstance(v, bool)} if isinstance(found, dict) else {}

    @panels.setter
    def panels(self, shown: dict[str, bool]) -> None:
        self._keep("panels", shown)

    def _keep(self, name: str, value: Any) -> None:
        if self._values.get(name) == value:
            return
        self._values[name] = value
        # A full disk or a home that cannot be written is no reason to disturb anybody.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(self._values, indent=2) + "\n")
