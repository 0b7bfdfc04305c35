"""Probes a model on a task: what its parameters' gradient and curvature say of scope, eps and learning rate.

Where all examples choose among the same labels, the probe looks at the loss with the model's preference among labels
taken out (one offset a label, fitted to training examples, after Zhao et al. 2021, arXiv 2102.09690). That preference
is what a run learns first and soon has learned. Until then it can be nearly all of the gradient, in few directions, and
calls for steps far too long for what comes after: ten times and more for SmolLM2-135M on SST-2.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ConfigError, DataError
from ..core.lr_schedule import learning_rate
from ..models.trainable import Trainable
from ..tasks.sampling import stable_permutation
from ..zo.curvature import Group, Sensitivity, Value, passes, probe
from ..zo.perturb import Direction
from .encoding import EncodedExample
from .scoring import example_losses
from .session import Session, open_activation_cache, open_session

# Directions and minibatches a direction. Minibatch noise falls with both, the error from directions with the first.
SAMPLES, SCOPE_SAMPLES, BATCHES = 24, 16, 4
# What `--scope auto` tries beside the scope that is set: small scopes of late layers, where steps are cheap and signal
# is large against curvature.
CANDIDATES = ("norms/last-6", "norms/last-12", "last-4", "lora/last-6")
_LAYER_GROUPS = 4
# Training examples that label offsets are fitted to. What is left of the preference falls with their number.
_CALIBRATED = 1024


class TooFewExamples(DataError):
    """Less training data than a probe needs."""


@dataclass(frozen=True)
class Probed:
    """One row of a probe: a group of parameters, what was measured, and the settings that follow for a run.

    Attributes:
        work: decoder layers that a step computes, with the frozen layers' output kept; at least 1.
        best: the learning rate for the configuration's update rule and schedule, as an estimate.
        eps, lr: what a run takes of this; None where the measurement says nothing.
        decrease: expected decrease of the loss in the first step with them.
    """

    scope: str
    parameters: int
    work: int
    measured: Sensitivity
    best: Value
    eps: float | None
    lr: float | None
    decrease: float | None

    def to_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        measured = found.pop("measured")
        return _finite({"group": measured.pop("group"), **found, **measured, "problem": self.measured.problem()})


@dataclass(frozen=True)
class ProbeReport:
    """Rows of a probe and what they cost: `samples` directions a row, each on `BATCHES` minibatches where there are so
    many. `bias` is the loss that label offsets alone take off. `skipped` are candidates that do not suit the model,
    with the reason."""

    rows: tuple[Probed, ...]
    samples: int
    bias: float
    forward_passes: int
    seconds: float
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "samples": self.samples,
            "label_bias": self.bias,
            "forward_passes": self.forward_passes,
            "seconds": self.seconds,
            "groups": [row.to_dict() for row in self.rows],
            "skipped": dict(self.skipped),
        }


def probe_session(
    session: Session, groups: Mapping[str, Sequence[str]], emit: events.Emit, samples: int = SAMPLES
) -> ProbeReport:
    """Probes groups of a session's trainable parameters, named by `groups`.

    Every direction has minibatches of its own, drawn by the seed; those of one direction share no example, so that
    products of their derivatives say how the loss falls on examples that were not looked at.

    Raises:
        TooFewExamples: there are fewer than two minibatches of training examples.
    """
    config, causal, scorer = session.config.unprobed(), session.causal, session.scorer
    examples = session.splits["train"]
    batches = min(BATCHES, len(examples) // config.batch_size)
    if batches < 2:
        raise TooFewExamples(
            f"a probe needs two batches of {config.batch_size} training examples, and there are {len(examples)}",
            f"use a --batch-size of at most {max(1, len(examples) // 2)}, or give --lr",
        )
    began, done = time.perf_counter(), 0
    each, shared = passes(samples, batches)
    calibrated = _calibration_examples(examples)
    total = each * len(groups) + shared + -(-len(calibrated) // config.batch_size)
    kept: dict[int, tuple] = {}

    def batch_of(number: int) -> tuple:
        if number not in kept:
            kept.clear()
            sample, part = divmod(number, batches)
            order = stable_permutation(len(examples), "probe", config.seed, sample)
            chosen = order[part * config.batch_size : (part + 1) * config.batch_size]
            batch = session.batch([examples[i] for i in chosen])
            kept[number] = batch, scorer.prefix(batch)
        return kept[number]

    def on_pass() -> None:
        nonlocal done
        done += 1
        # An eps that has to be moved costs passes that were not counted on.
        emit(events.Progress(f"probing {config.scope}", float(done), float(max(total, done)), "forward passes"))

    offsets, bias = _label_offsets(session, calibrated, on_pass)

    def loss(direction: Direction | None, eps: float, number: int) -> float:
        batch, prefix = batch_of(number)
        scores = scorer.scores(batch, causal.view(direction, eps), prefix)
        losses = [example_losses(grid + offsets, p.target) for grid, p in zip(scores, batch.parts, strict=True)]
        return float(np.concatenate(losses).mean())

    scales = session.trainable.scales
    found = probe(
        loss,
        [Group(label, {n: scales.get(n, 1.0) for n in names}, config.eps) for label, names in groups.items()],
        seed=config.seed,
        kind=config.directions,
        samples=samples,
        batches=batches,
        queries=config.queries,
        on_pass=on_pass,
    )
    # What lies behind the last layer is not for nothing either, and gains are told for each layer computed.
    work = max(1, len(causal.layers) - scorer.layers)
    rows = [
        _settings(session, measured, sum(causal.slots[n].get().size for n in names), work)
        for measured, names in zip(found, groups.values(), strict=True)
    ]
    return ProbeReport(tuple(rows), samples, bias, done, time.perf_counter() - began)


def _calibration_examples(examples: Sequence[EncodedExample]) -> Sequence[EncodedExample]:
    """Those that label offsets are fitted to; none where candidates are not the same labels for all examples."""
    labels = {example.targets for example in examples}
    return examples[:_CALIBRATED] if len(labels) == 1 and len(examples[0].targets) > 1 else ()


def _label_offsets(
    session: Session, examples: Sequence[EncodedExample], on_pass: Callable[[], None]
) -> tuple[np.ndarray | float, float]:
    """What to add to the scores [B, C] so that labels are expected as often as they are right, and by how much that
    lowers the mean loss of `examples`."""
    if not examples:
        return 0.0, 0.0
    view = session.causal.view()
    scores, targets = [], []
    size = session.config.batch_size
    for start in range(0, len(examples), size):
        batch = session.batch(examples[start : start + size])
        scores += session.scorer.scores(batch, view)
        targets += [part.target for part in batch.parts]
        on_pass()
    scores, targets = np.concatenate(scores), np.concatenate(targets)
    offsets = fit_offsets(scores, targets)
    gained = example_losses(scores, targets).mean() - example_losses(scores + offsets, targets).mean()
    return offsets, float(gained)


def fit_offsets(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Offsets [C] of mean zero that minimise the cross-entropy of scores [N, C] + offsets, by iterative scaling."""
    count = scores.shape[1]
    # A label that no example has would get an offset of minus infinity.
    right = (np.bincount(targets, minlength=count) + 0.5) / (len(targets) + 0.5 * count)
    offsets = np.zeros(count)
    for _ in range(200):
        shifted = scores + offsets
        expected = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        expected = (expected / expected.sum(axis=1, keepdims=True)).mean(axis=0)
        offsets = offsets + np.log(right / expected)
    return offsets - offsets.mean()


def _settings(session: Session, measured: Sensitivity, parameters: int, work: int) -> Probed:
    """What a run of the session's configuration should take after a measurement."""
    config = session.config
    resolved = config.unprobed()
    # fzoo divides by the losses' standard deviation, so its lr is the length of a step whatever the update.
    normalised = resolved.update == "adaptive" or config.estimator == "fzoo"
    share = schedule_share(config)
    first = measured.length if normalised else measured.rate
    best = Value(share * first.value, share * first.error)
    if not measured.known:
        return Probed(config.scope, parameters, work, measured, best, None, None, None)
    eps = config.eps if config.eps is not None else measured.eps_range.nearest(resolved.eps)
    # Of the parabola lr |grad|^2 - lr^2 / 2 E[g^2 h], with lr the share of its best.
    decrease = measured.decrease.value * share * (2.0 - share)
    return Probed(config.scope, parameters, work, measured, best, eps, best.value, decrease)


def schedule_share(config: RunConfig) -> float:
    """The rate to set for a whole run, as a share of the one that gains most in its first step.

    With rates lr s_t, a run gains sum lr s_t |grad_t|^2 - (lr s_t)^2 / 2 E[g^2 h]. Minibatch noise, and with it
    E[g^2 h], stays; |grad|^2 falls as the loss does. If it falls along a line to zero over the run, the best lr is
    sum s_t (1 - t/T) / sum s_t^2 of the first step's: 1 for the linear schedule, 1/2 for the constant one.
    """
    times = range(config.steps)
    rates = [learning_rate(1.0, config.schedule, t, config.steps, config.warmup_steps) for t in times]
    falling = sum(rate * (1.0 - t / config.steps) for t, rate in zip(times, rates, strict=True))
    return falling / sum(rate**2 for rate in rates)


def choose_rate(session: Session, emit: events.Emit) -> tuple[RunConfig, dict[str, Any]]:
    """The session's configuration with eps and learning rate as a probe of its scope finds them, and what it found."""
    emit(events.Phase("probe", session.config.scope))
    try:
        report = probe_session(session, {"all": session.trainable.names}, emit)
    except TooFewExamples as error:
        return _unknown(session.config, None, error.message, emit)
    (row,) = report.rows
    if row.lr is None:
        return _unknown(session.config, report, row.measured.problem(), emit)
    return _chosen(session.config, report, row, emit)


def choose_scope(config: RunConfig, emit: events.Emit) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration with the scope, eps and learning rate that promise most, and what was found of each candidate.

    They go by the loss a step is expected to take off for each decoder layer it computes, so that a scope that takes
    twice as long has to be twice as good. Another scope takes the place of the configuration's own only where it is
    ahead of it by more than two standard errors.
    """
    try:
        report = probe_scopes(config, emit)
    except TooFewExamples as error:
        return _unknown(config, None, error.message, emit)
    known = [row for row in report.rows if row.lr is not None]
    if not known:
        reasons = "; ".join(f"{row.scope}: {row.measured.problem()}" for row in report.rows)
        # The configuration's own scope, where it suits the model.
        return _unknown(dataclasses.replace(config, scope=report.rows[0].scope), report, reasons, emit)
    return _chosen(config, report, best_row(known, config.scope), emit)


def best_row(rows: Sequence[Probed], own: str) -> Probed:
    """The known row that promises most for each layer computed; that of the scope `own` where it may be as good."""
    best = max(rows, key=lambda row: row.measured.decrease.value / row.work)
    mine = next((row for row in rows if row.scope == own), best)
    a, b = best.measured.decrease, mine.measured.decrease
    ahead = math.log(a.value / best.work) - math.log(b.value / mine.work)
    return best if ahead > 2.0 * math.hypot(a.error / a.value, b.error / b.value) else mine


def probe_scopes(config: RunConfig, emit: events.Emit, samples: int = SCOPE_SAMPLES) -> ProbeReport:
    """Probes the configuration's scope and each of `CANDIDATES`, but those that do not suit the model.

    Raises:
        MlxzoError: data or model cannot be had, or no scope suits the model.
    """
    began, done = time.perf_counter(), 0
    bias = 0.0
    rows: list[Probed] = []
    skipped: dict[str, str] = {}
    for scope in dict.fromkeys((config.scope, *CANDIDATES)):
        emit(events.Phase("probe", scope))
        try:
            # Each scope changes the model in ways of its own, so each begins with a fresh one.
            report = probe_scope(dataclasses.replace(config, scope=scope), emit, samples=samples)
        except ConfigError as error:
            skipped[scope] = error.message
            continue
        rows += report.rows
        # The same in all of them: before training, every scope is the base model.
        bias = report.bias
        done += report.forward_passes
        mx.clear_cache()
    if not rows:
        problems = [f"{scope}: {why}" for scope, why in skipped.items()]
        raise ConfigError("none of the scopes that are tried suits this model", "name one with --scope", problems)
    return ProbeReport(tuple(rows), samples, bias, done, time.perf_counter() - began, skipped)


def probe_scope(config: RunConfig, emit: events.Emit, *, by: str = "scope", samples: int = SAMPLES) -> ProbeReport:
    """Opens a model of its own and probes the groups of its scope.

    Args:
        by: `scope` (one group), `layers` or `kinds`: see `group_names`.

    Raises:
        MlxzoError: data or model cannot be had, or the scope does not suit the model.
    """
    # As many steps as there are minibatches decide whether the frozen layers' output is worth keeping.
    config = dataclasses.replace(config, validation_examples=1, test_examples=1)
    session = open_session(config, lambda event: None if isinstance(event, events.Loaded) else emit(event))
    cached = dataclasses.replace(config, steps=samples * BATCHES)
    with tempfile.TemporaryDirectory(prefix="mlxzo-probe-") as folder:
        session.config = cached
        open_activation_cache(session, Path(folder), emit)
        session.config = config
        return probe_session(session, group_names(session.trainable, by), emit, samples)


def group_names(trainable: Trainable, by: str) -> dict[str, list[str]]:
    """The parameters that train, in groups.

    Args:
        by: `scope` puts them all into one; `layers` into a few runs of consecutive decoder layers, and those outside
            the layers; `kinds` into norms, attention, MLP and the rest.
    """
    if by == "scope":
        return {"all": list(trainable.names)}
    label: Callable[[str], str] = _kind if by == "kinds" else _layers(trainable.names)
    groups: dict[str, list[str]] = {}
    for name in trainable.names:
        groups.setdefault(label(name), []).append(name)
    return dict(sorted(groups.items(), key=lambda item: (item[0] == "outside the layers", min(map(_order, item[1])))))


def _kind(name: str) -> str:
    if "norm" in name:
        return "norms"
    return "attention" if "attn" in name else "MLP" if "mlp" in name else "other"


def _layers(names: Sequence[str]) -> Callable[[str], str]:
    """Labels such as `layers 24-25`: at most `_LAYER_GROUPS` runs of the layers that train."""
    numbers = sorted({_number(name) for name in names} - {-1})
    size = -(-len(numbers) // _LAYER_GROUPS)
    runs = [numbers[i : i + size] for i in range(0, len(numbers), size or 1)]
    labels = {n: f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {n}" for run in runs for n in run}
    return lambda name: labels.get(_number(name), "outside the layers")


def _number(name: str) -> int:
    match = re.search(r"\blayers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _order(name: str) -> tuple[int, str]:
    return _number(name), name


def _chosen(config: RunConfig, report: ProbeReport, row: Probed, emit: events.Emit) -> tuple[RunConfig, dict[str, Any]]:
    settled = dataclasses.replace(config, scope=row.scope, lr=row.lr, eps=row.eps)
    text = (
        f"probe, {report.forward_passes} forward passes in {report.seconds:.0f} s: scope {row.scope}, lr {row.lr:.3g}, "
        f"eps {row.eps:.3g}; expected to take {row.decrease:.2g} off the loss in the first step"
    )
    low, high = row.measured.eps_range.low, row.measured.eps_range.high
    if row.eps not in row.measured.eps_range:
        text += f"; this eps lies outside the usable range of {low:.2g} to {high:.2g}"
    emit(events.Note(text))
    return settled, {**report.to_dict(), "chosen": _choice(settled), "fallback": ""}


def _unknown(
    config: RunConfig, report: ProbeReport | None, why: str, emit: events.Emit
) -> tuple[RunConfig, dict[str, Any]]:
    settled = config.unprobed()
    why = f"the probe cannot tell ({why}), so scope {settled.scope}, lr {settled.lr:g} and eps {settled.eps:g} stay"
    emit(events.Note(why))
    return settled, {**(report.to_dict() if report else {"schema": 1}), "chosen": _choice(settled), "fallback": why}


def _choice(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("scope", "update", "lr", "eps")}


def _finite(value: Any) -> Any:
    """The value with null for numbers that are not finite, which JSON cannot carry."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
