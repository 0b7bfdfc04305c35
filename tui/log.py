"""The event log of a run: its events as lines of text, each with a time and a mark."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlxzo.core import events
from mlxzo.core.formatting import evaluated_line, format_seconds, loaded_line

# Words for the phases of a run, as the log and the status line say them.
PHASES = {
    "fetch": "fetching",
    "load": "loading",
    "baseline": "zero-shot",
    "cache": "caching",
    "train": "training",
    "evaluate": "evaluating",
    "test": "testing",
    "save": "saving",
}


@dataclass(frozen=True)
class LogLine:
    """One line of the event log: when (seconds since the epoch), a mark and the words."""

    time: float
    mark: str
    text: str


class EventLog:
    """The lines of one run so far; `add` takes its events in order."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        # `train` returns after every evaluation, which has its own line: each phase is listed once.
        self._phases = {"evaluate", "save"}

    def add(self, event: events.Event, time: float, elapsed: float) -> None:
        """Takes the next event, its time (seconds since the epoch), and the seconds since the run's first event."""
        match event:
            case events.Evaluated():
                mark = "★" if event.best and event.kind == "validation" else "●"
                self._say(time, mark, evaluated_line(replace(event, best=False)))
            case events.Phase() if event.phase not in self._phases:
                self._phases.add(event.phase)
                words = PHASES.get(event.phase, event.phase)
                self._say(time, "▸", words + (f": {event.detail}" if event.detail else ""))
            case events.Loaded():
                self._say(time, "▸", loaded_line(event))
            case events.Paused():
                self._say(time, "‖", f"paused after step {event.step}")
            case events.Unpaused():
                self._say(time, "▸", f"continued after {format_seconds(event.seconds)}")
            case events.Note():
                self._say(time, "i", event.text)
            case events.Failed():
                self._say(time, "✗", f"{event.title}: {event.message}")
                if event.fix:
                    self._say(time, " ", f"Fix: {event.fix}")
            case events.Finished():
                self._say(time, "✓", f"finished after {format_seconds(elapsed)}")

    def _say(self, time: float, mark: str, text: str) -> None:
        self.lines.append(LogLine(time, mark, text))
