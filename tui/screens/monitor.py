"""Watch one run: loss, accuracy, memory, speed, facts, samples and the log of what happened, live or afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import Static

from mlxzo.core import events
from mlxzo.core.errors import Interrupted, MlxzoError
from mlxzo.core.formatting import format_bytes
from mlxzo.core.run_directory import RunDirectory
from mlxzo.runtime import control

from ..feed import Replay, RunFeed
from ..panels import (
    draw_accuracy,
    draw_loss,
    draw_memory,
    draw_speed,
    facts_rows,
    facts_table,
    log_text,
    samples_text,
    status_text,
)
from ..throttle import Throttle
from ..widgets.axis_labels import plain, size
from ..widgets.chart import Chart
from ..widgets.text import Panel
from .dialogs import error_dialog
from .page import Page, title

# How often the run's file is looked at; what a key does is shown without waiting for it.
_LOOK_SECONDS = 0.5
# What comes at once where something happens is drawn no more often than that for steps alone: a processor that trains
# is not to spend itself on pictures of it.
_STATUS_SECONDS, _CHART_SECONDS, _FACTS_SECONDS = 1.0, 2.0, 5.0
# In the order of their digits.
PANELS = ("loss", "accuracy", "memory", "speed", "facts", "samples", "log")
_NO_RUN = (
    "No run is open.\n\n"
    "F2  lists the runs in this folder: choose one and press Enter to watch it,\n"
    "    live or as it went.\n"
    "F3  sets up a new one.\n\n"
    "Runs started by script (`mlxzo train`) can be watched here as well.\n"
    "`mlxzo tui --demo` plays a recorded run."
)


class Monitor(Page):
    """The run that is open in the app."""

    mode = "monitor"
    help = (
        "Monitor shows one run as its events come: live, whoever started it, or as it went. Closing the app does not "
        "end a run. Digits show and hide the panels; charts zoom with + and -, move with the arrow keys, and give "
        "their values under the mouse pointer or with , and ."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p,space", "pause", "Pause", key_display="p", tooltip="pauses after the step in hand, or goes on"),
        Binding("e", "evaluate", "Evaluate", tooltip="measures the weights as they are, after the step in hand"),
        Binding("s", "stop", "Stop", tooltip="ends the run after the step in hand and saves; again, by force"),
        Binding("x", "export", "Export", tooltip="makes an adapter, a whole model or a journal of the best state"),
        Binding("f", "maximize", "Full panel", tooltip="shows the focused panel alone; escape restores"),
        *(Binding(str(n), f"panel({n})", f"Show or hide {name}", show=False) for n, name in enumerate(PANELS, 1)),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._chosen = self.app.preferences.panels
        self._status_pace, self._chart_pace = Throttle(_STATUS_SECONDS), Throttle(_CHART_SECONDS)
        self._facts_pace = Throttle(_FACTS_SECONDS)
        self._happened: tuple | None = None
        self._told: object = None
        self._stopping: set[RunFeed] = set()

    def body(self) -> Iterable[Widget]:
        yield Static(id="status", markup=False)
        yield Static(_NO_RUN, id="nothing", markup=False)
        with Container(id="panels"):
            yield Chart(
                id="loss",
                title="1 Loss",
                empty="The training loss appears with the first step.",
                y_labels=plain,
                help="What the run minimises, step by step: the training loss, or what its option objective says, such "
                "as 1 - accuracy, the share of wrong answers. The faint band is every step, the bright line the "
                "smoothed value (each step counts 2 %). A zeroth-order run is noisy: judge it by the smoothed line and "
                "by accuracy.",
            )
            yield Chart(
                id="accuracy",
                title="2 Validation",
                empty="The zero-shot evaluation comes before training starts, the next after `eval_every` steps.",
                help="The task's metric on the validation split at each evaluation. ★ is the best so far, whose state "
                "is saved. The dashed lines are the model before training and always answering the largest class.",
            )
            yield Chart(
                id="memory",
                title="3 Memory",
                empty="Memory appears when the model is loaded.",
                y_labels=size,
                y_value=lambda value: format_bytes(int(value)),
                x_name="time",
                from_zero=True,
                help="Memory of the training process over time, against the cap if there is one. Upright lines are "
                "where the phases of the run begin.",
            )
            yield Chart(
                id="speed",
                title="4 Speed",
                empty="Steps a second appear with the first step.",
                y_labels=plain,
                y_value=lambda value: f"{value:.2f}",
                from_zero=True,
                help="Steps a second, the mean of the last 50 steps; evaluations are left out.",
            )
            yield Panel(id="facts", title="5 Run", help="What is trained, on what, and what came of it so far.")
            yield Panel(
                id="samples",
                title="6 Samples",
                help="The end of a few validation prompts, what the model answered before training, and what it "
                "answers now, each with its share of the probability among the answers. ✓ right, ✗ wrong.",
            )
            yield Panel(id="log", title="7 Events", help="What happened, oldest first; steps are in the charts.")

    def on_mount(self) -> None:
        self.set_interval(_LOOK_SECONDS, self._tick)

    def on_screen_resume(self) -> None:
        self._arrange()
        self._tick()

    def on_resize(self) -> None:
        self._arrange()

    # What is shown

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys are offered where they can do something."""
        feed = self.app.current
        if action in ("evaluate", "stop", "export"):
            return isinstance(feed, RunFeed) and (feed.running or action == "export")
        if action == "pause":
            return feed is not None and feed.running
        return feed is not None or action not in ("maximize", "panel")

    def action_panel(self, number: int) -> None:
        """Shows or hides a panel."""
        name = PANELS[number - 1]
        self._chosen = {**self._chosen, name: not self.query_one(f"#{name}").display}
        self.app.preferences.panels = self._chosen
        self._arrange()
        self.call_after_refresh(self._tick)

    def action_maximize(self) -> None:
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None:
            self.maximize(self.focused)

    def _arrange(self) -> None:
        """Shows the panels that were asked for, and where nobody asked, those that the size has room for."""
        shown = []
        for name in PANELS:
            panel = self.query_one(f"#{name}")
            panel.display = self._chosen.get(name, name in self._unasked())
            panel.styles.column_span = 1
            if panel.display:
                shown.append(panel)
        across = min(len(shown), 3 if self.app.size.width >= 160 else 2) or 1
        container = self.query_one("#panels")
        container.styles.grid_size_columns = across
        if shown and len(shown) % across:
            # The last panel fills its row.
            shown[-1].styles.column_span = across - len(shown) % across + 1
        if self.focused is None and shown and self.app.current is not None:
            shown[0].focus()
        self._draw_soon()

    def _draw_soon(self) -> None:
        """Has the next look at the run draw everything."""
        for pace in (self._status_pace, self._chart_pace, self._facts_pace):
            pace.reset()
        self._happened = None

    def _unasked(self) -> tuple[str, ...]:
        """The panels that this size has room for."""
        width, height = self.app.size
        if height < 34:
            return ("loss", "accuracy", "memory", "facts")
        return PANELS if width >= 160 or height >= 50 else ("loss", "accuracy", "memory", "facts", "samples", "log")

    def _tick(self) -> None:
        feed = self.app.current
        self.query_one("#nothing").display = feed is None
        self.query_one("#status").display = self.query_one("#panels").display = feed is not None
        if feed is None:
            # A key is for nothing that is not in view.
            self.set_focus(None)
        if feed is None or self.app.screen is not self:
            return
        feed.poll()
        self._draw(feed)
        history = feed.history
        if isinstance(history.outcome, events.Failed) and self._told is not history.outcome:
            self._told = history.outcome
            if history.outcome.kind != Interrupted.kind and isinstance(feed, RunFeed) and feed.supervision is not None:
                self.app.push_screen(
                    error_dialog(history.outcome, resume="Resume", again="Set up again"),
                    lambda choice: self._after_failure(choice, feed.run),
                )

    def _after_failure(self, choice: str | None, run: RunDirectory) -> None:
        if choice == "resume":
            self.app.resume_run(run)
        elif choice == "again":
            self.app.set_up_again(run)

    def _draw(self, feed: RunFeed | Replay) -> None:
        """Draws what is new: steps at the pace of the screen, anything else at once."""
        history = feed.history
        state = (feed, history, history.version, feed.running)
        happened = (feed, history, feed.running, history.phase, history.paused, len(feed.log.lines), history.samples)
        if self._status_pace.is_due(state, happened):
            status = self.query_one("#status", Static)
            status.border_title = title(feed.title)
            status.update(status_text(feed, self.app.size.width - 4), layout=False)
        if self._chart_pace.is_due(state, happened):
            self._draw_charts(feed)
        if happened != self._happened:
            self._happened = happened
            self.refresh_bindings()
            self.query_one("#samples", Panel).show(samples_text(history))
            self.query_one("#log", Panel).show(log_text(feed.log), to_end=True)
        if self._facts_pace.is_due(state, happened):
            rows = facts_rows(feed)
            self.query_one("#facts", Panel).show(facts_table(rows), key=tuple(rows))

    def _draw_charts(self, feed: RunFeed | Replay) -> None:
        history = feed.history
        if (loss := self.query_one("#loss", Chart)).display:
            draw_loss(loss, history, feed.config)
        for name, draw in (("accuracy", draw_accuracy), ("memory", draw_memory), ("speed", draw_speed)):
            if (chart := self.query_one(f"#{name}", Chart)).display:
                draw(chart, history)

    # What is done to the run

    def action_pause(self) -> None:
        feed = self.app.current
        if isinstance(feed, Replay):
            feed.paused = not feed.paused
            self._status_pace.reset()
            self._tick()
        elif feed is not None:
            self._send(feed, "continue" if feed.history.paused else "pause", "Pausing after the step in hand")

    def action_evaluate(self) -> None:
        feed = self.app.current
        if isinstance(feed, RunFeed):
            self._send(feed, "evaluate", "Evaluating after the step in hand")

    def action_export(self) -> None:
        if isinstance(feed := self.app.current, RunFeed):
            self.app.open_export(feed.run)

    def action_stop(self) -> None:
        feed = self.app.current
        if not isinstance(feed, RunFeed):
            return
        if feed in self._stopping and feed.supervision is not None:
            # The first signal asks as the command did, the second ends it.
            feed.supervision.stop()
            feed.supervision.stop()
        elif self._send(feed, "stop", "Stopping after the step in hand; press s again to end it by force"):
            self._stopping.add(feed)

    def _send(self, feed: RunFeed, command: str, said: str) -> bool:
        """Steers the run, whoever started it; whether it could be told."""
        try:
            control.send(feed.run, command)
        except MlxzoError as problem:
            self.notify(f"{problem.message}.", severity="warning")
            return False
        self.notify("Going on" if command == "continue" else said)
        return True
