"""The form of a run's options, generated from their definitions: label, value, unit, help, problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from mlxzo.core.config import options
from mlxzo.core.defaults import UNLIMITED_STEPS
from mlxzo.core.options import GROUP_TITLES, Option

# Cells for the names of options, to the left of all values; and the longest default that fits beside them.
_NAME_WIDTH = 20
_LONGEST_DEFAULT = 10


class Pick(Widget, can_focus=True):
    """One of a few choices, all in view: ● the chosen one, ○ the others."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Before", show=False),
        Binding("right,l,space", "step(1)", "Next choice", key_display="→"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"pick--chosen", "pick--other"}

    value: reactive[str] = reactive("")

    @dataclasses.dataclass
    class Changed(Message):
        """Another choice was made."""

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
            # Too narrow for all: the chosen one, its number and the count.
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
    """One option: its name, a control for its value, its unit and its problem, if any.

    The name of an option that has another value than its default is bold.

    The field draws name and unit itself: every widget costs styling and layout with each change of the screen.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"field--name", "field--changed", "field--unit"}

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
        self.control = self._make_control(f"value-{definition.name}")
        self.control.styles.margin = (0, len(self._option.unit) + 1 if self._option.unit else 0, 0, _NAME_WIDTH)

    def _make_control(self, name: str) -> Input | Pick:
        if self._option.choices and self._default is not None:
            return Pick(self._option.choices, str(self._default), id=name, help=self.help)
        # Values are checked together; Textual's own check would restyle a field whenever it loses the focus.
        return Input(placeholder=self._usual(), id=name, compact=True, select_on_focus=False, validate_on=())

    def compose(self) -> ComposeResult:
        yield self.control

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if y:
            return Strip.blank(width, self.rich_style)
        name, unit = self.name_of_option.replace("_", " "), self._option.unit
        parts = ("name" if self.text is None else "changed", "unit")
        name_style, unit_style = (self.get_component_rich_style(f"field--{part}") for part in parts)
        return Strip([Segment(name.ljust(width - len(unit)), name_style), Segment(unit, unit_style)], width)

    @property
    def text(self) -> str | None:
        """The value as text; None for the default."""
        value = self.control.value.strip()
        return None if not value or value == self._default else value

    def fill(self, value: object) -> None:
        """Shows a value without posting `Changed`."""
        with self.prevent(Input.Changed, Pick.Changed):
            if isinstance(self.control, Pick):
                self.control.value = str(value if value is not None else self._default)
            elif value is None:
                self.control.value = "all" if self._option.auto == "all" and self._default is not None else ""
            else:
                self.control.value = "" if value == self._default else _text(value)
        self.refresh()

    def show_problem(self, problem: str, usual: object = None) -> None:
        """Shows the problem ('' for none), and the value that an empty field stands for."""
        if problem != self._problem:
            self._problem = problem
            self.query(".field-problem").remove()
            if problem:
                self.mount(Static(f"✗ {problem}", classes="field-problem", markup=False))
        # A number that stands for no limit is told in words.
        placeholder = self._usual() if usual is None else "no limit" if usual == UNLIMITED_STEPS else _text(usual)
        if isinstance(self.control, Input) and self.control.placeholder != placeholder:
            self.control.placeholder = placeholder

    def _usual(self) -> str:
        """The default as a value; the line of help has the rule by which a long one is chosen."""
        usual = self._option.auto if self._default is None else _text(self._default)
        return usual if len(usual) <= _LONGEST_DEFAULT else "auto"

    @on(Input.Changed)
    @on(Pick.Changed)
    def _changed(self, event: Message) -> None:
        event.stop()
        self.refresh()
        self.post_message(self.Changed(self))


class Entry(Input):
    """A text field with help."""

    def __init__(self, *, id: str, placeholder: str, help: str):
        super().__init__(placeholder=placeholder, id=id, compact=True)
        self.help = help


class Form(Vertical):
    """Fields of options in groups. Up and down move between them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Field before", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]

    def __init__(self, essential: Sequence[str], elsewhere: Sequence[str], *, id: str):
        """Options in `essential` form the first group; those in `elsewhere` have no field."""
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
    """Help, range and default of an option, for F1 and the help line."""
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
    """A value as it is typed, with all of its digits."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)
