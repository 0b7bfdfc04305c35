"""The state of a run in words: for the header of every screen, and for the frame at the top of the monitor."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from mlxzo.core import events
from mlxzo.core.errors import Interrupted
from mlxzo.core.formatting import (
    bytes_of,
    counted,
    eta_text,
    format_amount,
    format_bytes,
    format_metric,
    format_seconds,
    format_share,
    printable,
    ranks_text,
    speed_text,
    step_counts_text,
    step_share,
    step_text,
)
from mlxzo.core.result_summary import result_summary

from .feed import DIED, Replay, RunFeed
from .log import PHASES

# A bar of progress is drawn where it has this room, and takes no more.
_LEAST_BAR, _MOST_BAR = 8, 30
_REQUESTS = {"stop": ("▶", "stopping"), "pause": ("▶", "pausing"), "continue": ("‖", "continuing")}


def state_words(feed: RunFeed | Replay) -> tuple[str, str]:
    """A mark and a word for the state of a run."""
    outcome, history = feed.history.outcome, feed.history
    if isinstance(feed, Replay) and feed.paused:
        return "‖", "demo paused"
    if isinstance(outcome, events.Finished):
        return "✓", "finished"
    if isinstance(outcome, events.Failed):
        return ("■" if outcome.kind == Interrupted.kind else "✗"), outcome.title.lower()
    if feed.died:
        return "✗", "died"
    if feed.request:
        return _REQUESTS[feed.request]
    if history.paused:
        return "‖", "paused"
    if not history.phase:
        return "○", "starting" if feed.running else "not started"
    return "▶", PHASES.get(history.phase, history.phase)


def header_text(feed: RunFeed | Replay, width: int, name: str = "") -> Text:
    """One line: the state of a run, its progress, its memory against the cap, and its metric; shorter in less room.

    Args:
        name: of the run, put first where there is room.
    """
    for brief, first in ((0, name), (0, ""), (1, ""), (2, "")):
        text = _header(feed, width, brief, first)
        if cell_len(text.plain) <= width:
            return text
    text.truncate(width, overflow="ellipsis")
    return text


def _header(feed: RunFeed | Replay, width: int, brief: int, name: str) -> Text:
    words, share = _progress(feed, brief)
    state = " ".join(state_words(feed))
    left = Text(
        printable("  ".join(filter(None, (name, f"{state} {words}" if brief else state, "" if brief else words))))
    )
    right = [each for each in (_memory(feed, brief), _metric(feed, brief)) if each]
    gap = "   " if not brief else "  "
    room = width - cell_len(left.plain) - sum(len(gap) + cell_len(each.plain) for each in right)
    if share is not None and not brief:
        percent = f" {100 * share:.0f} %"
        bar_width = min(_MOST_BAR, room - len(percent) - 2)
        if bar_width >= _LEAST_BAR:
            left.append("  ").append_text(bar(share, bar_width))
        left.append(percent)
    return Text(gap).join([left, *right])


def _progress(feed: RunFeed | Replay, brief: int) -> tuple[str, float | None]:
    """The progress of the work at hand in words, and the share that is done; None where that is not known."""
    history, step = feed.history, feed.history.step
    progress = history.progress if history.outcome is None else None
    if progress is not None and progress.total:
        amount = format_share(progress.done, progress.total, progress.unit)
        share = progress.done / progress.total
        return f"{100 * share:.0f} %" if brief else f"{progress.label}: {amount}", share
    if progress is not None and progress.done:
        return f"{progress.label}: {format_amount(progress.done, progress.unit)}", None
    if step is None:
        return "", None
    if isinstance(history.outcome, events.Finished):
        return counted(step.step, "step"), None
    if brief:
        return step_counts_text(step.step, None if step.may_end_early else step.steps), None
    return step_text(step), step_share(step)


def _memory(feed: RunFeed | Replay, brief: int) -> Text | None:
    """The memory in use against the cap; of a run that has ended, the peak."""
    history = feed.history
    if not len(history.footprints):
        return None
    ended = history.outcome is not None or feed.died
    count = history.most_bytes if ended else int(history.footprints["bytes"][-1])
    word = "" if brief > 1 else "peak " if ended else "memory "
    if (cap := history.cap_bytes) is None:
        return Text(word + format_bytes(count))
    return Text.assemble(word, bar(count / cap, 6 if brief else 10), f" {bytes_of(count, cap)}")


def _metric(feed: RunFeed | Replay, brief: int) -> Text | None:
    """The metric before training and of the state kept: on the test split once measured there, until then on
    validation."""
    history = feed.history
    after = history.test or history.best
    if after is None:
        return None
    before = history.zero_shot.get(after.split)
    words = after.split if brief else f"{after.split} {after.metric}"
    value = format_metric(after.metric, after.value)
    if before is not None and before is not after and brief < 2:
        value = f"{format_metric(before.metric, before.value).removesuffix(' %')} -> {value}"
    return Text.assemble(f"{words} ", (value, "bold"))


def bar(share: float, width: int) -> Text:
    """A bar that is full at 1."""
    filled = round(width * min(1.0, max(0.0, share)))
    return Text.assemble(("━" * filled, "bold"), ("─" * (width - filled), "dim"))


def status_rows(feed: RunFeed | Replay, width: int) -> list[tuple[str, str]]:
    """The frame at the top of the monitor: pace and remaining time of a run that goes on; the end of another, and its
    result."""
    history = feed.history
    if history.outcome is None and not feed.died:
        return [("", _pace_text(feed, width))]
    rows = result_summary(history)
    if isinstance(history.outcome, events.Failed):
        rows.insert(0, ("ended", history.outcome.message))
    elif feed.died:
        rows.insert(0, ("ended", DIED))
    return rows or [("", f"elapsed {format_seconds(history.elapsed)}")]


def _pace_text(feed: RunFeed | Replay, width: int) -> str:
    history, step = feed.history, feed.history.step
    parts = [f"elapsed {format_seconds(history.elapsed)}"]
    # Neither speed nor ETA is that of a pause or of the test.
    if step is not None and history.phase == "train" and not history.paused and step.step < step.steps:
        ranks = [] if history.ranks is None else [ranks_text(history.ranks)]
        parts = [speed_text(step.steps_per_second), eta_text(step), *ranks, *parts]
    elif history.phase == "train" and step is None:
        parts.insert(0, "the first step, which is slower than the others")
    if (best := history.best) is not None:
        where = "zero-shot" if best.kind == "zero-shot" else f"step {best.step}"
        parts.append(f"best validation {best.metric} {format_metric(best.metric, best.value)} at {where}")
    parts = [part for part in parts if part]
    line = "   ".join(parts)
    # The elapsed time is the first to go, then what the header says as well.
    without = [part for part in parts if not part.startswith("elapsed")]
    return next((each for each in (line, "   ".join(without)) if len(each) <= width), "   ".join(without[:-1]) or line)
