"""The events of a run on the console: a live line on a terminal, plain lines anywhere else; and tables.

Events go to stderr, so that stdout is free for results. Words and marks carry the meaning, not colour alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..core import events
from ..core.formatting import (
    counted,
    eta_text,
    evaluated_line,
    format_amount,
    format_bytes,
    format_seconds,
    format_share,
    left_text,
    loaded_line,
    memory_text,
    objective_value,
    printable,
    ranks_text,
    speed_text,
    step_share,
    step_text,
)
from ..core.result_summary import ended_text, result_summary
from ..core.run_history import RunHistory

_PLAIN_SECONDS = 10.0
_PHASES = {
    "fetch": "Fetching the model",
    "load": "Loading the model and the data",
    "baseline": "Zero-shot, before training",
    "cache": "Caching the frozen layers",
    "train": "Training",
    "evaluate": "Evaluating",
    "test": "Evaluating on the test split",
    "save": "Saving",
}


class LiteralConsole(Console):
    """A console that shows text as it is: in names, files and answers of models neither brackets nor colons nor control
    characters have a meaning."""

    def __init__(self, *, stderr: bool = False, width: int | None = None):
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # The width of such characters is counted as 0.
            yield segment if segment.control else segment._replace(text=printable(segment.text, instead=""))


class RunView:
    """Renders events one by one. Leaving its `with` block removes the live line.

    Attributes:
        overall: a line below the live ones, such as the progress of a whole sweep; empty for none.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic):
        self.console = console or LiteralConsole(stderr=True)
        self._clock = clock
        self._live: Live | None = None
        self._last_plain = -_PLAIN_SECONDS
        # Of the progress that is shown: its last event, and when its first one came.
        self._wait: tuple[events.Progress, float] | None = None
        self._memory = ""
        self._ranks = ""
        # Of each run by its id: its objective, and whether its steps are those of a population.
        self._objectives: dict[str, str] = {}
        self._populations: set[str] = set()
        self._trains = False
        self._run = ""
        self.overall = ""

    def __enter__(self) -> RunView:
        return self

    def __exit__(self, *_: object) -> None:
        self._take_down()

    def show(self, event: events.Event) -> None:
        """Renders one event; some kinds have nothing to show."""
        match event:
            case events.Phase(phase="evaluate" | "save"):
                # An evaluation has its own line when it is done.
                pass
            case events.Phase(phase="train") if self._trains:
                # Back from an evaluation.
                pass
            case events.Phase():
                self._trains = event.phase == "train"
                self._say(_PHASES.get(event.phase, event.phase) + (f": {event.detail}" if event.detail else ""))
            case events.Progress():
                began = self._wait_began(event)
                self._transient(lambda: self._progress_lines(event, began))
            case events.Loaded():
                self._objectives[self._run] = event.objective
                self._say(loaded_line(event))
            case events.Population():
                self._populations.add(self._run)
            case events.Step():
                self._transient(lambda: self._step_lines(event), final=event.step == event.steps)
            case events.Evaluated():
                if event.kind == "validation" and not event.best:
                    self._transient(lambda: [Text(evaluated_line(event))])
                else:
                    self._say(evaluated_line(event), style="bold" if event.best else "")
            case events.Memory():
                self._memory = f"  memory {memory_text(event)}"
            case events.RankStats():
                self._ranks = f"  {ranks_text(event)}"
            case events.Paused():
                self._say(
                    f"Paused after step {event.step}: `mlxzo runs continue RUN` resumes, `mlxzo runs stop RUN` ends"
                )
            case events.Unpaused():
                self._say(f"Continued after {format_seconds(event.seconds)}")
            case events.Note():
                self._say(f"Note: {event.text}")

    def _say(self, text: str, style: str = "") -> None:
        """Prints a permanent line."""
        self._take_down()
        # The terminal wraps the line, so that a path can be copied whole.
        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def _transient(self, lines: Callable[[], list[Text]], final: bool = False) -> None:
        """Shows lines until the next ones replace them; without a terminal, prints them every few seconds."""
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(Group(*lines()), refresh=True)
        elif final or self._clock() - self._last_plain >= _PLAIN_SECONDS:
            self._last_plain = self._clock()
            self.console.print(Text("  ".join(line.plain for line in lines())), soft_wrap=True)

    def _take_down(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _step_lines(self, step: events.Step) -> list[Text]:
        share = step_share(step)
        percent = "" if share is None else f"{100 * share:.0f} %"
        parts = [step_text(step), percent, speed_text(step.steps_per_second), eta_text(step)]
        head = "  ".join(part for part in parts if part)
        name, value = self._reached(step.loss)
        _, smoothed = self._reached(step.smoothed_loss)
        text = f"{name} {value}  smoothed {smoothed}  {step.tokens_per_second:,.0f} tokens/s{self._memory}{self._ranks}"
        return self._with_bar(share, [head, text])

    def _reached(self, loss: float) -> tuple[str, str]:
        """Name and value of what a step of the run reached."""
        return objective_value(self._objectives.get(self._run, "loss"), loss, self._run in self._populations)

    def _wait_began(self, progress: events.Progress) -> float:
        """When the work began that an event tells of: work of the same name begins anew where less of it is done."""
        last, began = self._wait or (None, 0.0)
        if last is None or last.label != progress.label or progress.done < last.done:
            began = self._clock()
        self._wait = progress, began
        return began

    def _progress_lines(self, progress: events.Progress, began: float) -> list[Text]:
        text = progress.label
        if progress.total:
            text += f": {format_share(progress.done, progress.total, progress.unit)}"
            seconds = self._clock() - began
            if 0 < progress.done < progress.total and seconds > 1:
                text += "  " + left_text(seconds * (progress.total - progress.done) / progress.done)
        elif progress.done:
            text += f": {format_amount(progress.done, progress.unit)}"
        share = progress.done / progress.total if progress.total else None
        return self._with_bar(share, [printable(text)])

    def _with_bar(self, share: float | None, lines: list[str]) -> list[Text]:
        """The lines of a wait, below a bar where the share that is done is known."""
        texts = [Text(line) for line in (*lines, self.overall) if line]
        width = min(60, self.console.width - 1)
        if share is not None and self.console.is_terminal and width >= 20:
            full, empty = ("━", "─") if self.console.encoding.startswith("utf") else ("#", "-")
            filled = round(width * min(1.0, share))
            texts.insert(0, Text.assemble((full * filled, "green"), (empty * (width - filled), "dim")))
        return texts


class RunsView(RunView):
    """Renders events of several runs side by side: one live line each, and permanent lines that begin with the id."""

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock=clock)
        self._steps: dict[str, str] = {}

    def show(self, event: events.Event, run: str = "") -> None:
        """Renders one event of the run with this id; an empty id stands for no single run."""
        self._run = run
        match event:
            case events.Step():
                parts = [f"{run}: {step_text(event)}", " ".join(self._reached(event.smoothed_loss))]
                self._steps[run] = "  ".join([*parts, eta_text(event)]).rstrip()
                self._transient(lambda: self._with_bar(None, list(self._steps.values())))
            case events.Finished() | events.Failed():
                self._steps.pop(run, None)
            case events.Phase() | events.Progress() | events.Memory():
                # Too many lines for several runs.
                pass
            case _:
                super().show(event)

    def _say(self, text: str, style: str = "") -> None:
        super()._say(text if self._run in text else f"{self._run}: {text}", style)


def summary_rows(history: RunHistory) -> list[tuple[str, str]]:
    """Names and values of a run's result, and then of its speed and its memory."""
    rows = result_summary(history)
    if count := len(history.steps):
        seconds, padded = history.training_seconds, history.total("padded_tokens")
        training = f"{counted(count, 'step')} in {format_seconds(seconds)}"
        training += f", {speed_text(count / seconds if seconds else 0.0)}{ended_text(history)}"
        if padded:
            training += f"; {100 * (1 - history.total('tokens') / padded):.0f} % of all tokens were padding"
        rows.append(("training", training))
    if (footprint := history.footprint_bytes) is not None:
        peak = f"{format_bytes(footprint)} (MLX's arrays {format_bytes(history.peak_bytes or 0)})"
        cap = "" if history.cap_bytes is None else f"; cap {format_bytes(history.cap_bytes)}"
        rows.append(("peak memory", peak + cap))
    return rows


def key_values(rows: list[tuple[str, str]]) -> Table:
    """A table of two columns without lines, which folds on narrow terminals."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label, style="dim"), Text(printable(value)))
    return table


def listing(columns: list[str], rows: list[list[str]], *, right: tuple[str, ...] = ()) -> Table:
    """A table with a header: the first column never wraps, the columns named in `right` are aligned right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold", justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def output() -> Console:
    """The console for results on stdout; without a terminal, 200 columns wide, so that scripts can read the lines."""
    console = LiteralConsole()
    return console if console.is_terminal else LiteralConsole(width=200)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows a spinner on stderr during the `with` block, on a terminal."""
    console = LiteralConsole(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(printable(text))):
        yield
