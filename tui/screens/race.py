"""Several runs on shared axes: metric, loss and memory over time, and a table of their figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from rich.style import StyleType
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Static

from mlxzo.core import events
from mlxzo.core.formatting import (
    format_bytes,
    format_metric,
    format_seconds,
    objective_words,
    printable,
    step_counts_text,
)
from mlxzo.core.run_history import Columns, RunHistory

from ..feed import RunFeed
from ..panels import column_line, least_span, mean_line, metric_line
from ..run_status import state_words
from ..throttle import Throttle
from ..widgets.axis_labels import BYTES, PERCENT, metric_scale
from ..widgets.canvas import MARKS, Rule
from ..widgets.chart import Chart
from ..widgets.grid import Column, Grid, Openable
from ..widgets.text import LiveText
from .dialogs import Choice
from .page import Page

# Least time between two drawings for steps alone.
_DRAW_SECONDS = 2.0
_STYLES = ("one", "two", "three", "four", "five", "six")
_NOTHING = (
    "No race yet.\n\n"
    "F2  mark two or more runs with the space bar and press c: they are\n"
    "    compared here, live or past.\n"
    "F3  F8 in Setup trains the same run by MeZO and by backpropagation, one\n"
    "    after the other, under the same memory cap, each with its own\n"
    "    learning rate. Started again, the same race resumes where it stopped."
)


class Race(Page):
    """The runs of the app's race."""

    mode = "race"
    help = (
        "Race compares runs on shared axes, each with its own mark and colour. Time is that of steps and of "
        "evaluations on validation, from the first step on, as a limit of minutes counts it: loading, zero-shot and "
        "pauses take none. The runs of one race are trained one after the other, so that they do not share the machine."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "drop", "Remove", tooltip="removes the run from the race; its files stay"),
        Binding("s", "stop", "Stop race", tooltip="ends the current run after its step and starts no other"),
        Binding("f", "maximize", "Full panel", tooltip="shows the focused panel alone; f or escape restores"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pace = Throttle(_DRAW_SECONDS)

    def body(self) -> Iterable[Widget]:
        yield Static(_NOTHING, id="nothing", markup=False)
        with Vertical(id="race"):
            yield LiveText(id="legend")
            with Container(id="race-charts"):
                yield Chart(
                    id="race-accuracy",
                    title="Validation",
                    empty="Curves appear with the first evaluations.",
                    scale=PERCENT,
                    x_name="time",
                    help="The metric on the validation split over the time of training.",
                )
                yield Chart(
                    id="race-loss",
                    title="Training loss, mean",
                    empty="Curves appear with the first steps.",
                    x_name="time",
                    help="The objective of each run over the time of training, each value the mean of the last steps, "
                    "a twentieth of those so far: the training loss, or another one by the option objective.",
                )
                yield Chart(
                    id="race-memory",
                    title="Memory",
                    empty="Curves appear when a model is loaded.",
                    scale=BYTES,
                    x_name="time",
                    from_zero=True,
                    help="Memory of each training process, and the cap.",
                )
            with Container(id="contestants", classes="frame") as frame:
                frame.border_title = "Contestants"
                yield Openable(
                    (
                        Column("mark", "", 1),
                        Column("name", "run", 0),
                        Column("state", "status", 16),
                        Column("steps", "steps", 9, right=True, from_width=84),
                        Column("time", "trained", 12, right=True),
                        Column("zero", "zero-shot", 9, right=True, from_width=84),
                        Column("best", "best", 7, right=True),
                        Column("test", "test", 7, right=True),
                        Column("peak", "peak", 9, right=True),
                        Column("cap", "of cap", 7, right=True, from_width=84),
                    ),
                    self._cell,
                    id="race-table",
                    help="The contestants. `best`: the best validation metric so far. `test`: the metric of the best "
                    "checkpoint on the test split. Enter opens the run in the monitor.",
                )

    def on_screen_resume(self) -> None:
        self._pace.reset()

    def follow(self) -> None:
        feeds = self.app.race
        self.query_one("#nothing").display = not feeds
        self.query_one("#race").display = bool(feeds)
        if not feeds:
            return
        for feed in feeds:
            feed.poll()
        happened = (
            self._position(),
            *((feed, feed.running, feed.history.phase, len(feed.log.lines), feed.history.paused) for feed in feeds),
        )
        if self._pace.is_due((happened, *(feed.history.version for feed in feeds)), happened):
            self._draw(feeds)
            self.refresh_bindings()
        if self.focused is None:
            self.query_one(Grid).focus()

    def _draw(self, feeds: list[RunFeed]) -> None:
        histories = [feed.history for feed in feeds]
        self.query_one("#legend", LiveText).show(self._legend(feeds))
        accuracy = self.query_one("#race-accuracy", Chart)
        metrics = sorted({each.evaluation.metric for history in histories for each in history.evaluations})
        accuracy.title = f"Validation {' and '.join(metrics)}".rstrip()
        accuracy.scale, accuracy.least_span = metric_scale(*metrics), least_span(*metrics)
        lines = [
            metric_line(_mark(n), found, [each.seconds for each in found], _style(n), _mark(n))
            for n, found in enumerate(history.validation for history in histories)
        ]
        accuracy.show(lines, _references(histories))
        loss = self.query_one("#race-loss", Chart)
        objectives = {objective_words(config.objective) for feed in feeds if (config := feed.config) is not None}
        loss.title = f"{'Training loss' if objectives <= {'loss'} else ' and '.join(sorted(objectives))}, mean"
        loss.show(
            [mean_line(_mark(n), history, "seconds", _style(n), end=_mark(n)) for n, history in enumerate(histories)]
        )
        caps = {cap for history in histories if (cap := history.cap_bytes) is not None}
        self.query_one("#race-memory", Chart).show(
            [
                column_line(_mark(n), _of_training(history), "seconds", "bytes", _style(n), end=_mark(n))
                for n, history in enumerate(histories)
            ],
            [Rule(f"cap {format_bytes(cap)}", cap, "limit", "━", short="cap") for cap in caps],
        )
        self.query_one(Grid).show(feeds)

    def _legend(self, feeds: list[RunFeed]) -> Text:
        chart, width = self.query_one("#race-accuracy", Chart), self.app.size.width - 4
        entries: list[tuple[str, StyleType]] = [
            (f"{_mark(n)} {printable(name_of(feed))}", chart.style_of(_style(n))) for n, feed in enumerate(feeds)
        ]
        text = Text("\n").join(_packed([*entries, (self._position(), "dim")], width))
        for number, feed in enumerate(feeds):
            if isinstance(failed := feed.history.outcome, events.Failed):
                text.append(f"\n{_mark(number)} ✗ {printable(failed.message)}")
        return text

    def _position(self) -> str:
        """The progress of the race that this app runs, in words; '' if there is none."""
        if (race := self.app.running_race) is None:
            return ""
        return "stopping after the current step" if race.stopping else race.position()

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
            step = history.step
            return "-" if step is None else step_counts_text(step.step, None if step.may_end_early else step.steps)
        if key == "time":
            return format_seconds(history.seconds)
        if key == "peak":
            return format_bytes(history.most_bytes)
        if key == "cap":
            return "-" if history.cap_bytes is None else f"{100 * history.most_bytes / history.cap_bytes:.0f} %"
        found = {"zero": history.zero_shot.get("validation"), "best": history.best, "test": history.test}[key]
        return "-" if found is None else format_metric(found.metric, found.value)

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        if isinstance(event.item, RunFeed):
            self.app.open_run(event.item.run)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offers the keys that have an effect."""
        if action == "stop":
            return self.app.running_race is not None
        return bool(self.app.race) or action not in ("drop", "maximize")

    def action_drop(self) -> None:
        """Removes the run under the cursor from the race; its files stay. Asks while it goes on."""
        feed = self.query_one(Grid).item
        if not isinstance(feed, RunFeed):
            return
        if not feed.running:
            self._drop(feed)
            return
        self.app.push_screen(
            Choice(
                "Remove a run that goes on",
                f"{name_of(feed)} is running. Removed from the race, it goes on; Runs lists it.",
                {"keep": "Keep it", "remove": "Remove it"},
            ),
            lambda choice: self._drop(feed) if choice == "remove" else None,
        )

    def _drop(self, feed: RunFeed) -> None:
        self.app.race = [other for other in self.app.race if other is not feed]
        self._pace.reset()
        self._tick()

    def action_stop(self) -> None:
        """Ends the race that this app runs; F8 in Setup resumes it."""
        if (race := self.app.running_race) is None:
            return
        again = race.stopping
        race.stop()
        self.notify("Ending by force" if again else "Stopping after the current step; press s again to end it by force")


def name_of(feed: RunFeed) -> str:
    """A name for a run among others: as a contestant, its own, or its model, method, scope and seed."""
    if feed.label:
        return feed.label
    if (config := feed.config) is None:
        return feed.run.id
    return config.name or f"{config.model} {config.method} {config.scope} s{config.seed}"


def _packed(entries: Iterable[tuple[str, StyleType]], width: int) -> list[Text]:
    """Entries in lines of a width, none of them broken; one that is longer than a line ends with an ellipsis."""
    lines: list[Text] = []
    for words, style in entries:
        if not words:
            continue
        entry = Text(words, style)
        entry.truncate(width, overflow="ellipsis")
        if lines and lines[-1].cell_len + 3 + entry.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "   ", entry)
        else:
            lines.append(entry)
    return lines


def _mark(number: int) -> str:
    return MARKS[number % len(MARKS)]


def _style(number: int) -> str:
    return _STYLES[number % len(_STYLES)]


def _of_training(history: RunHistory) -> Columns:
    """The samples of the footprint since training began."""
    began = min((at for phase, at in history.phases if phase in ("cache", "train")), default=math.inf)
    found = Columns("seconds", "bytes")
    columns = (history.footprints[name] for name in ("elapsed", "seconds", "bytes"))
    for elapsed, seconds, count in zip(*columns, strict=True):
        if elapsed >= began:
            found.append(seconds, count)
    return found


def _references(histories: Iterable[RunHistory]) -> list[Rule]:
    """The share of the majority class, if all runs have the same."""
    shares = {(zero.metric, zero.majority) for h in histories if (zero := h.zero_shot.get("validation")) is not None}
    if len(shares) != 1:
        return []
    ((metric, share),) = shares
    return [] if share is None else [Rule(f"majority class {format_metric(metric, share)}", share, short="majority")]
