"""Watch one run: loss, accuracy, memory, speed, facts, samples and the log of what happened, live or afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import ClassVar

import numpy as np
from rich.table import Table
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from mlxzo import control, events
from mlxzo.errors import MlxzoError
from mlxzo.files import format_bytes
from mlxzo.formatting import (
    format_amount,
    format_count,
    format_loss,
    format_metric,
    format_seconds,
    format_share,
    memory_text,
    printable,
    ranks_text,
)
from mlxzo.runs import RunDirectory

from ..feed import Replay, RunFeed
from ..history import PHASES, History
from ..keeping import kept_rows
from ..widgets.chart import Chart, Moment, Rule, Series, percent, plain, size
from .dialogs import error_dialog
from .page import Page

_REDRAW_SECONDS = 0.2
_LOG_LINES = 300
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


class Panel(VerticalScroll, can_focus=True):
    """Text in a frame that scrolls."""

    def __init__(self, *, id: str, title: str, help: str):
        super().__init__(id=id)
        self.border_title, self.help = title, help
        self._content = Static(markup=False)

    def compose(self) -> Iterable[Widget]:
        yield self._content

    def show(self, content: Text | Table | str, *, to_end: bool = False) -> None:
        """Replaces the text; `to_end` keeps the last line in view if it was."""
        at_end = self.scroll_offset.y >= self.max_scroll_y - 1
        self._content.update(content)
        if to_end and at_end:
            self.scroll_end(animate=False)


class Monitor(Page):
    """The run that is open in the app."""

    mode = "monitor"
    help = (
        "Monitor shows one run as its events come: live, whoever started it, or as it went. Closing the app does not "
        "end a run. Digits show and hide the panels; charts zoom with + and -, move with the arrow keys, and give "
        "their values under the mouse pointer or with , and ."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p,space", "pause", "Pause / go on", key_display="p"),
        Binding("e", "evaluate", "Evaluate now", tooltip="measures the weights as they are, after the step in hand"),
        Binding("s", "stop", "Stop", tooltip="ends the run after the step in hand and saves; again, by force"),
        Binding("x", "export", "Export", tooltip="makes an adapter, a whole model or a journal of the best state"),
        Binding("f", "maximize", "Full panel", tooltip="shows the focused panel alone; escape restores"),
        *(Binding(str(n), f"panel({n})", f"Show or hide {name}", show=False) for n, name in enumerate(PANELS, 1)),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._chosen = self.app.preferences.panels
        self._drawn: tuple | None = None
        self._told: object = None
        self._sampled: object = None
        self._logged: tuple | None = None
        self._happened: tuple | None = None
        self._steps_drawn = 0
        self._panels_drawn = 0.0
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
                help="Training loss by step. The faint band is every step's loss, the bright line the smoothed loss "
                "(each step counts 2 %). A zeroth-order run is noisy: judge it by the smoothed line and by accuracy.",
            )
            yield Chart(
                id="accuracy",
                title="2 Validation",
                empty="The zero-shot evaluation comes before training starts, the next after `eval_every` steps.",
                y_labels=percent,
                y_value=lambda value: f"{100 * value:.1f} %",
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
        self.set_interval(_REDRAW_SECONDS, self._tick)
        self.query_one("#loss").focus()

    def on_screen_resume(self) -> None:
        self._drawn = self._happened = self._logged = self._sampled = None
        self._arrange()
        self._tick()

    def on_resize(self) -> None:
        self._arrange()

    # What is shown

    def action_panel(self, number: int) -> None:
        """Shows or hides a panel."""
        name = PANELS[number - 1]
        self._chosen = {**self._chosen, name: not self.query_one(f"#{name}").display}
        self.app.preferences.panels = self._chosen
        self._arrange()

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
            self._drawn = self._happened = None
            if panel.display:
                shown.append(panel)
        across = min(len(shown), 3 if self.app.size.width >= 160 else 2) or 1
        container = self.query_one("#panels")
        container.styles.grid_size_columns = across
        if shown and len(shown) % across:
            # The last panel fills its row.
            shown[-1].styles.column_span = across - len(shown) % across + 1
        if self.focused is None and shown:
            shown[0].focus()

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
        if feed is None or self.app.screen is not self:
            return
        feed.poll()
        history = feed.history
        state = (feed, history, history.version, feed.running)
        if state != self._drawn:
            self._drawn = state
            self._draw(feed)
        if isinstance(history.outcome, events.Failed) and self._told is not history.outcome:
            self._told = history.outcome
            if history.outcome.title != "Interrupted" and isinstance(feed, RunFeed) and feed.supervision is not None:
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
        status = self.query_one("#status", Static)
        status.border_title = printable(feed.title)
        status.update(status_text(feed, self.app.size.width - 4), layout=False)
        if self._is_due(feed):
            self._draw_panels(feed)

    def _is_due(self, feed: RunFeed | Replay) -> bool:
        """Whether enough has happened to draw the panels again: anything but a step, steps as wide as a dot, or what
        came within a second."""
        history, now = feed.history, time.monotonic()
        happened = (feed, feed.running, history.phase, history.paused, len(history.evaluations), len(history.log))
        steps = len(history["steps"])
        dot = steps / (2 * self.app.size.width)
        due = happened != self._happened or steps - self._steps_drawn >= dot or now - self._panels_drawn >= 1.0
        if due:
            self._happened, self._steps_drawn, self._panels_drawn = happened, steps, now
        else:
            # The next tick looks again.
            self._drawn = None
        return due

    def _draw_panels(self, feed: RunFeed | Replay) -> None:
        history = feed.history
        draws = {"loss": draw_loss, "accuracy": draw_accuracy, "memory": draw_memory, "speed": draw_speed}
        for name, draw in draws.items():
            chart = self.query_one(f"#{name}", Chart)
            if chart.display:
                draw(chart, history)
        self.query_one("#facts", Panel).show(facts(feed.run, history))
        if self._sampled is not history.samples:
            self._sampled = history.samples
            self.query_one("#samples", Panel).show(samples_text(history))
        if self._logged != (history, len(history.log)):
            self._logged = (history, len(history.log))
            self.query_one("#log", Panel).show(log_text(history), to_end=True)

    # What is done to the run

    def action_pause(self) -> None:
        feed = self.app.current
        if isinstance(feed, Replay):
            feed.paused = not feed.paused
            self._drawn = None
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


def state_words(feed: RunFeed | Replay) -> tuple[str, str]:
    """A mark and a word for how a run stands."""
    outcome, history = feed.history.outcome, feed.history
    if isinstance(feed, Replay) and feed.paused:
        return "‖", "demo paused"
    if isinstance(outcome, events.Finished):
        return "✓", "finished"
    if isinstance(outcome, events.Failed):
        return ("■" if outcome.title == "Interrupted" else "✗"), outcome.title.lower()
    if feed.died:
        return "✗", "died"
    if history.paused:
        return "‖", "paused"
    if not history.phase:
        return "○", "starting" if feed.running else "not started"
    return "▶", PHASES.get(history.phase, history.phase)


def bar(share: float, width: int) -> Text:
    """A bar that is full at 1."""
    filled = round(width * min(1.0, max(0.0, share)))
    return Text.assemble(("━" * filled, "bold"), ("─" * (width - filled), "dim"))


def status_text(feed: RunFeed | Replay, width: int) -> Text:
    """Two lines: how the run stands and how far it is; speed, time left and the best so far."""
    history, step = feed.history, feed.history.step
    mark, words = state_words(feed)
    head = f"{mark} {words}"
    progress, live = history.progress, history.outcome is None
    if live and progress is not None and progress.total:
        label = f"{progress.label}: {format_share(progress.done, progress.total, progress.unit)}"
        share = progress.done / progress.total
    elif live and progress is not None and progress.done:
        label, share = f"{progress.label}: {format_amount(progress.done, progress.unit)}", None
    elif step is not None:
        label, share = f"step {step.step:,} of {step.steps:,}", step.step / step.steps
    else:
        label, share = "", None
    left = Text(f"{head}  {printable(label)}  ")
    if share is not None:
        percent_done = f" {100 * share:.0f} %"
        left.append_text(bar(share, max(8, width - len(left.plain) - len(percent_done))))
        left.append(percent_done)
    parts = []
    if isinstance(history.outcome, events.Failed):
        parts.append(history.outcome.message)
    elif feed.died:
        parts.append("its process is gone and left no word, most often because the system ran out of memory")
    else:
        if step is not None and live and step.step < step.steps:
            parts.append(f"{step.steps_per_second:.2f} steps/s")
            parts.append(f"ETA {format_seconds(step.eta_seconds)}")
            if history.ranks is not None:
                parts.append(ranks_text(history.ranks))
        parts.append(f"elapsed {format_seconds(history.seconds)}")
        if (best := history.best()) is not None:
            where = "zero-shot" if best.kind == "zero-shot" else f"step {best.step}"
            parts.append(f"best {best.metric} {format_metric(best.metric, best.value)} at {where}")
    if len("   ".join(parts)) > width:
        # What can be told from the rest goes first.
        parts = [part for part in parts if not part.startswith("elapsed")]
    return Text.assemble(left, "\n", (printable("   ".join(parts)), "dim"))


def draw_loss(chart: Chart, history: History) -> None:
    steps = history["steps"]
    note = ""
    if history.step is not None:
        note = f"smoothed {format_loss(history.step.smoothed_loss)} · last {format_loss(history.step.loss)}"
    chart.show(
        [Series("loss", steps, history["loss"], "faint"), Series("smoothed", steps, history["smoothed"], "one")],
        note=note,
    )


def draw_accuracy(chart: Chart, history: History) -> None:
    zero = history.zero_shot()
    metric = zero.metric if zero else "accuracy"
    chart.title = f"2 Validation {metric}"
    found = [e for e, _ in history.evaluations if e.split == "validation"]
    best = history.best()
    rules = []
    if zero is not None:
        before, largest = format_metric(metric, zero.value), format_metric(metric, zero.majority)
        if before == largest:
            rules.append(Rule(f"zero-shot = majority {before}", zero.value))
        else:
            rules.append(Rule(f"zero-shot {before}", zero.value))
            if zero.majority is not None:
                rules.append(Rule(f"majority class {largest}", zero.majority, "axis", "┄"))
    note = ""
    if best is not None:
        note = f"best {format_metric(metric, best.value)} at step {best.step}"
    series = Series(
        metric,
        np.array([e.step for e in found], dtype=float),
        np.array([np.nan if e.value is None else e.value for e in found]),
        "two",
        marks=["★" if e is best else "●" for e in found],
    )
    until = None if history.step is None else float(history.step.step)
    chart.show([series] if found else [], rules, note=note, until=until)


def draw_memory(chart: Chart, history: History) -> None:
    seconds, memory = history["memory_seconds"], history["memory_bytes"]
    note = f"peak {format_bytes(history.peak_bytes)}" if len(memory) else ""
    rules = []
    if len(memory):
        rules.append(Rule(f"peak {format_bytes(history.peak_bytes)}", history.peak_bytes, over=False))
    if history.cap_bytes is not None:
        rules.append(Rule(f"cap {format_bytes(history.cap_bytes)}", history.cap_bytes, "limit", "━"))
        note += f" of {format_bytes(history.cap_bytes)} ({100 * history.peak_bytes / history.cap_bytes:.0f} %)"
    moments = [Moment(PHASES.get(name, name), at) for name, at in history.phases]
    chart.show([Series("in use", seconds, memory, "three", area=True)], rules, moments, note=note)


def draw_speed(chart: Chart, history: History) -> None:
    steps = history["steps"]
    note = ""
    if history.step is not None:
        note = f"{history.step.steps_per_second:.2f} steps/s · {history.step.tokens_per_second:,.0f} tokens/s"
    chart.show([Series("steps/s", steps, history["steps_per_second"], "four")], note=note)


def facts(run: RunDirectory | None, history: History) -> Table:
    """Names and values of what is known of the run; `run` is None for a recording."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    loaded, step, zero, best, test = history.loaded, history.step, history.zero_shot(), history.best(), history.tested()
    rows: list[tuple[str, str]] = []
    if loaded is not None:
        share = 100 * loaded.trainable_parameters / max(1, loaded.parameters)
        rows.append(("model", f"{loaded.model}, {format_count(loaded.parameters)} parameters"))
        rows.append(("trains", f"{format_count(loaded.trainable_parameters)} of them ({share:.2g} %)"))
        rows.append(("task", loaded.task))
    if zero is not None:
        rows.append(("zero-shot", format_metric(zero.metric, zero.value)))
    if best is not None and best.kind != "zero-shot":
        rows.append(("best", f"{format_metric(best.metric, best.value)} at step {best.step}"))
    if test is not None:
        rows.append(("test", f"{format_metric(test.metric, test.value)} on {test.examples} examples"))
    rows += kept_rows(run, history)
    if history.memory is not None:
        rows.append(("memory", memory_text(history.memory)))
        rows.append(("machine", machine_text(history.memory)))
    if loaded is not None:
        counts = f"{loaded.train_examples} training, {loaded.validation_examples} validation"
        rows.append(("examples", f"{counts}, {loaded.test_examples} test"))
    if step is not None:
        rows.append(("lr", f"{step.lr:.3g}"))
    for name, value in rows or [("", "The facts of the run appear when the model is loaded.")]:
        table.add_row(name, printable(value))
    return table


def samples_text(history: History) -> Text:
    """Prompts with the model's answers before training and now."""
    if not history.samples:
        return Text("Answers to a few validation prompts appear with the first evaluation.", "dim")
    first, last = history.samples[0], history.samples[-1]
    text = Text()
    for before, now in zip(first.items, last.items, strict=False):
        text.append("…" + printable(str(now["prompt"])[-160:].replace("\n", " ⏎ ")), "dim")
        text.append("\n")
        for words, item in (("before", before), ("now", now))[: len(history.samples)]:
            mark = "?" if item["right"] is None else "✓" if item["answer"] == item["right"] else "✗"
            text.append(f"  {mark} {words:<6} {printable(item['answer']).strip()}", "bold" if words == "now" else "")
            # What a model wrote has no share among candidates.
            text.append("\n" if item["share"] is None else f" {100 * item['share']:.0f} %\n", "dim")
    text.rstrip()
    return text


def machine_text(memory: events.Memory) -> str:
    """How short of memory the machine is."""
    words = f"{format_bytes(memory.available_bytes)} available, {format_bytes(memory.swap_used_bytes)} in swap"
    pressure = {1: "normal", 2: "warning", 4: "critical"}.get(memory.pressure or 0)
    return words + (f", pressure {pressure}" if pressure else "")


def log_text(history: History) -> Text:
    """The last lines of the log, each with its time of day."""
    lines = [
        Text.assemble((f"{datetime.fromtimestamp(line.time):%H:%M:%S} ", "dim"), f"{line.mark} {printable(line.text)}")
        for line in history.log[-_LOG_LINES:]
    ]
    return Text("\n").join(lines) if lines else Text("Nothing has happened yet.", "dim")
