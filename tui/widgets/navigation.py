"""The line at the top: the screens with their keys, and the machine's memory."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from mlxzo.core.formatting import bytes_of
from mlxzo.core.meter import system_memory

# Mode -> key, letter and name, in the order shown. On a Mac function keys need a second key.
SCREENS = {
    "runs": ("f2", "R", "Runs"),
    "setup": ("f3", "S", "Setup"),
    "monitor": ("f4", "M", "Monitor"),
    "race": ("f5", "C", "Race"),
    "try_it": ("f6", "T", "Try it"),
}


class Tab(Static):
    """One screen; a click opens it."""

    def __init__(self, mode: str, *, active: bool):
        key, letter, name = SCREENS[mode]
        super().__init__(f"{name} [dim]{key.upper()} {letter}[/]", classes="-active" if active else "")
        self._mode = mode
        self.tooltip = f"go to {name} ({key.upper()} or {letter})"

    async def on_click(self) -> None:
        await self.app.run_action(f"go('{self._mode}')")


class Navigation(Horizontal):
    """All screens, the current one marked."""

    def __init__(self, mode: str):
        super().__init__()
        self._mode = mode

    def compose(self) -> ComposeResult:
        yield Static("mlxzo", classes="brand")
        for mode in SCREENS:
            yield Tab(mode, active=mode == self._mode)
        yield Static(classes="machine")

    def on_mount(self) -> None:
        self._show_memory()
        self.set_interval(5, self._show_memory)

    def _show_memory(self) -> None:
        total, free = system_memory()
        # The text never moves: without `layout=False` the whole screen would be laid out again.
        self.query_one(".machine", Static).update(f"{bytes_of(free, total)} free", layout=False)
