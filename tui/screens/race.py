"""Runs side by side on shared axes: accuracy against seconds, memory against the cap, and the figures of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Static

from mlxzo.core import events
from mlxzo.core.formatting import format_bytes, format_metric, format_seconds, objective_words, printable
from mlxzo.core.metrics import metric_named
from mlxzo.core.run_history import RunHistory

from ..feed import RunFeed
from ..panels import state_words
from ..throttle import Throttle
from ..widgets.axis_labels import of_metrics, plain, size
from ..widgets.canvas import MARKS, Line, Rule
from ..widgets.chart import Chart
from ..widgets.grid import Column, Grid, Openable
from ..widgets.text import Words
from .page import Page

_LOOK_SECONDS = 0.5
# Steps alone are drawn no more often than that.
_DRAW_SECONDS = 2.0
_STYLES = ("one", "two", "three", "four", "five", "six")
_NOTHING = (
    "No race yet.\n\n"
    "F2  mark two or more runs with the space bar and press c: they are laid over each other here,\n"
    "    live or finished.\n"
    "F3  F8 in Setup starts the same run by MeZO and by backpropagation, one after the other,\n"
    "    under the same memory cap, each with its own learning rate. The same race asked for again\n"
    "    goes on where it stopped."
)


class Race(Page):
    """The runs that the app races."""

    mode = "race"
    help = (
        "Race lays runs over each other, each with a mark and a colour of its own. Time counts from the start of each "
        "run, loading and evaluations included; runs of one race are trained one after the other, so that they do not "
        "share the machine."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "drop", "Take out", tooltip="the run itself stays"),
        Binding("s", "stop", "Stop race", tooltip="ends the run in hand after its step, and starts no other"),
        Binding("f", "maximize", "Full panel"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pace = Throttle(_DRAW_SECONDS)

    def body(self) -> Iterable[Widget]:
        yield Static(_NOTHING, id="nothing", markup=False)
        with Vertical(id="race"):
            yield Words(id="legend")
            with Container(id="race-charts"):
                yield Chart(
                    id="race-accuracy",
                    title="Validation",
                    empty="Lines appear with the first evaluations.",
                    x_name="time",
                    help="The metric on the validation split against the time since each run's start.",
                )
                yield Chart(
                    id="race-loss",
                    title="Training loss, smoothed",
                    empty="Lines appear with the first steps.",
                    y_labels=plain,
                    x_name="time",
                    help="What each run minimises, smoothed, against the time since its start: the training loss, or "
                    "what its option objective says.",
                )
                yield Chart(
                    id="race-memory",
                    title="Memory",
                    empty="Lines appear when a model is loaded.",
                    y_labels=size,
                    y_value=lambda value: format_bytes(int(value)),
                    x_name="time",
                    from_zero=True,
                    help="Memory of each training process against the cap.",
                )
            with Container(id="contestants", classes="frame") as frame:
                frame.border_title = "Contestants"
                yield Openable(
                    (
                        Column("mark", "", 1),
                        Column("name", "run", 0),
                        Column("state", "status", 16),
                        Column("steps", "steps", 9, right=True, from_width=84),
                        Column("time", "time", 12, right=True),
                        Column("zero", "zero-shot", 9, right=True, from_width=84),
                        Column("best", "best", 7, right=True),
                        Column("test", "test", 7, right=True),
                        Column("peak", "peak", 9, right=True),
                        Column("cap", "of cap", 7, right=True, from_width=84),
                    ),
                    self._cell,
                    id="race-table",
                    help="The contestants. `best` is the best validation metric so far, `test` that of the best "
                    "state on the test split at the end. Enter opens the run in the monitor.",
                )

    def on_mount(self) -> None:
        self.set_interval(_LOOK_SECONDS, self._tick)

    def on_screen_resume(self) -> None:
        self._pace.reset()
        self._tick()

    def _tick(self) -> None:
        feeds = self.app.race
        something = bool(feeds)
        self.query_one("#nothing").display = not something
        self.query_one("#race").display = something
        if self.app.screen is not self or not something:
            return
        for feed in feeds:
            feed.poll()
        happened = (
            self._position(),
            *((feed, feed.running, feed.history.phase, len(feed.log.lines), feed.history.paused) for feed in feeds),
        )
        if self._pace.is_due((happened, *(feed.history.version for feed in feeds)), happened):
            self._draw(feeds)
        if self.focused is None:
            self.query_one(Grid).focus()

    def _draw(self, feeds: list[RunFeed]) -> None:
        self.query_one("#legend", Words).show(self._legend(feeds))
        accuracy = self.query_one("#race-accuracy", Chart)
        metrics = {each.evaluation.metric for feed in feeds for each in feed.history.evaluations}
        accuracy.title = "Validation " + " and ".join(sorted(metrics)) if metrics else "Validation"
        of = [metric_named(metric) for metric in metrics]
        accuracy.y_labels = of_metrics(of)
        # Values of several scales share the axis only as numbers.
        accuracy.y_value = of[0].text if len({metric.is_share for metric in of}) == 1 else "{:.3f}".format
        accuracy.show(
            [_accuracy(feed.history, n) for n, feed in enumerate(feeds)], _references(feed.history for feed in feeds)
        )
        loss = self.query_one("#race-loss", Chart)
        minimised = {objective_words(config.objective) for feed in feeds if (config := feed.config) is not None}
        loss.title = (
            "Training loss, smoothed" if minimised <= {"loss"} else f"{' and '.join(sorted(minimised))}, smoothed"
        )
        loss.show(
            [
                _line(n, feed.history.steps["elapsed"], feed.history.steps["smoothed_loss"])
                for n, feed in enumerate(feeds)
            ]
        )
        caps = {feed.history.cap_bytes for feed in feeds} - {None}
        self.query_one("#race-memory", Chart).show(
            [
                _line(n, feed.history.footprints["elapsed"], feed.history.footprints["bytes"])
                for n, feed in enumerate(feeds)
            ],
            [Rule(f"cap {format_bytes(cap)}", cap, "limit", "━", short="cap") for cap in caps],
        )
        self.query_one(Grid).show(feeds)

    def _legend(self, feeds: list[RunFeed]) -> Text:
        text = Text()
        chart = self.query_one("#race-accuracy", Chart)
        for number, feed in enumerate(feeds):
            text.append(f"{_mark(number)} {printable(name_of(feed))}   ", chart.style_of(_style(number)))
        text.append(self._position(), "dim")
        for number, feed in enumerate(feeds):
            if isinstance(failed := feed.history.outcome, events.Failed):
                text.append(f"\n{_mark(number)} ✗ {printable(failed.message)}")
        return text

    def _position(self) -> str:
        """How far the race is that goes on here, in words; '' where none does."""
        racing = self.app.racing
        if racing is None or not racing.running:
            return ""
        return "stopping after the step in hand" if racing.stopping else racing.position()

    def _cell(self, feed: RunFeed, key: str) -> str:
        history = feed.history
        if key == "mark":
            return _mark(self.app.race.index(feed)) if feed in self.app.race else ""
        if key == "name":
            return printable(name_of(feed))
        if key == "state":
            mark, words = state_words(feed)
            return f"{mark} {words}"
        if key == "steps":
            return "-" if history.step is None else f"{history.step.step}/{history.step.steps}"
        if key == "time":
            return format_seconds(history.elapsed)
        if key == "peak":
            return format_bytes(history.most_bytes)
        if key == "cap":
            return "-" if history.cap_bytes is None else f"{100 * history.most_bytes / history.cap_bytes:.0f} %"
        found = {"zero": history.zero_shot.get("validation"), "best": history.best, "test": history.test}[key]
        return "-" if found is None else format_metric(found.metric, found.value)

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.app.open_run(event.item.run)

    def action_drop(self) -> None:
        """Takes the run under the cursor out of the race; the run itself stays."""
        if (feed := self.query_one(Grid).item) is not None:
            self.app.race = [other for other in self.app.race if other is not feed]
            self._pace.reset()

    def action_stop(self) -> None:
        """Ends the race that was started here; F8 in Setup goes on with it."""
        if not self._position():
            self.notify("No race is going on here; a run is stopped in the monitor.", severity="warning")
            return
        again = self.app.racing.stopping
        self.app.racing.stop()
        self.notify("Ending by force" if again else "Stopping after the step in hand; press s again to end it by force")

    def action_maximize(self) -> None:
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None:
            self.maximize(self.focused)


def name_of(feed: RunFeed) -> str:
    """What a run is called beside others: its name as a contestant or of its own, or method, scope and seed."""
    if feed.label:
        return feed.label
    if (config := feed.config) is None:
        return feed.run.id
    return config.name or f"{config.model} {config.method} {config.scope} s{config.seed}"


def _mark(number: int) -> str:
    return MARKS[number % len(MARKS)]


def _style(number: int) -> str:
    return _STYLES[number % len(_STYLES)]


def _line(number: int, x: Sequence[float], y: Sequence[float]) -> Line:
    return Line(_mark(number), np.array(x), np.array(y), _style(number), end=_mark(number))


def _accuracy(history: RunHistory, number: int) -> Line:
    return Line(
        _mark(number),
        np.array([each.elapsed for each in history.validation]),
        # A value that was not finite is None.
        np.array([each.value for each in history.validation], dtype=float),
        _style(number),
        marks=_mark(number),
    )


def _references(histories: Iterable[RunHistory]) -> list[Rule]:
    """The share of the largest class, where all runs agree on it."""
    shares = {(zero.metric, zero.majority) for h in histories if (zero := h.zero_shot.get("validation")) is not None}
    if len(shares) != 1:
        return []
    ((metric, share),) = shares
    return [] if share is None else [Rule(f"majority class {format_metric(metric, share)}", share, short="majority")]
