"""The lines at the top of every screen: all screens with their keys, and the run that goes on."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from ..feed import Replay, RunFeed
from ..run_status import header_text
from ..throttle import Throttle
from .navigation import Navigation

# Least time between two drawings for steps alone; drawing takes time from training.
_STEP_SECONDS = 1.0


class RunLine(Static):
    """The state of one run in a line; hidden without a run."""

    def __init__(self) -> None:
        super().__init__(markup=False)
        self._pace = Throttle(_STEP_SECONDS)
        self._shown: tuple[RunFeed | Replay | None, str] = (None, "")
        self.display = False

    def show(self, feed: RunFeed | Replay | None, name: str = "") -> None:
        """Draws changes of a run: steps at a limited rate, anything else at once."""
        self._shown = feed, name
        self.display = feed is not None
        if feed is None:
            return
        history, width = feed.history, self.app.size.width - 2
        happened = (feed, width, feed.running, feed.request, history.phase, history.paused, len(feed.log.lines))
        if self._pace.is_due((happened, history.version), happened):
            self.update(header_text(feed, width, name), layout=False)

    def on_resize(self) -> None:
        # Not with the next step: until then the line would be cut.
        self.show(*self._shown)


class PageHeader(Vertical):
    """Stays in view with a panel in full size too."""

    def __init__(self, mode: str):
        super().__init__()
        self._mode = mode

    def compose(self) -> ComposeResult:
        yield Navigation(self._mode)
        yield RunLine()
