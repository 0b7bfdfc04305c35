"""Setup: model, task, options and memory cap of a run on one screen, with a plan that follows every change."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Input, Static
from textual.worker import get_current_worker

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.files import user_path
from mlxzo.core.formatting import format_bytes, parse_bytes, printable
from mlxzo.core.meter import system_memory
from mlxzo.core.yaml_file import read_yaml
from mlxzo.models.registry import load_registry
from mlxzo.tasks.custom import CustomTask
from mlxzo.tasks.registry import get_task, task_names

from ..command_line import command_line
from ..planning import predict, sizes
from ..setup_check import CheckResult, check, files_stamp, preview
from ..widgets.cap import CapSlider, PeakBar, with_small_ones_merged
from ..widgets.form import Entry, Field, Form
from ..widgets.grid import Column, Grid
from ..widgets.model_list import ModelList
from ..widgets.text import LiveText
from .dialogs import Choice, FileDialog
from .page import Page, help_of, title

_DEBOUNCE_SECONDS = 0.15
# Between two looks at the files that the options name.
_FILES_SECONDS = 1.0
# Options of the first group of the form.
_ESSENTIAL = ("method", "scope", "steps", "batch_size", "lr", "eval_every", "seed")
# Options with their own widgets here, and the folder of runs, which the app sets.
_ELSEWHERE = ("model", "task", "data", "memory_cap", "out")


class Setup(Page):
    """The options of a run, and its predicted memory and time."""

    mode = "setup"
    help = (
        "Setup prepares a run. Choose a model and a task, set the memory cap, check the plan, press Start. If the run "
        "cannot start, the line above Start gives the reason. Tab moves between panels, up and down between fields."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9,ctrl+g", "start", "Start", key_display="f9", priority=True),
        Binding("G", "start", "Start", show=False),
        Binding("f7,ctrl+l", "cap", "Cap", key_display="f7", priority=True, tooltip="goes to the memory cap (or ^l)"),
        Binding("L", "cap", "Cap", show=False, tooltip="goes to the memory cap"),
        Binding(
            "ctrl+t", "custom", "Task custom", priority=True, tooltip="takes the labels of your rows: the task custom"
        ),
        Binding("f8", "race", "Race", priority=True, tooltip="trains the run by MeZO, then by backpropagation"),
        Binding("B", "race", "Race", show=False, tooltip="trains the run by MeZO, then by backpropagation"),
        Binding("ctrl+s", "save", "Save", priority=True, tooltip="writes the options to a YAML file"),
        Binding("ctrl+o", "load", "Load", priority=True, tooltip="reads the options from a YAML file"),
        Binding("ctrl+y", "copy", "Copy command", show=False, priority=True),
        *(Binding(f"{n}", f"way({n})", f"Change {n}", show=False, tooltip="makes the run fit") for n in range(1, 6)),
        Binding("escape", "app.focus_next", "Next", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._models = ModelList(id="model-list")
        self._task_name = RunConfig.task
        self._checked = CheckResult(None)
        self._check_timer: Timer | None = None
        self._stamp: tuple[object, ...] = ()
        """Of the files that the last check read."""
        self._ways: dict[str, str] = {}
        """The changes that the buttons of a refusal make: options and values."""
        self._file = "run.yaml"
        """The name under which options were saved or loaded last."""
        self._total_bytes, _ = system_memory()

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="setup"):
            with Vertical(id="choices"):
                with Vertical(id="models", classes="frame") as models:
                    models.border_title = "Model"
                    yield Entry(
                        id="model-search",
                        placeholder="search, org/name, folder or .gguf",
                        help="Words to filter the list, or another model: its name on the hub, its folder or its "
                        ".gguf file.",
                    )
                    yield self._models
                with Vertical(id="tasks", classes="frame") as tasks:
                    tasks.border_title = "Task"
                    yield Grid[str](
                        (Column("name", "task", 12), Column("description", "description", 0)),
                        lambda name, key: name if key == "name" else get_task(name).description,
                        id="task-list",
                        help="Built-in tasks, and `custom` for your own rows. The fields below take a task YAML and a "
                        "folder of rows.",
                    )
                    yield Entry(
                        id="task-file",
                        placeholder="your own task .yaml",
                        help="A YAML file with name, template and labels of your own task; its rows are in the folder "
                        "below. Empty: the task chosen above.",
                    )
                    yield Entry(
                        id="data",
                        placeholder="folder with your own rows",
                        help="A folder with the rows of the task: train and validation, optionally test, as .jsonl, "
                        ".json, .csv, .tsv or .parquet. Empty: the task's own rows.",
                    )
                    yield Button("Take the labels of these rows: task custom ^t", id="custom", compact=True)
                    yield VerticalScroll(LiveText(id="preview"), can_focus=False)
            # Before the options: the keyboard reaches the cap from the task, and the plan from the cap.
            with Vertical(id="plan", classes="frame") as plan:
                plan.border_title = "Plan"
                yield Static("memory cap F7", classes="group-title")
                yield CapSlider(self._total_bytes, id="cap-slider")
                yield Entry(
                    id="cap",
                    placeholder="no cap",
                    help="The most memory that the run may take, such as 2GB; empty: no cap.",
                )
                yield LiveText(id="machine")
                yield PeakBar(id="peak-bar")
                yield VerticalScroll(LiveText(id="plan-text"), can_focus=False)
                yield LiveText(id="reason")
                yield Vertical(id="ways")
                with Horizontal(id="start-row"):
                    yield Button("Start F9", id="start", variant="primary", compact=True, disabled=True)
                    yield Button("Race F8", id="race", compact=True, disabled=True)
                    yield Button("Save ^s", id="save", compact=True)
            with VerticalScroll(id="options", classes="frame", can_focus=False) as form:
                form.border_title = "Options"
                yield Form(_ESSENTIAL, _ELSEWHERE, id="form")
        yield Static(id="help-line", markup=False)

    def on_mount(self) -> None:
        self.query_one("#task-list", Grid).show(task_names(), cursor=self._task_name)
        self._search_models()
        self._models.focus()
        self.query_one("#custom").display = False
        self._check_soon()
        self.set_interval(_FILES_SECONDS, self._check_changed_files)

    def _check_changed_files(self) -> None:
        """Reads files again that were corrected meanwhile."""
        if self.is_active and files_stamp(self.values()) != self._stamp:
            self._check_soon()

    def on_screen_resume(self) -> None:
        self.show_requested()

    def show_requested(self) -> None:
        """Shows the configuration that the app was asked to set up, if any."""
        if (config := self.app.take_setup()) is not None:
            self.fill(config)
        self._check_soon()

    def on_descendant_focus(self) -> None:
        super().on_descendant_focus()
        around = set() if self.focused is None else set(self.focused.ancestors)
        # In small terminals the focused panel opens, and the options take the remaining room.
        for name in ("#choices", "#models", "#tasks"):
            panel = self.query_one(name)
            panel.set_class(panel in around, "-open")
        if self.query_one("#choices") in around:
            # One line of options shows the first option and not the title above it.
            self.query_one("#options").scroll_to(y=1 if self.app.size.width < 100 else 0, animate=False)
        self.query_one("#help-line", Static).update(help_of(self.focused), layout=False)

    def _search_models(self) -> None:
        self._models.search(self.query_one("#model-search", Input).value)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        if event.item is None:
            return
        if event.grid is self._models and event.item != self._models.chosen:
            self._models.chosen = str(event.item)
            self._check_soon()
        elif event.grid.id == "task-list" and event.item != self._task_name:
            self._task_name = str(event.item)
            # A task of the list replaces that of a file.
            with self.prevent(Input.Changed):
                self.query_one("#task-file", Input).value = ""
            self._check_soon()

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "model-search":
            self._search_models()
        elif event.input.id == "cap":
            # A text that is no size yet is reported with the other options.
            with contextlib.suppress(ValueError):
                self.query_one(CapSlider).show(parse_bytes(event.value) if event.value.strip() else None)
        self._check_soon()

    @on(Grid.Chosen)
    @on(Input.Submitted)
    def _focus_next(self) -> None:
        self.app.action_focus_next()

    def on_cap_slider_changed(self, event: CapSlider.Changed) -> None:
        cap = self.query_one("#cap", Input)
        with self.prevent(Input.Changed):
            cap.value = "" if event.bytes is None else format_bytes(event.bytes)
        self._check_soon()

    def on_field_changed(self) -> None:
        self._check_soon()

    def values(self) -> dict[str, Any]:
        """The options on the screen, without those at their defaults."""
        task = self.query_one("#task-file", Input).value.strip() or self._task_name
        found: dict[str, Any] = {"model": self._models.chosen, "task": task, "out": self.app.root}
        if data := self.query_one("#data", Input).value.strip():
            found["data"] = data
        if cap := self.query_one("#cap", Input).value.strip():
            found["memory_cap"] = cap
        for field in self.query(Field):
            if (text := field.text) is not None:
                found[field.name_of_option] = text
        return found

    def fill(self, config: RunConfig) -> None:
        """Shows a configuration."""
        self._models.chosen = config.model
        of_file = config.task not in task_names()
        if not of_file:
            self._task_name = config.task
        with self.prevent(Input.Changed, Grid.Moved):
            self.query_one("#task-file", Input).value = config.task if of_file else ""
            self.query_one("#data", Input).value = config.data or ""
            self.query_one("#cap", Input).value = config.memory_cap or ""
            self.query_one("#model-search", Input).value = "" if config.model in load_registry() else config.model
            self._search_models()
            self.query_one("#task-list", Grid).show(task_names(), cursor=self._task_name)
        self.query_one(CapSlider).show(config.memory_cap_bytes)
        for field in self.query(Field):
            field.fill(getattr(config, field.name_of_option))
        self._check_soon()

    def _check_soon(self) -> None:
        if self._check_timer is not None:
            self._check_timer.stop()
        self._check_timer = self.set_timer(_DEBOUNCE_SECONDS, lambda: self._check(self.values()))

    @work(thread=True, exclusive=True, group="check")
    def _check(self, values: dict[str, Any]) -> None:
        """Checks the values, then predicts the memory with every model; both in a thread."""
        worker = get_current_worker()
        self._stamp = files_stamp(values)
        checked = check(values)
        if worker.is_cancelled:
            return
        self.deliver(self._show, checked)
        if checked.config is None:
            return
        # The result is drawn before the predictions take the processor.
        time.sleep(_DEBOUNCE_SECONDS)
        data = sizes(checked.data, checked.config)
        for name in load_registry():
            if worker.is_cancelled:
                return
            self._models.predictions[name] = predict(checked.config, name, data, advise=False)
        if not worker.is_cancelled:
            self.deliver(self._models.refresh)

    def _show(self, checked: CheckResult) -> None:
        self._checked = checked
        config = checked.config
        by_option = dict(problem.split(": ", 1) for problem in checked.problems if ": " in problem)
        for field in self.query(Field):
            usual = getattr(config, field.name_of_option) if config is not None else None
            field.show_problem(by_option.get(field.name_of_option, ""), usual)
        values = self.values()
        method = config.method if config is not None else values.get("method", "mezo")
        self.query_one("#group-mezo").display = method == "mezo"
        self.query_one("#group-bp").display = method == "bp"
        self.query_one("#group-lora").display = "lora" in str(values.get("scope", ""))
        self.query_one("#models").border_title = title(f"Model · {Path(values['model']).name}")
        self.query_one("#tasks").border_title = title(f"Task · {Path(values['task']).name}")
        self.query_one("#preview", LiveText).show(preview(checked))
        _, available = system_memory()
        self.query_one("#machine", LiveText).show(
            f"machine {format_bytes(self._total_bytes)}, free {format_bytes(available)}"
        )
        self._show_plan(checked)
        self.query_one("#custom").display = checked.is_custom
        reason = checked.reason
        for name in ("#start", "#race"):
            self.query_one(name, Button).disabled = bool(reason)
        self.query_one("#reason", LiveText).show(f"✗ {printable(reason)}" if reason else "✓ ready to start")
        self.query_one("#reason").set_class(bool(reason), "-wrong")
        refused = checked.plan.problem if reason and checked.plan is not None else None
        self._show_ways({} if refused is None else dict(refused.ways))
        self._models.refresh()
        self.refresh_bindings()

    def _show_ways(self, ways: dict[str, str]) -> None:
        """Shows a button for each change that makes the run fit."""
        if ways == self._ways:
            return
        self._ways = ways
        buttons = self.query_one("#ways")
        buttons.remove_children()
        for number, (option, value) in enumerate(ways.items(), start=1):
            buttons.mount(Button(f"{number}  {option.replace('_', ' ')} {value}", classes="way", compact=True))

    def action_way(self, number: int) -> None:
        """Makes one of the changes that are offered."""
        if not 1 <= number <= len(self._ways):
            return
        option, value = list(self._ways.items())[number - 1]
        if option == "model":
            self._models.chosen = value
            self.query_one("#model-search", Input).value = ""
            self._search_models()
        elif option == "memory_cap":
            self.query_one("#cap", Input).value = value
        else:
            self.query_one(f"#field-{option}", Field).fill(value)
        self._check_soon()

    def action_cap(self) -> None:
        """Goes to the memory cap."""
        self.query_one(CapSlider).focus()

    def action_custom(self) -> None:
        """Takes the rows for what they are: texts with labels of their own."""
        self._task_name = CustomTask.name
        with self.prevent(Input.Changed, Grid.Moved):
            self.query_one("#task-file", Input).value = ""
            self.query_one("#task-list", Grid).show(task_names(), cursor=self._task_name)
        self._check_soon()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "custom":
            return self._checked.is_custom
        return bool(self._ways) if action == "way" else True

    def _show_plan(self, checked: CheckResult) -> None:
        bar, plan = self.query_one(PeakBar), checked.plan
        cap = checked.config.memory_cap_bytes if checked.config is not None else None
        parts = [] if plan is None else with_small_ones_merged(plan.parts)
        bar.show(parts, cap)
        if plan is None:
            invalid = "The plan appears when all options are valid."
            unknown = "Unknown size: the configuration of this model is downloaded when the run starts."
            self.query_one("#plan-text", LiveText).show(invalid if checked.config is None else unknown)
            return
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        table.add_column(width=1)
        table.add_column(ratio=1, overflow="fold")
        table.add_column(justify="right", no_wrap=True)
        for part in parts:
            table.add_row(bar.mark(part), part.name, format_bytes(part.bytes))
        table.add_row("", Text("predicted peak", "bold"), Text(format_bytes(plan.footprint_bytes), "bold"))
        words = [Text(f"▸ {note}", "dim") for note in (checked.time, *plan.notes, plan.numbers) if note]
        # The line below gives the reason if the run cannot start, and buttons what would make it fit.
        if (problem := plan.problem) is not None and problem.message != checked.reason:
            words.insert(0, Text(printable(f"✗ {problem.message}\n{problem.fix}")))
        self.query_one("#plan-text", LiveText).show(Group(table, "", *words), key=(plan, checked.time))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.has_class("way"):
            self.action_way(list(self.query(".way")).index(event.button) + 1)
            return
        actions = {"start": self.action_start, "race": self.action_race, "custom": self.action_custom}
        actions.get(str(event.button.id), self.action_save)()

    def action_start(self) -> None:
        """Starts the run and shows it in the monitor."""
        if (config := self._ready()) is not None:
            self.app.start_run(config)

    def action_race(self) -> None:
        """Trains the run by each method, one after the other, and shows the race."""
        if self._ready() is not None:
            self.app.start_race(self.values())

    def _ready(self) -> RunConfig | None:
        # The values may have changed since the last check.
        self._checked = check(self.values())
        if self._checked.reason:
            self._show(self._checked)
            self.notify(self._checked.reason, title="The run cannot start yet", severity="warning")
            return None
        return self._checked.config

    def action_save(self) -> None:
        if (config := self._checked.config) is None:
            self.notify(self._checked.reason, title="Nothing to save yet", severity="warning")
            return
        self._ask_for_file("Save options as YAML", "Save", lambda name: self._ask_to_replace(name, config))

    def _ask_to_replace(self, name: str, config: RunConfig) -> None:
        """Saves a configuration; where there is such a file, asks first."""
        if not user_path(name).exists():
            self._save(name, config)
            return
        question = Choice(
            "Replace the file?",
            f"{user_path(name).absolute()}\n\nThere is such a file already.",
            {"keep": "Keep it", "replace": "Replace it"},
            danger="replace",
        )
        self.app.push_screen(question, lambda choice: self._save(name, config) if choice == "replace" else None)

    def _save(self, name: str, config: RunConfig) -> None:
        try:
            user_path(name).write_text(config.to_yaml(), encoding="utf-8")
        except OSError as error:
            self.app.report(ConfigError(f"{name} cannot be written: {error.strerror}", "choose another folder"))
        else:
            self._file = name
            self.notify(f"`mlxzo train --config {shlex.quote(name)}` starts the same run.", title="Saved")

    def action_load(self) -> None:
        self._ask_for_file("Load options from YAML", "Load", self._load)

    def _ask_for_file(self, heading: str, verb: str, use: Callable[[str], None]) -> None:
        """Asks for the name of a YAML file and calls `use` with it, unless the dialog is cancelled."""

        def answered(name: str | None) -> None:
            if name:
                use(name)

        self.app.push_screen(FileDialog(heading, self._file, verb), answered)

    def _load(self, name: str) -> None:
        with self.app.reporting():
            self.fill(RunConfig.from_mapping(read_yaml(user_path(name)), source=name))
            self._file = name

    def action_copy(self) -> None:
        if self._checked.config is not None:
            self.app.copy(command_line(self._checked.config))
