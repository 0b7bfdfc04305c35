"""The form of a run's options, generated from their definitions: label, value, unit, help, and what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from mlxzo.core.config import options
from mlxzo.core.options import GROUP_TITLES, Option

# Cells for the names of options, to the left of all values.
_NAME_WIDTH = 20


class Pick(Widget, can_focus=True):
    """One of a few words, all in view: ● the one that holds, ○ the others."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Before", show=False),
        Binding("right,l,space", "step(1)", "Next choice", key_display="→"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"pick--chosen", "pick--other"}

    value: reactive[str] = reactive("")

    @dataclasses.dataclass
    class Changed(Message):
        """Another word was picked."""

        pick: Pick
        value: str

    def __init__(self, choices: tuple[str, ...], value: str, *, id: str, help: str):
        super().__init__(id=id)
        self.choices, self.help = choices, help
        self.set_reactive(Pick.value, value)

    def action_step(self, places: int) -> None:
        place = self.choices.index(self.value) + places
        self.value = self.choices[place % len(self.choices)]

    def watch_value(self) -> None:
        if self.is_mounted:
            self.post_message(self.Changed(self, self.value))

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if not self._all_fit:
            # Too narrow for all words: the one that holds, and which of how many it is.
            place = f" {self.choices.index(self.value) + 1}/{len(self.choices)}"
            chosen, other = (self.get_component_rich_style(f"pick--{name}") for name in ("chosen", "other"))
            if len(self.value) + 4 + len(place) > width:
                place = ""
            parts = [Segment("◂ ", other), Segment(self.value, chosen), Segment(" ▸", other), Segment(place, other)]
            return Strip(parts).adjust_cell_length(width, self.rich_style)
        segments = []
        for choice, wide in zip(self.choices, self._widths(), strict=True):
            name = "chosen" if choice == self.value else "other"
            style: Style = self.get_component_rich_style(f"pick--{name}")
            mark = "●" if choice == self.value else "○"
            segments += [Segment(f"{mark} {choice}", style), Segment(" " * (wide - len(choice) - 2), self.rich_style)]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _widths(self) -> list[int]:
        return [len(choice) + 4 for choice in self.choices]

    @property
    def _all_fit(self) -> bool:
        return sum(self._widths()) - 2 <= self.content_size.width

    def on_click(self, event: events.Click) -> None:
        if not self._all_fit:
            self.action_step(1)
            return
        left = 0
        offset = event.get_content_offset(self)
        for choice, wide in zip(self.choices, self._widths(), strict=True):
            if offset is not None and left <= offset.x < left + wide:
                self.value = choice
            left += wide


class Field(Vertical):
    """One option: its name, its value in the way that suits it, and what is wrong with it, if anything.

    Name and unit are drawn by the field itself: of widgets there are as few as can be, since every one of them is
    styled and laid out with each change of the screen.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"field--name", "field--unit"}

    @dataclasses.dataclass
    class Changed(Message):
        """The value was changed by the user."""

        field: Field

    def __init__(self, definition: dataclasses.Field):
        super().__init__(id=f"field-{definition.name}")
        self.name_of_option = definition.name
        self._option: Option = definition.metadata["option"]
        self._default = definition.default
        self._problem = ""
        self.help = field_help(definition)

    def compose(self) -> ComposeResult:
        name = f"value-{self.name_of_option}"
        if self._option.choices and self._default is not None:
            control = Pick(self._option.choices, self._default, id=name, help=self.help)
        else:
            # Values are checked together; Textual's own check would style a field anew whenever it is left.
            control = Input(placeholder=self._usual(), id=name, compact=True, select_on_focus=False, validate_on=())
        control.styles.margin = (0, len(self._option.unit) + 1 if self._option.unit else 0, 0, _NAME_WIDTH)
        yield control

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if y:
            return Strip.blank(width, self.rich_style)
        name, unit = self.name_of_option.replace("_", " "), self._option.unit
        name_style, unit_style = (self.get_component_rich_style(f"field--{part}") for part in ("name", "unit"))
        return Strip([Segment(name.ljust(width - len(unit)), name_style), Segment(unit, unit_style)], width)

    @property
    def control(self) -> Input | Pick:
        return self.query_one(f"#value-{self.name_of_option}")  # type: ignore[return-value]

    @property
    def text(self) -> str | None:
        """The value as text; None where it is the default."""
        value = self.control.value.strip()
        return None if not value or value == self._default else value

    def fill(self, value: object) -> None:
        """Shows a value that came from elsewhere, without saying that it changed."""
        with self.prevent(Input.Changed, Pick.Changed):
            if isinstance(self.control, Pick):
                self.control.value = str(value if value is not None else self._default)
            elif value is None:
                self.control.value = "all" if self._option.auto == "all" and self._default is not None else ""
            else:
                self.control.value = "" if value == self._default else _text(value)

    def show_problem(self, problem: str, usual: object = None) -> None:
        """Shows what is wrong ('' for nothing), and the value that an empty field stands for."""
        if problem != self._problem:
            self._problem = problem
            self.query(".field-problem").remove()
            if problem:
                self.mount(Static(f"✗ {problem}", classes="field-problem", markup=False))
        placeholder = self._usual() if usual is None else _text(usual)
        if isinstance(self.control, Input) and self.control.placeholder != placeholder:
            self.control.placeholder = placeholder

    def _usual(self) -> str:
        return self._option.auto if self._default is None else _text(self._default)

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self))

    def on_pick_changed(self, event: Pick.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self))


class Entry(Input):
    """A line to type in, with its help."""

    def __init__(self, *, id: str, placeholder: str, help: str):
        super().__init__(placeholder=placeholder, id=id, compact=True)
        self.help = help


class Form(Vertical):
    """A field for every option, in groups. Up and down move between fields."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Field before", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]

    def __init__(self, essential: Sequence[str], elsewhere: Sequence[str], *, id: str):
        """Options in `essential` come first, in a group of their own; those in `elsewhere` have no field here."""
        super().__init__(id=id)
        by_name = {option.name: option for option in options() if option.name not in elsewhere}
        self._groups = {"essentials": [by_name.pop(name) for name in essential]}
        for option in by_name.values():
            # The app starts runs in one process.
            if (group := option.metadata["option"].group) != "ranks":
                self._groups.setdefault(group, []).append(option)

    def compose(self) -> ComposeResult:
        for group, fields in self._groups.items():
            title = GROUP_TITLES.get(group, group)
            with Vertical(classes="field-group", id=f"group-{group}"):
                yield Static(title[0].upper() + title[1:], classes="group-title", markup=False)
                for definition in fields:
                    yield Field(definition)


def field_help(definition: dataclasses.Field) -> str:
    """What an option is, its range and its default, as F1 and the help line show it."""
    option: Option = definition.metadata["option"]
    facts = []
    if option.minimum is not None:
        facts.append(f"above {option.minimum:g}" if option.exclusive_minimum else f"at least {option.minimum:g}")
    if option.choices:
        facts.append("one of " + ", ".join(option.choices))
    usual = option.auto if definition.default is None else _text(definition.default)
    facts.append(f"default: {usual}")
    text = f"{definition.name}: {option.help}"
    return f"{text} ({'; '.join(facts)})"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
