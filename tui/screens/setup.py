"""Set up a run: model, task, options and memory cap on one screen, with a plan that follows every change."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual import work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Input, Static
from textual.worker import get_current_worker

from mlxzo.core.config import RunConfig, options
from mlxzo.core.errors import ConfigError, MlxzoError
from mlxzo.core.formatting import format_bytes, format_count, parse_bytes, printable
from mlxzo.core.meter import system_memory
from mlxzo.core.yaml_file import read_yaml
from mlxzo.models.registry import load_registry
from mlxzo.runtime.preflight import check_names
from mlxzo.tasks.base import TaskData
from mlxzo.tasks.registry import get_task, load_task, task_names

from ..planning import Prediction, pace, predict, sizes
from ..run_list import newest_first
from ..widgets.cap import CapSlider, PeakBar
from ..widgets.form import Field, Form
from ..widgets.grid import Column, Grid
from ..widgets.text import Words
from .dialogs import FileDialog
from .page import Page, title

_SETTLE_SECONDS = 0.15
# Finished runs among which one of the same kind is looked for, to tell how long this one will take.
_RUNS_LOOKED_AT = 50
# What most runs are set by; the rest follows in groups.
_ESSENTIAL = ("method", "scope", "steps", "batch_size", "lr", "eval_every", "seed")
_GROUPS = {
    "model": "Model",
    "task": "Task and data",
    "method": "Training",
    "mezo": "MeZO",
    "bp": "Backpropagation",
    "lora": "LoRA",
    "run": "Output",
}
# Set elsewhere on the screen.
_ELSEWHERE = ("model", "task", "data", "memory_cap")


@dataclass(frozen=True)
class Checked:
    """What the values of the form come to."""

    config: RunConfig | None
    problems: tuple[str, ...] = ()
    data: TaskData | None = None
    data_problem: MlxzoError | None = None
    plan: Prediction | None = None
    time: str = ""

    @property
    def reason(self) -> str:
        """Why the run cannot start; empty where it can."""
        if self.problems:
            more = len(self.problems) - 1
            return self.problems[0] + (f" (and {more} more)" if more else "")
        if self.data_problem is not None:
            return self.data_problem.message
        # What may not fit without a cap is for the user to try.
        capped = self.config is not None and self.config.memory_cap is not None
        if capped and self.plan is not None and self.plan.problem is not None:
            return self.plan.problem.message
        return ""


class Setup(Page):
    """Everything that decides a run, and what it will take."""

    mode = "setup"
    help = (
        "Setup makes a run. Choose a model and a task, set the cap, and look at the plan; Start is enabled as soon as "
        "the run would work, and says why while it would not. Tab goes from panel to panel, up and down from field to "
        "field."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9", "start", "Start", priority=True),
        Binding("f8", "race", "Race", priority=True, tooltip="MeZO and backpropagation, one after the other"),
        Binding("ctrl+s", "save", "Save", priority=True, tooltip="writes the options to a YAML file"),
        Binding("ctrl+o", "load", "Load", priority=True, tooltip="reads the options from a YAML file"),
        Binding("ctrl+y", "copy", "Copy command", show=False, priority=True),
        Binding("escape", "app.focus_next", "Next", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._model_name = RunConfig.model
        self._task_name = RunConfig.task
        self._checked = Checked(None)
        self._fits: dict[str, Prediction | None] = {}
        self._settling: Any = None
        self._total_bytes, _ = system_memory()

    # Layout

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="setup"):
            with Vertical(id="choices"):
                with Vertical(id="models", classes="frame") as models:
                    models.border_title = "Model"
                    yield _input(
                        "model-search",
                        "search, org/name, folder or .gguf",
                        "Words that narrow the list, or a model by its name on the hub, its folder or its .gguf file.",
                    )
                    yield Grid(
                        (
                            Column("name", "model", 0),
                            Column("parameters", "size", 7, right=True),
                            Column("weights", "weights", 8, from_width=54),
                            Column("peak", "peak", 8, right=True),
                            Column("fit", "fits", 4),
                        ),
                        self._model_cell,
                        id="model-list",
                        help="Models known by name. `peak` is the predicted peak of this run with each of them; `fits` "
                        "says whether that stays under the cap (or, without a cap, what the machine has free): ✓ it "
                        "does, ✗ it does not.",
                        dim=lambda name: self._fit_mark(name) == "✗",
                    )
                with Vertical(id="tasks", classes="frame") as tasks:
                    tasks.border_title = "Task"
                    yield Grid(
                        (Column("name", "task", 9), Column("description", "what it is", 0)),
                        lambda name, key: name if key == "name" else get_task(name).description,
                        id="task-list",
                        help="Built-in tasks, and `custom` for rows of your own. The fields below take a task YAML and "
                        "a folder of rows.",
                    )
                    yield _input(
                        "task-file",
                        "a task .yaml of your own",
                        "A YAML file with name, template and labels of a task of your own; its rows are in the folder "
                        "below. Empty: the task chosen above.",
                    )
                    yield _input(
                        "data",
                        "folder of your own rows",
                        "A folder with the rows of the task: train and validation, and test if you like, as .jsonl, "
                        ".csv or .tsv. Empty: the task's own rows.",
                    )
                    yield VerticalScroll(Words(id="preview"), can_focus=False)
            with VerticalScroll(id="options", classes="frame", can_focus=False) as form:
                form.border_title = "Options"
                yield Form(_form_groups(), id="form")
            with Vertical(id="plan", classes="frame") as plan:
                plan.border_title = "Plan"
                yield Static("memory cap", classes="group-title")
                yield CapSlider(self._total_bytes, id="cap-slider")
                yield _input("cap", "no cap", "The most memory that training may take, such as 2GB; empty: no cap.")
                yield Words(id="machine")
                yield PeakBar(id="peak-bar")
                yield VerticalScroll(Words(id="plan-text"), can_focus=False)
                yield Words(id="reason")
                with Horizontal(id="start-row"):
                    yield Button("Start F9", id="start", variant="primary", compact=True, disabled=True)
                    yield Button("Race F8", id="race", compact=True, disabled=True)
                    yield Button("Save ^s", id="save", compact=True)
        yield Static(id="help-line", markup=False)

    def on_mount(self) -> None:
        self.query_one("#task-list", Grid).show(task_names(), cursor=self._task_name)
        self._list_models()
        self.query_one("#model-list").focus()
        self._check_soon()

    def on_screen_resume(self) -> None:
        self.take_over()

    def take_over(self) -> None:
        """Shows the configuration that the app was asked to set up, if any."""
        if (config := self.app.take_setup()) is not None:
            self.fill(config)
        self._check_soon()

    def on_descendant_focus(self) -> None:
        super().on_descendant_focus()
        around = set() if self.focused is None else set(self.focused.ancestors)
        # In small terminals the panel in use opens. The options always have what the others leave.
        for name in ("#choices", "#models", "#tasks"):
            panel = self.query_one(name)
            panel.set_class(panel in around, "-open")
        if self.query_one("#choices") in around:
            # Where that leaves the options one line, it is the first of them, and not the title above it.
            self.query_one("#options").scroll_to(y=1 if self.app.size.width < 100 else 0, animate=False)
        widget, text = self.focused, ""
        while widget is not None and widget is not self and not text:
            text = getattr(widget, "help", "") or ""
            widget = widget.parent
        self.query_one("#help-line", Static).update(text, layout=False)

    # Model and task

    def _list_models(self) -> None:
        typed = self.query_one("#model-search", Input).value.strip()
        words = typed.lower().split()
        names = [name for name in load_registry() if all(word in name.lower() for word in words)]
        if typed and ("/" in typed or typed.endswith(".gguf") or not names):
            names = [typed, *names]
        self.query_one("#model-list", Grid).show(names, cursor=self._model_name if self._model_name in names else None)

    def _model_cell(self, name: str, key: str) -> str:
        entry = load_registry().get(name)
        if key == "name":
            return ("● " if name == self._model_name else "  ") + name
        if key == "fit":
            return self._fit_mark(name)
        if key == "peak":
            found = self._fits.get(name)
            return format_bytes(found.footprint_bytes) if found is not None else ""
        if entry is None:
            return ""
        if key == "parameters":
            return format_count(entry.parameters)
        return f"{entry.quantization.bits}-bit" if entry.quantization else entry.dtype

    def _fit_mark(self, name: str) -> str:
        found = self._fits.get(name)
        return "" if found is None else "✓" if found.fits else "✗"

    def on_grid_moved(self, event: Grid.Moved) -> None:
        if event.item is None:
            return
        if event.grid.id == "model-list" and event.item != self._model_name:
            self._model_name = str(event.item)
            self._check_soon()
        elif event.grid.id == "task-list" and event.item != self._task_name:
            self._task_name = str(event.item)
            # A task is either one of the list or one of a file.
            with self.prevent(Input.Changed):
                self.query_one("#task-file", Input).value = ""
            self._check_soon()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.app.action_focus_next()

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "model-search":
            self._list_models()
        elif event.input.id == "cap":
            # What is no size yet is reported with the other options.
            with contextlib.suppress(ValueError):
                self.query_one(CapSlider).show(parse_bytes(event.value) if event.value.strip() else None)
        self._check_soon()

    def on_input_submitted(self) -> None:
        self.app.action_focus_next()

    def on_cap_slider_changed(self, event: CapSlider.Changed) -> None:
        cap = self.query_one("#cap", Input)
        with self.prevent(Input.Changed):
            cap.value = "" if event.bytes is None else format_bytes(event.bytes)
        self._check_soon()

    def on_field_changed(self) -> None:
        self._check_soon()

    # Values

    def values(self) -> dict[str, Any]:
        """The options as the screen has them, without those that are left to their defaults."""
        task = self.query_one("#task-file", Input).value.strip() or self._task_name
        found: dict[str, Any] = {"model": self._model_name, "task": task, "out": self.app.root}
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
        self._model_name = config.model
        of_file = config.task not in task_names()
        if not of_file:
            self._task_name = config.task
        with self.prevent(Input.Changed, Grid.Moved):
            self.query_one("#task-file", Input).value = config.task if of_file else ""
            self.query_one("#data", Input).value = config.data or ""
            self.query_one("#cap", Input).value = config.memory_cap or ""
            self.query_one("#model-search", Input).value = "" if config.model in load_registry() else config.model
            self._list_models()
            self.query_one("#task-list", Grid).show(task_names(), cursor=self._task_name)
        self.query_one(CapSlider).show(config.memory_cap_bytes)
        for field in self.query(Field):
            field.fill(getattr(config, field.name_of_option))
        self._check_soon()

    # Checking

    def _check_soon(self) -> None:
        if self._settling is not None:
            self._settling.stop()
        self._settling = self.set_timer(_SETTLE_SECONDS, lambda: self._check(self.values()))

    @work(thread=True, exclusive=True, group="check")
    def _check(self, values: dict[str, Any]) -> None:
        """Everything that can be known of a run before it starts, without holding up the screen."""
        worker = get_current_worker()
        checked = check(values)
        if worker.is_cancelled:
            return
        self.tell(self._take, checked)
        if checked.config is None:
            return
        # What was found so far is drawn before the fits of all models keep the processor busy.
        time.sleep(_SETTLE_SECONDS)
        data = sizes(checked.data, checked.config)
        for name in load_registry():
            if worker.is_cancelled:
                return
            self._fits[name] = predict(checked.config, name, data, advise=False)
        if not worker.is_cancelled:
            self.tell(self._redraw_models)

    def _redraw_models(self) -> None:
        # The app may have closed meanwhile.
        if self.is_running:
            self.query_one("#model-list", Grid).redraw()

    def _take(self, checked: Checked) -> None:
        if not self.is_running:
            return
        self._checked = checked
        config = checked.config
        told = dict(problem.split(": ", 1) for problem in checked.problems if ": " in problem)
        for field in self.query(Field):
            usual = getattr(config, field.name_of_option) if config is not None else None
            field.say(told.get(field.name_of_option, ""), usual)
        values = self.values()
        method = config.method if config is not None else values.get("method", "mezo")
        self.query_one("#group-mezo").display = method == "mezo"
        self.query_one("#group-backpropagation").display = method == "bp"
        self.query_one("#group-lora").display = "lora" in str(values.get("scope", ""))
        self.query_one("#models").border_title = title(f"Model · {Path(self._model_name).name}")
        self.query_one("#tasks").border_title = title(f"Task · {Path(values['task']).name}")
        self.query_one("#preview", Words).show(preview(checked))
        _, available = system_memory()
        self.query_one("#machine", Words).show(
            f"machine {format_bytes(self._total_bytes)}, free {format_bytes(available)}"
        )
        self._show_plan(checked)
        reason = checked.reason
        self.query_one("#start", Button).disabled = bool(reason)
        self.query_one("#race", Button).disabled = bool(reason)
        self.query_one("#reason", Words).show(f"✗ {printable(reason)}" if reason else "✓ ready to start")
        self.query_one("#reason").set_class(bool(reason), "-wrong")
        self.query_one("#model-list", Grid).redraw()

    def _show_plan(self, checked: Checked) -> None:
        bar, plan = self.query_one(PeakBar), checked.plan
        cap = checked.config.memory_cap_bytes if checked.config is not None else None
        bar.show([part.bytes for part in plan.parts] if plan is not None else (), cap)
        if plan is None:
            known = "The figures of this model are not on this machine yet: they come with it when the run starts."
            words = "The plan appears when the options are right." if checked.config is None else known
            self.query_one("#plan-text", Words).show(words)
            return
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        table.add_column(width=1)
        table.add_column(ratio=1, overflow="fold")
        table.add_column(justify="right", no_wrap=True)
        for number, part in enumerate(plan.parts):
            mark = Text(bar.fill(number), bar.component_style(number))
            table.add_row(mark, part.name, format_bytes(part.bytes))
        table.add_row("", Text("together", "bold"), Text(format_bytes(plan.footprint_bytes), "bold"))
        words = [Text(f"▸ {note}", "dim") for note in (*plan.notes, checked.time) if note]
        if plan.problem is not None:
            # The reason why it cannot start stands below.
            what = "" if plan.problem.message == checked.reason else f"✗ {plan.problem.message}\n"
            words.insert(0, Text(printable(what + plan.problem.fix)))
        self.query_one("#plan-text", Words).show(Group(table, "", *words), key=(plan, checked.time))

    # Actions

    def on_button_pressed(self, event: Button.Pressed) -> None:
        {"start": self.action_start, "race": self.action_race, "save": self.action_save}[str(event.button.id)]()

    def action_start(self) -> None:
        """Starts the run as it is set up, and watches it."""
        if (config := self._ready()) is not None:
            self.app.start_run(config)

    def action_race(self) -> None:
        """Starts the run by either method, one after the other, and shows both."""
        if self._ready() is not None:
            self.app.start_race(self.values())

    def _ready(self) -> RunConfig | None:
        # Not what was last shown: a key may have come since.
        self._checked = check(self.values())
        if self._checked.reason:
            self._take(self._checked)
            self.notify(self._checked.reason, title="It cannot start yet", severity="warning")
            return None
        return self._checked.config

    def action_save(self) -> None:
        if (config := self._checked.config) is None:
            self.notify(self._checked.reason, title="Nothing to save yet", severity="warning")
            return
        self.app.push_screen(
            FileDialog("Save the options as YAML", "run.yaml", "Save"), lambda name: name and self._save(name, config)
        )

    def _save(self, name: str, config: RunConfig) -> None:
        try:
            Path(name).expanduser().write_text(config.to_yaml(), encoding="utf-8")
        except OSError as error:
            self.app.report(ConfigError(f"{name} cannot be written: {error.strerror}", "choose another folder"))
        else:
            self.notify(f"`mlxzo train --config {name}` starts the same run.", title="Saved")

    def action_load(self) -> None:
        self.app.push_screen(
            FileDialog("Load options from YAML", "run.yaml", "Load"), lambda name: name and self._load(name)
        )

    def _load(self, name: str) -> None:
        try:
            self.fill(RunConfig.from_mapping(read_yaml(Path(name).expanduser()), source=name))
        except MlxzoError as problem:
            self.app.report(problem)

    def action_copy(self) -> None:
        if self._checked.config is not None:
            self.app.copy_command(self._checked.config)


def check(values: dict[str, Any]) -> Checked:
    """Checks values in the order in which they can be wrong: options, names, data, memory. Raises nothing."""
    try:
        config = check_names(RunConfig.from_mapping(values).resolved())
    except ConfigError as error:
        return Checked(None, tuple(error.details or [error.message]), data_problem=_problem_of_task(values))
    except MlxzoError as error:
        return Checked(None, (error.message,))
    data, data_problem = None, None
    try:
        task = get_task(config.task)
        # Rows that lie on the hub are fetched by the run itself.
        if config.data is not None or task.embedded is not None or task.hub is None:
            data = load_task(config)
    except MlxzoError as error:
        data_problem = error
    plan = predict(config, config.model, sizes(data, config))
    return Checked(config, (), data, data_problem, plan, pace(config, newest_first(config.out)[:_RUNS_LOOKED_AT]))


def _problem_of_task(values: dict[str, Any]) -> MlxzoError | None:
    """What is wrong with the task that was named; None where it can be had."""
    try:
        get_task(values.get("task", RunConfig.task))
    except MlxzoError as error:
        return error
    return None


def preview(checked: Checked) -> Text:
    """An example of the task as the model sees it, the counts, or what is wrong with the rows, by line."""
    if checked.data_problem is not None:
        return Text(printable(_in_full(checked.data_problem)))
    if checked.config is None:
        return Text("")
    task = get_task(checked.config.task) if checked.data is None else checked.data.task
    lines = Text()
    if checked.data is not None:
        data = checked.data
        counts = f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test rows"
        lines.append(f"{counts} ({data.source})\n", "dim")
        if double := data.duplicates_across_splits:
            lines.append(f"⚠ {double} validation or test prompts are also training prompts\n")
        example = data.train[0]
        prompt = example.prompt
        answer = "" if example.target is None else example.candidates[example.target]
    else:
        lines.append("its rows are fetched from the hub when the run starts\n", "dim")
        prompt, answer = task.example_prompt(), ""
    # Before the example, which may be longer than the panel.
    if task.labels:
        lines.append(f"answers: {printable(' / '.join(task.labels[:12]))}\n", "dim")
    lines.append(printable(prompt[-600:]))
    lines.append(printable(answer) or " …", "bold reverse" if answer else "bold")
    return lines


def _in_full(problem: MlxzoError) -> str:
    parts = [problem.message, *problem.details]
    return "\n".join([*parts, *([f"What to do: {problem.fix}"] if problem.fix else [])])


def _input(name: str, placeholder: str, words: str) -> Input:
    """A field of the screen's own, with its help."""
    made = Input(placeholder=placeholder, id=name, compact=True)
    made.help = words
    return made


def _form_groups() -> dict[str, list]:
    by_name = {field.name: field for field in options()}
    groups = {"Essentials": [by_name[name] for name in _ESSENTIAL]}
    for group, heading in _GROUPS.items():
        rest = [
            field
            for field in options()
            if field.metadata["option"].group == group
            and field.name not in (*_ESSENTIAL, *_ELSEWHERE)
            # The folder of runs is that of the whole app.
            and field.name != "out"
        ]
        if rest:
            groups[heading] = rest
    return groups
