"""The runs of a folder: find, open, compare, resume, export and delete them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from rich.console import Group
from rich.text import Text
from textual import work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from mlxzo.core.files import user_path
from mlxzo.core.formatting import (
    bytes_of,
    format_bytes,
    format_loss,
    format_seconds,
    objective_words,
    printable,
    step_counts_text,
)
from mlxzo.core.metrics import metric_named
from mlxzo.core.result_summary import ended_text, result_summary
from mlxzo.core.run_directory import BEST_STATE, RunDirectory
from mlxzo.core.run_history import RunHistory

from ..feed import DIED
from ..run_list import MARKS, Entry, changed, look, read_entry
from ..sweeps import SweepProgress, progress, read_sweeps
from ..widgets.grid import Column, Grid, Openable
from ..widgets.text import LiveText, pairs_table, sparkline, wrapped_id
from .dialogs import Choice
from .page import Page, title

_REFRESH_SECONDS = 2.0
# The cursor rests for so long before the details of a run are shown, and before a whole run is read.
_DETAILS_SECONDS, _HISTORY_SECONDS = 0.05, 0.15
# Of so many runs the events are not read again while they have no new ones.
_HISTORIES = 8
# Cells of the names to the left of the facts, and with those of a result among them.
_NAMES_WIDTH = 9
_LONG_NAMES_WIDTH = 20
# From this width on, names and values of a result stand side by side.
_SIDE_BY_SIDE = 60
# Actions that need a run.
_OF_RUNS = (
    *("mark", "race", "filter", "sort", "delete", "choose"),
    *(f"on_run('{name}')" for name in ("open_try", "open_export", "resume_run", "set_up_again", "copy_command_of")),
)
_EMPTY = (
    "There are no runs in {root} yet.\n\n"
    "Enter or n  opens Setup (F3): choose a model and a task, check the\n"
    "            plan, press F9. Without a change it trains a small model\n"
    "            in some minutes, and F6 then tries it.\n\n"
    "Runs started in a shell (`mlxzo quickstart`, `mlxzo train`) appear\n"
    "here as well, and can be watched live.\n"
    "`mlxzo tui --demo` plays a recorded run."
)
_COLUMNS = (
    Column("mark", "", 1),
    Column("status", "status", 13),
    Column("model", "model", 0),
    Column("task", "task", 8),
    Column("method", "method", 6),
    Column("scope", "scope", 13, from_width=94),
    Column("steps", "steps", 8, right=True),
    Column("before", "zero-shot", 9, right=True),
    Column("after", "tuned", 8, right=True),
    Column("peak", "peak of cap", 17, right=True, from_width=110),
    Column("time", "time", 11, right=True, from_width=122),
    Column("seed", "seed", 4, right=True, from_width=122),
    Column("name", "name", 14, from_width=130),
    Column("started", "started", 16, from_width=150),
)
# The runs of one batch differ by their names.
_BATCH_COLUMNS = tuple(Column("name", "run", 0) if column.key == "model" else column for column in _COLUMNS)
_SORTS = {
    "started": lambda entry: -entry.started,
    "tuned": lambda entry: -entry.merit,
    "status": lambda entry: entry.status,
    "model": lambda entry: (entry.model, entry.task),
    "task": lambda entry: (entry.task, entry.model),
    "method": lambda entry: (entry.method, entry.estimator, entry.scope),
    "steps": lambda entry: -(entry.steps or entry.step),
}


class Runs(Page):
    """The list of runs, newest first."""

    mode = "runs"
    help = (
        "Runs lists the runs in one folder, whoever started them. Enter opens the one under the cursor. Space marks "
        "runs, c compares the marked ones."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Mark", key_display="␣", tooltip="marks the run for a race (space bar)"),
        Binding("c", "race", "Race", tooltip="shows the marked runs on shared axes"),
        Binding("t", "on_run('open_try')", "Try", tooltip="compares base and tuned on your text"),
        Binding("x", "on_run('open_export')", "Export", tooltip="writes the best checkpoint in another format"),
        Binding("b", "batch", "Batch", tooltip="lists the runs of the next batch alone, with its progress"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("u", "on_run('resume_run')", "Resume", tooltip="resumes an interrupted run where it stopped"),
        Binding("o", "sort", "Sort"),
        Binding("d,delete", "delete", "Delete", key_display="d"),
        Binding("r", "on_run('set_up_again')", "Set up again", tooltip="opens Setup with the options of this run"),
        Binding("y", "on_run('copy_command_of')", "Copy command", tooltip="copies the command line of the same run"),
        Binding("n,enter", "new", "New run", key_display="n", tooltip="opens Setup"),
        Binding("escape", "leave_filter", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[Path, Entry] = {}
        self._marked: list[Path] = []
        self._batches: list[SweepProgress] = []
        self._batch = ""
        """Name of the only batch listed; '' for all runs."""
        self._sort = "started"
        self._reading = False
        self._histories: dict[Path, tuple[float, RunHistory]] = {}
        """Of the runs whose details were shown last: the time of the last event then, and the history."""
        self._details_timers: list[Timer] = []
        """What follows the cursor: the details of its run, and the reading of its history."""

    def body(self) -> Iterable[Widget]:
        yield Static(id="no-runs", markup=False)
        with Horizontal(id="runs-body"):
            with Vertical(id="runs-list", classes="frame"):
                yield Input(placeholder="filter by name, model, task, method or status", id="filter", compact=True)
                yield Static(id="batch-line", markup=False)
                yield Openable(
                    _COLUMNS,
                    self._cell,
                    id="runs-table",
                    help="One row per run: ▶ running, ✓ finished, ■ interrupted, ✗ failed or died; ◆ marked. Click a "
                    "column's title to sort by it, double-click a run to open it.",
                )
            yield LiveText(id="run-details")

    def on_mount(self) -> None:
        self.query_one("#batch-line").display = False
        self.query_one("#runs-list").border_title = "Runs"
        self.query_one("#run-details").border_title = "Details"
        self.query_one(Grid).focus()
        self.set_interval(_REFRESH_SECONDS, self._refresh_if_seen)

    def on_screen_resume(self) -> None:
        self._read()

    def _refresh_if_seen(self) -> None:
        if self.is_active and not self._reading:
            self._read()

    @work(thread=True, exclusive=True, group="runs")
    def _read(self) -> None:
        """Updates the list: adds new runs, reads changed ones, removes deleted ones."""
        self._reading = True
        worker = get_current_worker()
        try:
            runs, others = look(self.app.root)
            batches = read_sweeps(others)
            known = self._entries
            due = [run for run in runs if _is_due(known.get(run.path), run)]
            # A screenful first.
            for chunk in (due[:40], *(due[start : start + 200] for start in range(40, len(due), 200))):
                entries = [read_entry(run) for run in chunk]
                if worker.is_cancelled:
                    return
                self.deliver(self._add, entries)
            self.deliver(self._remove_others, {run.path for run in runs}, batches)
        finally:
            self._reading = False

    def _add(self, entries: list[Entry]) -> None:
        if any(self._entries.get(entry.run.path) != entry for entry in entries):
            self._entries |= {entry.run.path: entry for entry in entries}
            self._fill()

    def _remove_others(self, paths: set[Path], batches: list[SweepProgress]) -> None:
        if batches != self._batches:
            self._batches = batches
            self._fill()
        if gone := set(self._entries) - paths:
            self._entries = {path: entry for path, entry in self._entries.items() if path not in gone}
            self._marked = [path for path in self._marked if path not in gone]
            self._fill()
        nothing = not paths
        self.query_one("#no-runs", Static).update(_EMPTY.format(root=user_path(self.app.root).absolute()))
        self.query_one("#no-runs").display = nothing
        self.query_one("#runs-body").display = not nothing
        if not nothing and self.focused is None:
            self.query_one(Grid).focus()

    def _fill(self) -> None:
        """Fills the table with the runs that match the filter, sorted; the cursor stays on its run."""
        words = self.query_one("#filter", Input).value.lower().split()
        batch = self._show_batch()
        found = [e for e in self._entries.values() if all(word in e.words for word in words)]
        if self._batch:
            found = [e for e in found if batch is not None and batch.holds(e.run.id)]
        found.sort(key=lambda entry: -entry.started)
        found.sort(key=_SORTS[self._sort])
        grid = self.query_one(Grid)
        named = any(entry.name for entry in found)
        columns = _BATCH_COLUMNS if self._batch else _COLUMNS
        grid.columns = [column for column in columns if named or column.key != "name"]
        grid.show([entry.run.path for entry in found])
        total = len(self._entries)
        frame = self.query_one("#runs-list")
        frame.border_title = title(f"Runs in {self.app.root}")
        counts = f"{len(found)} of {total}" if len(found) < total else f"{total}"
        marked = f" · {len(self._marked)} marked" if self._marked else ""
        frame.border_subtitle = f"{counts} · by {self._sort}{marked} · results on test (v: on validation)"

    def _show_batch(self) -> SweepProgress | None:
        """Shows the progress of the chosen batch, or else of the one that changed last; returns it."""
        chosen = [batch for batch in self._batches if batch.name == self._batch or not self._batch]
        line = self.query_one("#batch-line", Static)
        line.display = bool(self._batches)
        if not chosen:
            self._batch = ""
            return None
        found = progress(chosen[0], self._entries.values())
        left = f"  {found.left}" if found.left else ""
        hint = "only its runs; b: the next batch" if self._batch else "b: only its runs"
        head = (f"batch {printable(chosen[0].name)}", "bold")
        line.update(Text.assemble(head, left, (f"  {hint}\n", "dim"), found.text))
        return chosen[0]

    def _cell(self, path: Path, key: str) -> str:
        entry = self._entries.get(path)
        if entry is None:
            return ""
        if key == "mark":
            return "◆" if path in self._marked else " "
        if key == "status":
            return "✗ unreadable" if entry.problem else f"{MARKS[entry.status]} {entry.status}"
        if key == "name" and self._batch:
            return printable(entry.run.id.removeprefix(f"{self._batch}-"))
        if key == "steps":
            return "" if entry.problem else step_counts_text(entry.step, entry.steps)
        if key == "after" and entry.after != "-":
            return entry.after + (" v" if entry.split == "validation" else "  ")
        if key == "peak":
            return _memory(entry)
        if key == "time":
            return "" if entry.seconds is None else format_seconds(entry.seconds)
        if key == "name":
            return printable(entry.name)
        if key == "started":
            return f"{datetime.fromtimestamp(entry.started):%Y-%m-%d %H:%M}"
        if key == "method":
            # Which of them tells more than that it is mezo, as most runs are.
            return entry.estimator or entry.method
        return printable(getattr(entry, key))

    def selected(self) -> Entry | None:
        """The run under the cursor."""
        path = self.query_one(Grid).item
        return None if path is None else self._entries.get(path)

    def on_grid_moved(self) -> None:
        self.refresh_bindings()
        for timer in self._details_timers:
            timer.stop()
        # The cursor is drawn first; and not all runs that it passes are shown and read.
        later = ((_DETAILS_SECONDS, self._show_details), (_HISTORY_SECONDS, self._read_history))
        self._details_timers = [self.set_timer(seconds, act) for seconds, act in later]

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_details)

    def _show_details(self) -> None:
        entry, details = self.selected(), self.query_one("#run-details", LiveText)
        if entry is None:
            details.show("")
            return
        _, history = self._histories.get(entry.run.path, (0.0, None))
        width = details.content_size.width
        version = None if history is None else history.version
        details.show(_details(entry, history, width), key=(entry, version, width))

    def _read_history(self) -> None:
        entry = self.selected()
        if entry is not None and self._histories.get(entry.run.path, (None,))[0] != entry.stamp:
            self._read_events(entry)

    @work(thread=True, exclusive=True, group="history")
    def _read_events(self, entry: Entry) -> None:
        """Reads all events of the run under the cursor, for its result and its curves."""
        worker = get_current_worker()
        history = RunHistory.read(entry.run.events())
        if not worker.is_cancelled:
            self.deliver(self._take_history, entry, history)

    def _take_history(self, entry: Entry, history: RunHistory) -> None:
        self._histories.pop(entry.run.path, None)
        self._histories[entry.run.path] = entry.stamp, history
        if len(self._histories) > _HISTORIES:
            del self._histories[next(iter(self._histories))]
        self._show_details()

    def offers(self, action: str) -> bool:
        entry = self.selected()
        if action == "batch":
            return bool(self._batches)
        if entry is None:
            return action not in _OF_RUNS
        if action == "on_run('resume_run')":
            return entry.status in ("interrupted", "died", "failed")
        if action in ("on_run('open_try')", "on_run('open_export')"):
            return (entry.run.path / BEST_STATE).exists()
        return True

    def on_grid_chosen(self) -> None:
        self.action_on_run("open_run")

    def action_on_run(self, method: str) -> None:
        """Calls a method of the app with the run under the cursor."""
        if (entry := self.selected()) is not None:
            getattr(self.app, method)(entry.run)

    def on_grid_title_clicked(self, event: Grid.TitleClicked) -> None:
        name = {"after": "tuned", "before": "tuned", "scope": "method"}.get(event.key, event.key)
        if name in _SORTS:
            self._sort = name
            self._fill()

    def on_input_changed(self) -> None:
        self._fill()

    def on_input_submitted(self) -> None:
        self.query_one(Grid).focus()

    def action_new(self) -> None:
        """Opens Setup. Enter comes here from an empty list alone; the grid opens the run under the cursor."""
        self.app.action_go("setup")

    def action_filter(self) -> None:
        self.query_one("#filter").focus()

    def action_leave_filter(self) -> None:
        self.query_one("#filter", Input).value = ""
        self.query_one(Grid).focus()

    def action_sort(self) -> None:
        names = list(_SORTS)
        self._sort = names[(names.index(self._sort) + 1) % len(names)]
        self._fill()

    def action_batch(self) -> None:
        """Lists the runs of the next batch alone; after the last batch, all runs."""
        names = ["", *(batch.name for batch in self._batches)]
        if len(names) == 1:
            self.notify("There is no batch in this folder; `mlxzo batch FILE` runs one.", severity="warning")
            return
        self._batch = names[(names.index(self._batch) + 1) % len(names)] if self._batch in names else ""
        self._fill()

    def action_mark(self) -> None:
        if (entry := self.selected()) is None:
            return
        if entry.run.path in self._marked:
            self._marked.remove(entry.run.path)
        else:
            self._marked.append(entry.run.path)
        self._fill()
        self.query_one(Grid).action_move(1)

    def action_race(self) -> None:
        chosen = [self._entries[path].run for path in self._marked]
        if len(chosen) < 2 and (entry := self.selected()) is not None and entry.run not in chosen:
            chosen.append(entry.run)
        if len(chosen) < 2:
            self.notify("Mark two or more runs with the space bar first.", severity="warning")
            return
        self.app.open_race(chosen)

    def action_delete(self) -> None:
        if (entry := self.selected()) is None:
            return
        if entry.run.worker_is_alive():
            self.notify("The run is still running; stop it first (Enter, then s).", severity="warning")
            return
        question = Choice(
            "Delete this run?",
            f"{entry.run.path}\n\nThis deletes its events, checkpoints and result from the disk.",
            {"keep": "Keep it", "delete": "Delete it"},
            danger="delete",
        )
        self.app.push_screen(question, lambda choice: self._delete(entry.run) if choice == "delete" else None)

    def _delete(self, run: RunDirectory) -> None:
        with self.app.reporting():
            # It may have been resumed since the question was asked.
            run.remove()
            self.app.forget(run)
        self._read()


def _is_due(entry: Entry | None, run: RunDirectory) -> bool:
    """True if a run has to be read, or read again."""
    return entry is None or entry.status == "running" or entry.stamp != changed(run)


def _memory(entry: Entry) -> str:
    """The peak of a run's memory and its cap: `786.8 of 900.0 MB`; '' if unknown."""
    if entry.peak_bytes is None:
        return ""
    return format_bytes(entry.peak_bytes) if entry.cap_bytes is None else bytes_of(entry.peak_bytes, entry.cap_bytes)


def _details(entry: Entry, history: RunHistory | None, width: int) -> Group:
    """The facts of a run, its result and curves, and the reason if it ended early.

    Args:
        history: None while it is read.
        width: of the text, in cells.
    """
    beside = width >= _SIDE_BY_SIDE
    room = max(10, width - (_LONG_NAMES_WIDTH if beside else _NAMES_WIDTH))
    status = f"{MARKS[entry.status]} {entry.status}, step {step_counts_text(entry.step, entry.steps, ' of ')}"
    rows = [("run", wrapped_id(entry.run.id, room))]
    rows.append(("status", status + ("" if history is None else ended_text(history))))
    if entry.problem:
        rows.append(("unreadable", entry.problem))
    if entry.status in ("failed", "died", "interrupted") and entry.failed is not None:
        rows += [("why", entry.failed.message), ("fix", entry.failed.fix)]
    elif entry.status == "died":
        rows.append(("why", DIED))
    facts = [
        ("model", entry.model),
        ("task", entry.task),
        ("method", ", ".join(filter(None, (entry.method, entry.estimator, f"scope {entry.scope}")))),
        ("seed", entry.seed),
        ("peak", _memory(entry) + ("" if entry.cap_bytes is None else " (cap)")),
        ("time", "" if entry.seconds is None else format_seconds(entry.seconds)),
        ("started", f"{datetime.fromtimestamp(entry.started):%Y-%m-%d %H:%M:%S}"),
        ("folder", wrapped_id(os.path.relpath(entry.run.path), room)),
    ]
    result, curves = _result(entry, history), _curves(history, width)
    if beside:
        return Group(pairs_table([*rows, *curves, *result, *((n, v) for n, v in facts if v)], gap=1))
    # Their names are too long for a column of a narrow panel.
    lines = [Text.assemble((f"{name}\n", "dim"), printable(value)) for name, value in (*curves, *result)]
    spaced = [part for line in lines for part in ("", line)]
    return Group(pairs_table(rows, gap=1), *spaced, "", pairs_table([(n, v) for n, v in facts if v], gap=1))


def _result(entry: Entry, history: RunHistory | None) -> list[tuple[str, str]]:
    """The result in words; its values alone until the history is there."""
    if history is not None and (rows := result_summary(history)):
        return rows
    split = f" on {entry.split}" if entry.split else ""
    return [(f"zero-shot{split}", entry.before), (f"tuned{split}", entry.after)]


def _curves(history: RunHistory | None, width: int) -> list[tuple[str, str]]:
    """Training and validation over the run as small curves, with their first and last values."""
    if history is None or not len(history.steps):
        return []
    if len(history.populations):
        metric = metric_named(history.objective)
        rows = [(f"training {metric.name}", list(history.populations["mean"]), metric.text)]
    else:
        known = [value for value in history.steps["smoothed_loss"] if math.isfinite(value)]
        rows = [(objective_words(history.objective), known, format_loss)]
    if (name := history.metric) is not None:
        # Not the name of the row of the result, whose last value is that of the state kept.
        values = [each.value for each in history.validation if each.value is not None]
        rows.append(("evaluations", values, metric_named(name).text))
    found = []
    for name, points, text in rows:
        if len(points) > 1:
            ends = f"  {text(points[0])} -> {text(points[-1])}"
            room = width - len(ends) - (_LONG_NAMES_WIDTH if width >= _SIDE_BY_SIDE else 0)
            found.append((name, sparkline(points, max(8, room)) + ends))
    return found
