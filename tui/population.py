"""The population of a run of ES in the monitor: the curve of its rewards, its facts, and answers of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from mlxzo.core import events
from mlxzo.core.config import GENERATED
from mlxzo.core.metrics import Metric, metric_named
from mlxzo.core.run_history import RunHistory

from .feed import Replay, RunFeed
from .widgets.axis_labels import metric_scale
from .widgets.canvas import Line
from .widgets.chart import Chart
from .widgets.text import Clipped, one_line

REWARDS_EMPTY = "The members' rewards appear with the first step."
REWARDS_HELP = (
    "The mean reward of a step's members over its prompts. Faint: every step; bright: the mean of the last steps, a "
    "twentieth of those so far; shaded: one standard deviation over the members of these steps. Below: eps, and the "
    "share of answers that differ from the most frequent one to the same prompt; 20 to 50 % are aimed at. With hardly "
    "any, or nearly all, there is nothing to learn from."
)
# Shares of changed answers beyond which the rewards of the members tell nearly nothing (see docs/rewards.md).
_TOO_FEW, _TOO_MANY = 0.1, 0.8
# Steps that values are averaged over, at least.
_LEAST_MEAN = 5
# Of a prompt, its last ones, and of an answer, its first ones.
_LINES = 2


def is_evolution(feed: RunFeed | Replay) -> bool:
    """True if the steps of a run come from populations; known from its options until the first one."""
    return len(feed.history.populations) > 0 or (feed.config is not None and feed.config.estimator == "es")


def mean_steps(count: int) -> int:
    """The number of steps to average over in a run of `count` steps so far."""
    return max(_LEAST_MEAN, count // 20)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean at each step of the last `mean_steps`, float64 [steps]; values that are not finite are left out."""
    known = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(known, values, 0.0), known))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - mean_steps(len(values)))
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def draw_rewards(chart: Chart, feed: RunFeed | Replay) -> None:
    """Draws the mean reward of the members over the steps, with its spread."""
    history, table = feed.history, feed.history.populations
    metric = _metric(history.objective if feed.config is None else feed.config.objective)
    chart.title = f"1 Mean {metric.name.replace('_', ' ')} of the members"
    chart.scale = metric_scale(metric.name)
    if (population := history.population) is None:
        chart.show([])
        return
    steps, every = np.array(table["step"]), np.array(table["mean"])
    step = Line("step", steps, every, "faint")
    mean = Line("mean", steps, running_mean(every), "one", band=running_mean(np.array(table["deviation"])))
    value = metric.text(float(mean.y[-1]))
    width = chart.content_size.width
    chart.show([step, mean], note=_note(value, mean_steps(len(steps)), population.eps, _changed(history), width))


def _note(value: str, count: int, eps: float, changed: float, width: int) -> str:
    """The mean of the last steps, eps and the share of changed answers, as far as they fit into `width` cells."""
    share = f"{100 * changed:.0f} % changed"
    long = short = share
    if word := _word(changed):
        short = f"{share}: too {word}"
        long = f"{short} to learn from"
    notes = (
        f"mean of {count}: {value} · eps {eps:.3g} · {long}",
        f"mean {value} · eps {eps:.3g} · {long}",
        *(f"mean {value} · {words}" for words in (long, short)),
    )
    return next((note for note in notes if len(note) + 2 <= width), short)


def population_rows(feed: RunFeed | Replay) -> list[tuple[str, str]]:
    """Facts of the population: its size, and eps with the share of answers that it changes."""
    history = feed.history
    if (last := history.population) is None:
        return []
    members, config, changed = len(last.rewards), feed.config, _changed(history)
    size = f"{members:,} members"
    if config is not None and config.batch_size is not None:
        size += f", {members * config.batch_size:,} answers a step"
    text = f"{last.eps:.3g}, changes {100 * changed:.0f} % of the answers"
    if word := _word(changed):
        text += f": too {word} to learn from"
    return [("population", size), ("eps", text)]


def _metric(objective: str) -> Metric:
    """What the members are judged by."""
    return metric_named(objective if objective in GENERATED else "reward")


def _changed(history: RunHistory) -> float:
    """The share of answers that changed, the mean of the last steps."""
    return float(running_mean(np.array(history.populations["changed"]))[-1])


def _word(changed: float) -> str:
    return "few" if changed < _TOO_FEW else "many" if changed > _TOO_MANY else ""


def answers_panel(population: events.Population, objective: str, samples: Sequence[events.Samples]) -> Group:
    """Prompts of a step with the answers of the best and of the median member; and below, prompts of the validation
    split with the answers before training and now. What is long is cut."""
    rewards, metric = sorted(population.rewards), _metric(objective)
    best, median = (metric.text(value) for value in (rewards[-1], rewards[len(rewards) // 2]))
    title = f"Members at step {population.step:,}: {metric.name.replace('_', ' ')} {best} best, {median} median"
    parts: list[RenderableType] = [Text(title, "bold")]
    for item in population.answers:
        parts += _answered(item["prompt"], {name: item[name] for name in ("best", "median")})
    if samples:
        parts.append(Text("\nValidation, before training and now", "bold"))
        for before, now in zip(samples[0].items, samples[-1].items, strict=False):
            found = {"before": before, "now": now} if len(samples) > 1 else {"before": before}
            parts += _answered(now["prompt"], {f"{mark(item)} {name}": item["answer"] for name, item in found.items()})
    return Group(*parts)


def _answered(prompt: str, answers: Mapping[str, str]) -> list[RenderableType]:
    """The end of a prompt, and the beginnings of its answers beside their labels."""
    clipped = [Clipped(one_line(text), _LINES, label=f"  {label:<9}") for label, text in answers.items()]
    return [Clipped(one_line(prompt), _LINES, style="dim", end=True), *clipped]


def mark(item: Mapping[str, Any]) -> str:
    """A sample's answer is right or wrong; `?` without a right answer."""
    return "?" if item["right"] is None else "✓" if item["answer"] == item["right"] else "✗"
