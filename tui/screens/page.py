"""What all screens share: the line of places at the top, the keys at the bottom, and help for what has the focus."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from rich.markup import escape
from textual.app import ComposeResult
from textual.css.query import NoMatches
from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

from mlxzo.core.formatting import printable

from ..widgets.keys import Keys
from ..widgets.navigation import Navigation

if TYPE_CHECKING:
    from ..app import MlxzoApp


def title(text: str) -> str:
    """Words for a frame, in which Textual would take brackets for markup."""
    return escape(printable(text))


class Page(Screen[None]):
    """A place of the app. Subclasses set `mode` and `help`, and write `body`."""

    # Each page says what gets the focus: the first field of a page is seldom what its keys are for.
    AUTO_FOCUS = ""
    mode: ClassVar[str]
    help: ClassVar[str]
    app: MlxzoApp

    # What gains and what loses the focus is drawn again by itself; Textual would draw the whole screen beside.
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self) -> None:
        super().__init__()
        self._framed: list[Widget] = []

    def on_mount(self) -> None:
        # A place stays to the end of the app. Looking through it for garbage again and again would hold up keys, a
        # tenth of a second and more each time.
        self.call_after_refresh(gc.freeze)

    def deliver(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Calls a method with the results of a worker thread, on the app's own thread, unless the page has closed.

        A page that closes loses its widgets first, so the method may not find them.
        """

        def call() -> None:
            if self.is_running:
                callback(*arguments)

        with suppress(NoMatches):
            self.app.call_from_thread(call)

    def on_descendant_focus(self) -> None:
        self._mark_frame()

    def _mark_frame(self) -> None:
        """Draws the frame around what has the focus in the colour of focus.

        By styles of its own: `:focus-within` would match all rules again for all that is in the frame, which takes a
        third of a second where that is a form. And only where the frame is another one: it draws the whole screen.
        """
        around = [] if self.focused is None else [node for node in self.focused.ancestors if node.has_class("frame")]
        if around == self._framed:
            return
        colour = self.app.theme_variables["primary"]
        for frame in self._framed:
            for rule in ("border_top", "border_right", "border_bottom", "border_left", "border_title_color"):
                frame.styles.clear_rule(rule)
            # What has lost its rules does not draw itself.
            frame.refresh()
        for frame in around:
            frame.styles.border = ("round", colour)
            frame.styles.border_title_color = colour
        self._framed = around

    def compose(self) -> ComposeResult:
        yield Navigation(self.mode)
        yield from self.body()
        yield Keys()

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError
