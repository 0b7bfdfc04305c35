"""What all screens share: the line of places at the top, the keys at the bottom, and help for what has the focus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from ..widgets.navigation import Navigation

if TYPE_CHECKING:
    from ..app import MlxzoApp


class Page(Screen[None]):
    """A place of the app. Subclasses set `mode` and `help`, and write `body`."""

    # Each page says what gets the focus: the first field of a page is seldom what its keys are for.
    AUTO_FOCUS = ""
    mode: ClassVar[str]
    help: ClassVar[str]
    app: MlxzoApp

    def compose(self) -> ComposeResult:
        yield Navigation(self.mode)
        yield from self.body()
        yield Footer(show_command_palette=False)

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError
