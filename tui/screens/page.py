"""What all screens share: the line of places at the top, the keys at the bottom, and help for what has the focus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from ..widgets.keys import Keys
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

    def on_descendant_focus(self) -> None:
        self._mark_frame()

    def on_descendant_blur(self) -> None:
        self._mark_frame()

    def _mark_frame(self) -> None:
        """Draws the frame around what has the focus in the colour of focus.

        By styles of its own: `:focus-within` would match all rules again for all that is in the frame, which takes a
        third of a second where that is a form.
        """
        around = set() if self.focused is None else set(self.focused.ancestors)
        colours = self.app.theme_variables
        for frame in self.query(".frame"):
            if frame in around:
                frame.styles.border = ("round", colours["primary"])
                frame.styles.border_title_color = colours["primary"]
            else:
                frame.styles.clear_rule("border_top")
                for rule in ("border_right", "border_bottom", "border_left", "border_title_color"):
                    frame.styles.clear_rule(rule)

    def compose(self) -> ComposeResult:
        yield Navigation(self.mode)
        yield from self.body()
        yield Keys()

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError
