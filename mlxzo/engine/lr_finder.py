"""The learning-rate finder: chooses scope, eps and learning rate by the gradient and curvature of a model on a task.

It measures with forward passes alone (see `zo.curvature`). Where all examples have the same labels, the model's
preference among them is taken out of the loss first (see `label_offsets`).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ConfigError, DataError
from ..core.lr_schedule import learning_rate
from ..core.resolved_config import ResolvedConfig
from ..tasks.sampling import stable_permutation
from ..zo.curvature import Group, Sensitivity, Value, passes, probe
from ..zo.perturb import Direction
from .batching import Batch
from .label_offsets import examples_to_fit, label_offsets
from .parameter_groups import group_names
from .scoring import example_losses
from .session import Session, open_activation_cache, open_session

# Directions, and minibatches per direction. Minibatch noise falls with both, the error from directions with the first.
SAMPLES, SCOPE_SAMPLES, BATCHES = 24, 16, 4
# Scopes that `--scope auto` tries beside the configuration's own: small scopes of late layers, where steps are cheap
# and the gradient is large against the curvature.
CANDIDATES = ("norms/last-6", "norms/last-12", "last-4", "lora/last-6")


class TooFewExamples(DataError):
    """Fewer than two minibatches of training examples."""


@dataclass(frozen=True)
class Probed:
    """One row of a probe: a group of parameters, its measurement, and the settings for a run that follow from it.

    Attributes:
        work: decoder layers that a step computes, with the frozen layers' output cached; at least 1.
        best: estimate of the learning rate for the configuration's update rule and schedule.
        eps, lr: settings for a run; None where the measurement is not above its noise.
        decrease: expected decrease of the loss in the first step with them; None likewise.
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
    """The rows of a probe and their cost.

    Attributes:
        samples: directions per row, each on `BATCHES` minibatches if there are that many.
        bias: decrease of the loss by label offsets alone.
        skipped: candidates that do not suit the model, with the reason.
    """

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
    """Probes groups of a session's trainable parameters, by label.

    Every direction has its own minibatches, drawn by the seed. Those of one direction share no example, so that
    products of their derivatives estimate the decrease of the loss on unseen examples.

    Raises:
        TooFewExamples: there are fewer than two minibatches of training examples.
    """
    config, causal, scorer = session.config, session.causal, session.scorer
    examples = session.splits["train"]
    batches = min(BATCHES, len(examples) // config.batch_size)
    if batches < 2:
        raise TooFewExamples(
            f"a probe needs two batches of {config.batch_size} training examples, and there are {len(examples)}",
            f"use a --batch-size of at most {max(1, len(examples) // 2)}, or give --lr",
        )
    began, done = time.perf_counter(), 0
    each, shared = passes(samples, batches)
    fitted = examples_to_fit(examples)
    total = each * len(groups) + shared + -(-len(fitted) // config.batch_size)
    kept: dict[int, tuple[Batch, list[mx.array] | None]] = {}

    def batch_of(number: int) -> tuple[Batch, list[mx.array] | None]:
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
        # Each change of eps costs passes beyond `total`.
        emit(events.Progress(f"probing {config.scope}", float(done), float(max(total, done)), "forward passes"))

    offsets, bias = label_offsets(session, fitted, on_pass)

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
    # Scopes behind the last layer compute no layer, but gains are compared per layer: they count as one.
    work = max(1, len(causal.layers) - scorer.layers)
    rows = [
        _settings(session, measured, sum(causal.slots[n].get().size for n in names), work)
        for measured, names in zip(found, groups.values(), strict=True)
    ]
    return ProbeReport(tuple(rows), samples, bias, done, time.perf_counter() - began)


def _settings(session: Session, measured: Sensitivity, parameters: int, work: int) -> Probed:
    """The row of a measurement, with the settings for a run of the session's configuration."""
    config = session.config
    share = schedule_share(config)
    first = measured.length if config.update == "adaptive" else measured.rate
    best = Value(share * first.value, share * first.error)
    if not measured.known:
        return Probed(config.scope, parameters, work, measured, best, None, None, None)
    eps = config.eps if session.asked.eps is not None else measured.eps_range.nearest(config.eps)
    # Of the parabola lr |grad|^2 - lr^2 / 2 E[g^2 h], with lr the share of its best.
    decrease = measured.decrease.value * share * (2.0 - share)
    return Probed(config.scope, parameters, work, measured, best, eps, best.value, decrease)


def schedule_share(config: RunConfig) -> float:
    """The best learning rate for a whole run, as a share of the best one for its first step.

    With rates lr s_t, a run decreases the loss by sum lr s_t |grad_t|^2 - (lr s_t)^2 / 2 E[g^2 h]. Minibatch noise,
    and with it E[g^2 h], stays; |grad|^2 falls with the loss. If it falls linearly to zero over the run, the share is
    sum s_t (1 - t/T) / sum s_t^2: 1 for the linear schedule, 1/2 for the constant one.
    """
    times = range(config.steps)
    rates = [learning_rate(1.0, config.schedule, t, config.steps, config.warmup_steps) for t in times]
    falling = sum(rate * (1.0 - t / config.steps) for t, rate in zip(times, rates, strict=True))
    return falling / sum(rate**2 for rate in rates)


def choose_rate(session: Session, emit: events.Emit) -> tuple[RunConfig, dict[str, Any]]:
    """Probes the session's scope; returns its configuration with the eps and learning rate found, and the report."""
    emit(events.Phase("probe", session.config.scope))
    try:
        report = probe_session(session, {"all": session.trainable.names}, emit)
    except TooFewExamples as error:
        return _unknown(session.asked, None, error.message, emit)
    (row,) = report.rows
    if row.lr is None:
        return _unknown(session.asked, report, row.measured.problem(), emit)
    return _chosen(session.asked, report, row, emit)


def choose_scope(config: RunConfig, emit: events.Emit) -> tuple[RunConfig, dict[str, Any]]:
    """Probes all candidate scopes; returns the configuration with the best one's settings, and the report.

    The criterion is the expected decrease of the loss in a step per decoder layer computed, so that a scope that takes
    twice as long has to be twice as good. Another scope replaces the configuration's own only if it is better by more
    than two standard errors.
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
    """The row with the largest decrease per layer computed; that of the scope `own` if not significantly worse."""
    best = max(rows, key=lambda row: row.measured.decrease.value / row.work)
    mine = next((row for row in rows if row.scope == own), best)
    a, b = best.measured.decrease, mine.measured.decrease
    ahead = math.log(a.value / best.work) - math.log(b.value / mine.work)
    return best if ahead > 2.0 * math.hypot(a.error / a.value, b.error / b.value) else mine


def probe_scopes(config: RunConfig, emit: events.Emit, samples: int = SCOPE_SAMPLES) -> ProbeReport:
    """Probes the configuration's scope and each of `CANDIDATES` that suits the model.

    Raises:
        MlxzoError: data or model are missing or damaged, or no scope suits the model.
    """
    began, done = time.perf_counter(), 0
    bias = 0.0
    rows: list[Probed] = []
    skipped: dict[str, str] = {}
    for scope in dict.fromkeys((config.scope, *CANDIDATES)):
        emit(events.Phase("probe", scope))
        try:
            # Preparing a scope changes the model, so each scope loads a new one.
            report = probe_scope(dataclasses.replace(config, scope=scope), emit, samples=samples)
        except ConfigError as error:
            skipped[scope] = error.message
            continue
        rows += report.rows
        # The same for all scopes: before training, each computes what the base model does.
        bias = report.bias
        done += report.forward_passes
        mx.clear_cache()
    if not rows:
        problems = [f"{scope}: {why}" for scope, why in skipped.items()]
        raise ConfigError("none of the scopes that are tried suits this model", "name one with --scope", problems)
    return ProbeReport(tuple(rows), samples, bias, done, time.perf_counter() - began, skipped)


def probe_scope(config: RunConfig, emit: events.Emit, *, by: str = "scope", samples: int = SAMPLES) -> ProbeReport:
    """Loads the model and probes the groups of its scope.

    Args:
        by: `scope` (one group), `layers` or `kinds`: see `group_names`.

    Raises:
        MlxzoError: data or model are missing or damaged, or the scope does not suit the model.
    """
    config = dataclasses.replace(config, validation_examples=1, test_examples=1)
    session = open_session(config, lambda event: None if isinstance(event, events.Loaded) else emit(event))
    # A cache pays if the minibatches of the probe, and not of a run, read examples more than once.
    repeated = dataclasses.replace(session.asked, steps=samples * BATCHES)
    with tempfile.TemporaryDirectory(prefix="mlxzo-probe-") as folder:
        open_activation_cache(dataclasses.replace(session, asked=repeated), Path(folder), emit)
        return probe_session(session, group_names(session.trainable, by), emit, samples)


def _chosen(config: RunConfig, report: ProbeReport, row: Probed, emit: events.Emit) -> tuple[RunConfig, dict[str, Any]]:
    chosen = dataclasses.replace(config, scope=row.scope, lr=row.lr, eps=row.eps)
    text = (
        f"probe, {report.forward_passes} forward passes in {report.seconds:.0f} s: scope {row.scope}, lr {row.lr:.3g}, "
        f"eps {row.eps:.3g}; expected to take {row.decrease:.2g} off the loss in the first step"
    )
    usable = row.measured.eps_range
    if row.eps is not None and row.eps not in usable:
        text += f"; this eps lies outside the usable range of {usable.low:.2g} to {usable.high:.2g}"
    emit(events.Note(text))
    return chosen, {**report.to_dict(), "chosen": _choice(chosen), "fallback": ""}


def _unknown(
    config: RunConfig, report: ProbeReport | None, why: str, emit: events.Emit
) -> tuple[RunConfig, dict[str, Any]]:
    default = ResolvedConfig.of(config)
    why = f"the probe is inconclusive ({why}): scope {default.scope}, lr {default.lr:g} and eps {default.eps:g} stay"
    emit(events.Note(why))
    return default, {**(report.to_dict() if report else {"schema": 1}), "chosen": _choice(default), "fallback": why}


def _choice(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("scope", "update", "lr", "eps")}


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
