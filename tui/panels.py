"""What the panels of the monitor show: each is drawn from the history of a run, and asks no screen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from rich.table import Table
from rich.text import Text

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import Interrupted
from mlxzo.core.formatting import (
    format_amount,
    format_bytes,
    format_count,
    format_loss,
    format_metric,
    format_seconds,
    format_share,
    memory_text,
    objective_words,
    printable,
    ranks_text,
)
from mlxzo.core.metrics import metric_named
from mlxzo.core.run_history import RunHistory

from .feed import DIED, Replay, RunFeed
from .log import PHASES, EventLog
from .resume_info import kept_rows
from .widgets.axis_labels import of_metrics
from .widgets.canvas import Line, Moment, Rule
from .widgets.chart import Chart

_LOG_LINES = 300


def state_words(feed: RunFeed | Replay) -> tuple[str, str]:
    """A mark and a word for how a run stands."""
    outcome, history = feed.history.outcome, feed.history
    if isinstance(feed, Replay) and feed.paused:
        return "‖", "demo paused"
    if isinstance(outcome, events.Finished):
        return "✓", "finished"
    if isinstance(outcome, events.Failed):
        return ("■" if outcome.kind == Interrupted.kind else "✗"), outcome.title.lower()
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
        parts.append(DIED)
    else:
        if step is not None and live and step.step < step.steps:
            parts.append(f"{step.steps_per_second:.2f} steps/s")
            parts.append(f"ETA {format_seconds(step.eta_seconds)}")
            if history.ranks is not None:
                parts.append(ranks_text(history.ranks))
        parts.append(f"elapsed {format_seconds(history.elapsed)}")
        if (best := history.best) is not None:
            where = "zero-shot" if best.kind == "zero-shot" else f"step {best.step}"
            parts.append(f"best {best.metric} {format_metric(best.metric, best.value)} at {where}")
    if len("   ".join(parts)) > width:
        # What can be told from the rest goes first.
        parts = [part for part in parts if not part.startswith("elapsed")]
    return Text.assemble(left, "\n", (printable("   ".join(parts)), "dim"))


def draw_loss(chart: Chart, history: RunHistory, config: RunConfig | None) -> None:
    """What the run minimises, step by step; `config` is None where it is not known."""
    what = objective_words("loss" if config is None else config.objective)
    chart.title = "1 Loss" if what == "loss" else f"1 Objective: {what}"
    note = ""
    if history.step is not None:
        share = tie_share(history, config)
        last = f"ties {100 * share:.0f} %" if share else f"last {format_loss(history.step.loss)}"
        note = f"smoothed {format_loss(history.step.smoothed_loss)} · {last}"
    steps = np.array(history.steps["step"])
    losses, smoothed = np.array(history.steps["loss"]), np.array(history.steps["smoothed_loss"])
    chart.show([Line(what, steps, losses, "faint"), Line("smoothed", steps, smoothed, "one")], note=note)


def tie_share(history: RunHistory, config: RunConfig | None) -> float:
    """The share of the directions so far that gave no signal."""
    return history.tie_share(1 if config is None else config.queries or 1)


def draw_accuracy(chart: Chart, history: RunHistory) -> None:
    zero, best, found = history.zero_shot.get("validation"), history.best, history.validation
    metric = history.metric or "accuracy"
    chart.title = f"2 Validation {metric}"
    chart.y_labels, chart.y_value = of_metrics([metric_named(metric)]), metric_named(metric).text
    rules = []
    if zero is not None:
        before, largest = format_metric(metric, zero.value), format_metric(metric, zero.majority)
        if before == largest:
            rules.append(Rule(f"zero-shot = majority {before}", zero.value, short="zero-shot"))
        else:
            rules.append(Rule(f"zero-shot {before}", zero.value, short="zero-shot"))
            if zero.majority is not None:
                rules.append(Rule(f"majority class {largest}", zero.majority, "axis", "┄", short="majority"))
    note = ""
    if best is not None:
        note = f"best {format_metric(metric, best.value)} at step {best.step}"
    series = Line(
        metric,
        np.array([each.step for each in found], dtype=float),
        # A value that was not finite is None.
        np.array([each.value for each in found], dtype=float),
        "two",
        marks=["★" if each.evaluation is best else "●" for each in found],
    )
    until = None if history.step is None else float(history.step.step)
    chart.show([series] if found else [], rules, note=note, until=until)


def draw_memory(chart: Chart, history: RunHistory) -> None:
    seconds, memory = np.array(history.footprints["elapsed"]), np.array(history.footprints["bytes"])
    peak, cap = history.most_bytes, history.cap_bytes
    note, rules = "", []
    if len(memory):
        note = f"peak {format_bytes(peak)}"
        rules.append(Rule(note, peak, over=False))
    if cap is not None:
        rules.append(Rule(f"cap {format_bytes(cap)}", cap, "limit", "━", short="cap"))
        note += f" of {format_bytes(cap)} ({100 * peak / cap:.0f} %)"
    moments = [Moment(PHASES.get(name, name), at) for name, at in history.phases]
    chart.show([Line("in use", seconds, memory, "three", area=True)], rules, moments, note=note)


def draw_speed(chart: Chart, history: RunHistory) -> None:
    note = ""
    if history.step is not None:
        note = f"{history.step.steps_per_second:.2f} steps/s · {history.step.tokens_per_second:,.0f} tokens/s"
    steps, speeds = np.array(history.steps["step"]), np.array(history.steps["steps_per_second"])
    chart.show([Line("steps/s", steps, speeds, "four")], note=note)


def facts_rows(feed: RunFeed | Replay) -> list[tuple[str, str]]:
    """Names and values of what is known of a run."""
    history = feed.history
    loaded, step, best, test = history.loaded, history.step, history.best, history.test
    zero = history.zero_shot.get("validation")
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
    if share := tie_share(history, feed.config):
        rows.append(("ties", f"on {100 * share:.0f} % of the directions, which told nothing"))
    rows += kept_rows(feed.run, history)
    if history.memory is not None:
        rows.append(("memory", memory_text(history.memory)))
        rows.append(("machine", machine_text(history.memory)))
    if loaded is not None:
        counts = f"{loaded.train_examples} training, {loaded.validation_examples} validation"
        rows.append(("examples", f"{counts}, {loaded.test_examples} test"))
    if step is not None:
        rows.append(("lr", f"{step.lr:.3g}"))
    return [(name, printable(value)) for name, value in rows]


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values below each other."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows or [("", "The facts of the run appear when the model is loaded.")]:
        table.add_row(name, value)
    return table


def samples_text(history: RunHistory) -> Text:
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


def log_text(log: EventLog) -> Text:
    """The last lines of the log, each with its time of day."""
    lines = [
        Text.assemble((f"{datetime.fromtimestamp(line.time):%H:%M:%S} ", "dim"), f"{line.mark} {printable(line.text)}")
        for line in log.lines[-_LOG_LINES:]
    ]
    return Text("\n").join(lines) if lines else Text("Nothing has happened yet.", "dim")
