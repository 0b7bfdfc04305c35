"""The monitor of one run, live or past: loss, metric, memory, speed, facts, samples and events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import Static

from mlxzo.core import events
from mlxzo.core.errors import Interrupted, MlxzoError
from mlxzo.core.formatting import printable
from mlxzo.core.run_directory import BEST_STATE, RunDirectory
from mlxzo.runtime import control

from ..feed import Replay, RunFeed
from ..panels import CHARTS, LOSS_EMPTY, LOSS_HELP, facts_rows, log_text, samples_panel
from ..run_status import status_rows
from ..throttle import Throttle
from ..widgets.axis_labels import BYTES, PERCENT, RATE
from ..widgets.chart import Chart
from ..widgets.text import LiveText, Panel, pairs_table
from .dialogs import error_dialog
from .page import Page, title

# Least time between two drawings for steps alone; everything else is drawn at once. Drawing takes time from training.
_STATUS_SECONDS, _CHART_SECONDS, _FACTS_SECONDS = 2.0, 2.0, 5.0
# In the order of their digits.
PANELS = ("loss", "accuracy", "memory", "speed", "facts", "samples", "log")
_NO_RUN = (
    "No run is open.\n\n"
    "F2  lists the runs in this folder: choose one, live or past, and press Enter.\n"
    "F3  sets up a new one.\n\n"
    "Runs started in a shell (`mlxzo train`) can be watched as well.\n"
    "`mlxzo tui --demo` plays a recorded run."
)


class Monitor(Page):
    """The run that is open in the app."""

    mode = "monitor"
    help = (
        "Monitor shows one run, live or past, whoever started it. Closing the app does not end a run. Digits show and "
        "hide the panels. Charts zoom with + and -, pan with the arrow keys, and show values under the mouse pointer "
        "or with , and ."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p,space", "pause", "Pause", key_display="p", tooltip="pauses after the current step, or continues"),
        Binding("e", "evaluate", "Evaluate", tooltip="evaluates after the current step"),
        Binding("s", "stop", "Stop", tooltip="ends the run after the current step and saves; again, by force"),
        Binding("u", "resume", "Resume", tooltip="resumes an interrupted run where it stopped"),
        Binding("x", "export", "Export", tooltip="writes the best checkpoint in another form"),
        Binding("f", "maximize", "Full panel", tooltip="shows the focused panel alone; f or escape restores"),
        *(Binding(str(n), f"panel({n})", f"Show or hide {name}", show=False) for n, name in enumerate(PANELS, 1)),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._chosen = self.app.preferences.panels
        self._status_pace, self._chart_pace, self._facts_pace = (
            Throttle(seconds) for seconds in (_STATUS_SECONDS, _CHART_SECONDS, _FACTS_SECONDS)
        )
        self._drawn: tuple | None = None
        self._reported: object = None

    def body(self) -> Iterable[Widget]:
        yield LiveText(id="status")
        yield Static(_NO_RUN, id="nothing", markup=False)
        with Container(id="panels"):
            yield Chart(
                id="loss",
                title="1 Loss",
                empty=LOSS_EMPTY,
                help=LOSS_HELP,
            )
            yield Chart(
                id="accuracy",
                title="2 Validation",
                empty="The zero-shot evaluation comes before training, the next after `eval_every` steps.",
                scale=PERCENT,
                help="The task's metric on the validation split at each evaluation. ★ marks the best so far, which is "
                "kept as a checkpoint. Shaded: one standard error. Dashed: the model before training, and the majority "
                "class as every answer.",
            )
            yield Chart(
                id="memory",
                title="3 Memory",
                empty="Memory appears when the model is loaded.",
                scale=BYTES,
                x_name="time",
                from_zero=True,
                help="Memory of the training process over time, and its cap if there is one. Vertical lines: the "
                "beginning of each phase.",
            )
            yield Chart(
                id="speed",
                title="4 Speed, steps/s",
                empty="Steps per second appear with the first step.",
                scale=RATE,
                from_zero=True,
                help="Steps per second, the mean of the last 50 steps, evaluations excluded.",
            )
            yield Panel(id="facts", title="5 Run", help="Model, task and data of the run, and its results so far.")
            yield Panel(
                id="samples",
                title="6 Samples",
                help="The end of a few validation prompts, the model's answer before training and its answer now, each "
                "with its probability among the candidates. ✓ right, ✗ wrong. With --estimator es also the end of a "
                "few training prompts, with the answers of the step's best and median member.",
            )
            yield Panel(id="log", title="7 Events", follows=True, help="Events, oldest first; steps are in the charts.")

    def on_screen_resume(self) -> None:
        self._arrange()

    def on_resize(self) -> None:
        self._arrange()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offers the keys that have an effect on the open run."""
        feed = self.app.current
        if action in ("evaluate", "stop"):
            return isinstance(feed, RunFeed) and feed.running
        if action == "resume":
            return isinstance(feed, RunFeed) and feed.resumable
        if action == "export":
            return isinstance(feed, RunFeed) and (feed.run.path / BEST_STATE).exists()
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

    def _arrange(self) -> None:
        """Shows the panels that the user chose, or by default those that fit."""
        shown = []
        usual = _default_panels(*self.app.size)
        for name in PANELS:
            panel = self.query_one(f"#{name}")
            panel.display = self._chosen.get(name, name in usual)
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
        # The next tick draws everything.
        for pace in (self._status_pace, self._chart_pace, self._facts_pace):
            pace.reset()
        self._drawn = None

    def follow(self) -> None:
        feed = self.app.current
        self.query_one("#nothing").display = feed is None
        self.query_one("#status").display = self.query_one("#panels").display = feed is not None
        if feed is None:
            # A hidden panel must not take keys.
            self.set_focus(None)
        if feed is None:
            return
        feed.poll()
        self._draw(feed)
        history = feed.history
        if isinstance(failed := history.outcome, events.Failed) and self._reported is not failed:
            self._reported = failed
            if failed.kind != Interrupted.kind and isinstance(feed, RunFeed) and feed.supervision is not None:
                self.app.push_screen(
                    error_dialog(failed, resume="Resume", again="Set up again"),
                    lambda choice: self._after_failure(choice, feed.run),
                )

    def _after_failure(self, choice: str | None, run: RunDirectory) -> None:
        if choice == "resume":
            self.app.resume_run(run)
        elif choice == "again":
            self.app.set_up_again(run)

    def _draw(self, feed: RunFeed | Replay) -> None:
        """Draws changes: steps at a limited rate, anything else at once."""
        history = feed.history
        state = (feed, history, history.version, feed.running, feed.request)
        happened = (
            *(feed, history, feed.running, feed.request, history.phase, history.paused),
            *(len(feed.log.lines), history.samples, history.written),
        )
        if self._status_pace.is_due(state, happened):
            status, rows = self.query_one("#status", LiveText), status_rows(feed, self.app.size.width - 4)
            status.border_title = title(feed.title)
            named = any(name for name, _ in rows)
            status.show(pairs_table(rows) if named else Text(printable(rows[0][1]), "dim"), key=tuple(rows))
        if self._chart_pace.is_due(state, happened):
            for name, draw in CHARTS.items():
                if (chart := self.query_one(f"#{name}", Chart)).display:
                    draw(chart, feed)
        if happened != self._drawn:
            self._drawn = happened
            self.refresh_bindings()
            self.query_one("#samples", Panel).show(
                samples_panel(history), key=(history, history.samples, history.written)
            )
            self.query_one("#log", Panel).show(log_text(feed.log))
        if self._facts_pace.is_due(state, happened):
            rows = facts_rows(feed)
            self.query_one("#facts", Panel).show(pairs_table(rows), key=tuple(rows))

    def action_pause(self) -> None:
        feed = self.app.current
        if isinstance(feed, Replay):
            feed.paused = not feed.paused
            self._tick()
        elif feed is not None:
            paused = feed.history.paused or feed.request == "pause"
            self._send(feed, "continue" if paused else "pause", "Pausing after the current step")
            self._tick()

    def action_evaluate(self) -> None:
        feed = self.app.current
        if isinstance(feed, RunFeed):
            self._send(feed, "evaluate", "Evaluating after the current step")

    def action_export(self) -> None:
        if isinstance(feed := self.app.current, RunFeed):
            self.app.open_export(feed.run)

    def action_resume(self) -> None:
        if isinstance(feed := self.app.current, RunFeed):
            self.app.resume_run(feed.run)

    def action_stop(self) -> None:
        """Asks the run to end; where it has been asked, by this app or another, ends it by force."""
        feed = self.app.current
        if not isinstance(feed, RunFeed):
            return
        if feed.request == "stop":
            self.run_worker(lambda: self._kill(feed), thread=True)
        else:
            self._send(feed, "stop", "Stopping after the current step; press s again to end it by force")
        self._tick()

    def _kill(self, feed: RunFeed) -> None:
        """Runs in a thread, since it waits for the end of the process."""
        try:
            control.kill(feed.run)
        except MlxzoError as error:
            self.deliver(self._warn, error)

    def _warn(self, problem: MlxzoError) -> None:
        self.notify(f"{problem.message}.", severity="warning")

    def _send(self, feed: RunFeed, command: str, message: str) -> bool:
        """Sends a command to the run, whoever started it; returns False, and shows the error, if it could not."""
        try:
            control.send(feed.run, command)
        except MlxzoError as problem:
            self._warn(problem)
            return False
        self.notify("Continuing" if command == "continue" else message)
        return True


def _default_panels(width: int, height: int) -> Sequence[str]:
    """The panels that fit into a terminal of this size."""
    if height < 34:
        return ("loss", "accuracy", "memory", "facts")
    return PANELS if width >= 160 or height >= 50 else ("loss", "accuracy", "memory", "facts", "samples", "log")
