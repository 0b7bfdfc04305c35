"""Contents of the monitor's panels, made from the history of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from mlxzo.core import events
from mlxzo.core.formatting import (
    bytes_alike,
    bytes_of,
    format_bytes,
    format_count,
    format_loss,
    format_metric,
    format_percent,
    memory_text,
    objective_words,
    printable,
    speed_text,
)
from mlxzo.core.metrics import metric_named, standard_error
from mlxzo.core.result_summary import result_summary
from mlxzo.core.run_history import Columns, Measurement, RunHistory

from .feed import Replay, RunFeed
from .log import PHASES, EventLog
from .population import (
    REWARDS_EMPTY,
    REWARDS_HELP,
    answers_panel,
    draw_rewards,
    is_evolution,
    mark,
    mean_steps,
    population_rows,
    running_mean,
)
from .resume_info import checkpoint_rows
from .widgets.axis_labels import PLAIN, metric_scale
from .widgets.canvas import Line, Moment, Rule
from .widgets.chart import Chart

_LOG_LINES = 300
_PROMPT_CHARACTERS = 160
# The least vertical range of a chart of shares.
_LEAST_SPAN = 0.1
LOSS_EMPTY = "The training loss appears with the first step."
LOSS_HELP = (
    "The objective at each step: the training loss, or another one by the option objective, such as 1 - accuracy. "
    "Faint: every step; bright: the mean of the last steps, a twentieth of those so far. A zeroth-order run is noisy: "
    "judge it by the mean and by the validation metric."
)


def column_line(label: str, table: Columns, x: str, y: str, style: str, *, area: bool = False, end: str = "") -> Line:
    """A line between two columns of a table."""
    return Line(label, np.array(table[x]), np.array(table[y]), style, area=area, end=end)


def metric_line(
    label: str, found: Sequence[Measurement], x: Sequence[float], style: str, marks: str | Sequence[str]
) -> Line:
    """The values of evaluations at `x`; a value that is not finite is NaN."""
    return Line(
        label, np.array(x, dtype=float), np.array([each.value for each in found], dtype=float), style, marks=marks
    )


def standard_errors(found: Sequence[Measurement]) -> np.ndarray | None:
    """The standard error of each evaluation; None for a metric that is no share."""
    if not all(metric_named(each.evaluation.metric).is_share for each in found):
        return None
    shares = [(each.evaluation.value, each.evaluation.examples) for each in found]
    return np.array([math.nan if value is None else standard_error(value, count) for value, count in shares])


def mean_line(label: str, history: RunHistory, x: str, style: str, *, end: str = "") -> Line:
    """The training loss over a column of the steps, each value the mean of the last `mean_steps`."""
    return Line(label, np.array(history.steps[x]), running_mean(np.array(history.steps["loss"])), style, end=end)


def _draw_loss(chart: Chart, feed: RunFeed | Replay) -> None:
    history, step = feed.history, feed.history.step
    if is_evolution(feed):
        chart.empty, chart.help = REWARDS_EMPTY, REWARDS_HELP
        draw_rewards(chart, feed)
        return
    chart.empty, chart.help, chart.scale = LOSS_EMPTY, LOSS_HELP, PLAIN
    objective = objective_words("loss" if feed.config is None else feed.config.objective)
    chart.title = "1 Loss" if objective == "loss" else f"1 Objective: {objective}"
    note, mean = "", mean_line("mean", history, "step", "one")
    if step is not None:
        share = _tie_share(feed)
        last = f"ties {100 * share:.0f} %" if share else f"last {format_loss(step.loss)}"
        note = f"mean of {mean_steps(len(history.steps))}: {format_loss(_last(mean.y))} · {last}"
    every = column_line(objective, history.steps, "step", "loss", "faint")
    chart.show([every, mean], note=note)


def _last(values: np.ndarray) -> float | None:
    return float(values[-1]) if np.isfinite(values[-1]) else None


def _tie_share(feed: RunFeed | Replay) -> float:
    return feed.history.tie_share(1 if feed.config is None else feed.config.direction_count)


def _draw_metric(chart: Chart, feed: RunFeed | Replay) -> None:
    history = feed.history
    zero, best, found = history.zero_shot.get("validation"), history.best, history.validation
    metric = history.metric or "accuracy"
    chart.title, chart.scale = f"2 Validation {metric}", metric_scale(metric)
    chart.least_span = least_span(metric)
    rules = []
    if zero is not None:
        before, majority = format_metric(metric, zero.value), format_metric(metric, zero.majority)
        if before == majority:
            rules.append(Rule(f"zero-shot = majority {before}", zero.value, short="zero-shot = majority"))
        else:
            rules.append(Rule(f"zero-shot {before}", zero.value, short="zero-shot"))
            if zero.majority is not None:
                rules.append(Rule(f"majority class {majority}", zero.majority, "axis", "┄", short="majority"))
    note = "" if best is None else f"best {format_metric(metric, best.value)} at step {best.step}"
    marks = ["★" if each.evaluation is best else "●" for each in found]
    line = metric_line(metric, found, [each.step for each in found], "two", marks)
    line = replace(line, band=standard_errors(found))
    until = None if history.step is None else float(history.step.step)
    chart.show([line] if found else [], rules, note=note, until=until)


def least_span(*metrics: str) -> float:
    """The least vertical range of a chart of these metrics: of shares, 10 points."""
    return _LEAST_SPAN if all(metric_named(metric).is_share for metric in metrics) else 0.0


def _draw_memory(chart: Chart, feed: RunFeed | Replay) -> None:
    history = feed.history
    peak, cap = history.most_bytes, history.cap_bytes
    note, rules = "", []
    peak_text, *cap_text = bytes_alike(peak, *([] if cap is None else [cap]))
    if len(history.footprints):
        note = f"peak {peak_text}" if cap is None else f"peak {bytes_of(peak, cap)} ({100 * peak / cap:.0f} %)"
        rules.append(Rule(f"peak {peak_text}", peak, over=False))
    if cap is not None:
        rules.append(Rule(f"cap {cap_text[0]}", cap, "limit", "━", short="cap"))
    moments = [Moment(PHASES.get(name, name), at) for name, at in history.phases]
    line = column_line("in use", history.footprints, "elapsed", "bytes", "three", area=True)
    chart.show([line], rules, moments, note=note)


def _draw_speed(chart: Chart, feed: RunFeed | Replay) -> None:
    history, step = feed.history, feed.history.step
    note = "" if step is None else f"{speed_text(step.steps_per_second)} · {step.tokens_per_second:,.0f} tokens/s"
    chart.show([column_line("steps/s", history.steps, "step", "steps_per_second", "four")], note=note)


# By the panel's name.
CHARTS = {"loss": _draw_loss, "accuracy": _draw_metric, "memory": _draw_memory, "speed": _draw_speed}


def facts_rows(feed: RunFeed | Replay) -> list[tuple[str, str]]:
    """Facts of a run, as names and values; a sentence until there are any."""
    history = feed.history
    loaded, step = history.loaded, history.step
    rows: list[tuple[str, str]] = []
    if loaded is not None:
        share = format_percent(loaded.trainable_parameters / max(1, loaded.parameters))
        rows.append(("model", f"{loaded.model}, {format_count(loaded.parameters)} parameters"))
        rows.append(("trains", f"{format_count(loaded.trainable_parameters)} of them ({share})"))
        rows.append(("task", loaded.task))
    if history.outcome is None and not feed.died:
        # Afterwards it stands above all panels.
        rows += result_summary(history)
    rows += population_rows(feed)
    if share := _tie_share(feed):
        rows.append(("ties", f"on {100 * share:.0f} % of the directions: no signal"))
    rows += checkpoint_rows(feed.run, history)
    if history.memory is not None:
        # The peak of the whole run: that of an event is of its worker, which a resumed run had others before.
        peak = replace(history.memory, peak_footprint_bytes=history.most_bytes)
        rows.append(("memory", memory_text(peak)))
        rows.append(("machine", _machine_text(history.memory)))
    if loaded is not None:
        counts = f"{loaded.train_examples} training, {loaded.validation_examples} validation"
        rows.append(("examples", f"{counts}, {loaded.test_examples} test"))
    if step is not None:
        rows.append(("damping", f"{step.damping:.3g}") if step.damping else ("lr", f"{step.lr:.3g}"))
    return rows or [("", "The facts of the run appear when the model is loaded.")]


def samples_panel(history: RunHistory) -> RenderableType:
    """Prompts with the model's answers before training and at the last evaluation; first those of a population."""
    if history.written is None:
        return _samples_text(history)
    return answers_panel(history.written, history.objective, history.samples)


def _samples_text(history: RunHistory) -> Text:
    if not history.samples:
        return Text("Answers to a few validation prompts appear with the first evaluation.", "dim")
    first, last = history.samples[0], history.samples[-1]
    text = Text()
    for before, now in zip(first.items, last.items, strict=False):
        prompt = str(now["prompt"])
        cut = "…" if len(prompt) > _PROMPT_CHARACTERS else ""
        text.append(cut + printable(prompt[-_PROMPT_CHARACTERS:].replace("\n", " ⏎ ")), "dim")
        text.append("\n")
        for words, item in (("before", before), ("now", now))[: len(history.samples)]:
            text.append(
                f"  {mark(item)} {words:<6} {printable(item['answer']).strip()}", "bold" if words == "now" else ""
            )
            # Generated text has no probability among candidates.
            text.append("\n" if item["share"] is None else f" {100 * item['share']:.0f} %\n", "dim")
    text.rstrip()
    return text


def _machine_text(memory: events.Memory) -> str:
    """Available memory, swap and memory pressure of the machine."""
    pressure = {1: ", pressure normal", 2: ", pressure warning", 4: ", pressure critical"}.get(memory.pressure or 0, "")
    available, swap = format_bytes(memory.available_bytes), format_bytes(memory.swap_used_bytes)
    return f"{available} available, {swap} in swap{pressure}"


def log_text(log: EventLog) -> Text:
    """The last lines of the log, with the time of day."""
    lines = [
        Text.assemble((f"{datetime.fromtimestamp(line.time):%H:%M:%S} ", "dim"), f"{line.mark} {printable(line.text)}")
        for line in log.lines[-_LOG_LINES:]
    ]
    return Text("\n").join(lines) if lines else Text("No events yet.", "dim")
