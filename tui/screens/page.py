"""Base of the screens: the lines at the top, the keys at the bottom, the frame in focus."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from rich.markup import escape
from textual.app import ComposeResult
from textual.css.query import NoMatches
from textual.dom import DOMNode
from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

from mlxzo.core.formatting import printable

from ..widgets.header import PageHeader, RunLine
from ..widgets.keys import Keys

if TYPE_CHECKING:
    from ..app import MlxzoApp


POLL_SECONDS = 0.5


def title(text: str) -> str:
    """Text for the title of a frame, where Textual would read brackets as markup."""
    return escape(printable(text))


def help_of(widget: DOMNode | None) -> str:
    """The help of a widget, or of the nearest widget around it that has one; '' if none has."""
    while widget is not None and not isinstance(widget, Screen):
        if isinstance(text := getattr(widget, "help", None), str) and text:
            return text
        widget = widget.parent
    return ""


class Page(Screen[None]):
    """A screen of the app. Subclasses set `mode` and `help`, and define `body`."""

    # Each page sets its own focus: its keys seldom belong to its first widget.
    AUTO_FOCUS = ""
    ALLOW_IN_MAXIMIZED_VIEW = "PageHeader, Keys"
    mode: ClassVar[str]
    help: ClassVar[str]
    app: MlxzoApp

    # Widgets draw their own focus; Textual would draw the whole screen as well.
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self) -> None:
        super().__init__()
        self._framed: list[Widget] = []

    def on_mount(self) -> None:
        # A page lives as long as the app: collecting its garbage again and again would delay keys by 0.1 s and more.
        self.call_after_refresh(gc.freeze)
        self.set_interval(POLL_SECONDS, self._tick)

    def on_screen_resume(self) -> None:
        self._tick()

    def _tick(self) -> None:
        """Draws what has changed in the runs, while the page is in view."""
        if self.is_active:
            self.follow()
            feed = self.app.followed(self.mode)
            self.query_one(RunLine).show(feed, "" if feed is None or self.mode == "monitor" else feed.title)

    def follow(self) -> None:
        """Draws the page's own part of it."""

    def offers(self, action: str) -> bool:
        """True if the line of keys shows an action of the page; a key of another one may still say why it does
        nothing."""
        return True

    def deliver(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Calls a method on the app's thread with the results of a worker thread, unless the page has closed."""

        def call() -> None:
            if self.is_running:
                callback(*arguments)

        # A page that closes loses its widgets first.
        with suppress(NoMatches):
            self.app.call_from_thread(call)

    def on_descendant_focus(self) -> None:
        self._mark_frame()

    def _mark_frame(self) -> None:
        """Draws the frame around the focused widget in the colour of focus.

        Inline styles, because `:focus-within` would match all rules again for every widget in the frame: 0.3 s for a
        form. Only if the frame changes, because it draws the whole screen.
        """
        ancestors = [] if self.focused is None else self.focused.ancestors
        around = [node for node in ancestors if isinstance(node, Widget) and node.has_class("frame")]
        if around == self._framed:
            return
        colour = self.app.theme_variables["primary"]
        for frame in self._framed:
            for rule in ("border_top", "border_right", "border_bottom", "border_left", "border_title_color"):
                frame.styles.clear_rule(rule)
            # Clearing rules does not draw the widget.
            frame.refresh()
        for frame in around:
            frame.styles.border = ("round", colour)
            frame.styles.border_title_color = colour
        self._framed = around

    def action_maximize(self) -> None:
        """Shows the focused panel alone, or all again."""
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None:
            self.maximize(self.focused)

    def compose(self) -> ComposeResult:
        yield PageHeader(self.mode)
        yield from self.body()
        yield Keys()

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError
