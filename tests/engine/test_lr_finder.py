"""The probe on a tiny model against exact derivatives, and what a run makes of it, through the real command line."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.label_offsets import fit_offsets
from mlxzo.engine.lr_finder import (
    CANDIDATES,
    Probed,
    best_row,
    choose_rate,
    probe_scope,
    probe_session,
    schedule_share,
)
from mlxzo.engine.parameter_groups import group_names
from mlxzo.engine.scoring import Scorer, example_losses
from mlxzo.engine.session import Session, open_activation_cache, open_session
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import prepare
from mlxzo.zo.curvature import Eps, Group, Sensitivity, Value, probe
from mlxzo.zo.perturb import Direction, Perturbation
from tests.command import mlxzo
from tests.engine.examples import BATCHES
from tests.tiny import tiny_folder, tiny_model


def test_gradient_and_trace_of_a_model_agree_with_exact_ones():
    model = tiny_model(hidden=32)
    run = RunConfig(scope="norms/last-1").resolved()
    trainable = prepare(model, run)
    causal = CausalLM(model)
    scorer, batch = Scorer(causal, trainable.frozen_layers, ActivationCache()), BATCHES["single"]()

    @cache
    def loss_at(sample, names, eps):
        direction = Direction(0, sample, 0, "sign", {name: trainable.scales[name] for name in names})
        return float(scorer.losses(batch, Perturbation(direction, eps)).mean())

    def loss(direction, eps, number):
        # One batch for all: what is left to chance are the directions.
        return loss_at(direction.step, tuple(direction.scales), eps) if direction else loss_at(0, (), 0.0)

    groups = [
        Group(label, {name: trainable.scales[name] for name in names}, 1.0)
        for label, names in group_names(trainable, "layers").items()
    ]
    assert [group.name for group in groups] == ["layer 2", "outside the layers"]
    for found, group in zip(probe(loss, groups, seed=0, samples=60, batches=2), groups, strict=True):
        gradient, trace = exact(causal, batch, group)
        assert abs(found.gradient.value - gradient) < 3.5 * found.gradient.error
        assert abs(found.trace.value - trace) < 3.5 * found.trace.error
        assert found.gradient.error < 0.4 * gradient
        # The random model's curvature is of both signs in its layers, and nearly cancels in their trace.
        assert found.trace.error < 0.3 * abs(trace) or group.name == "layer 2"


def exact(causal: CausalLM, batch, group: Group) -> tuple[float, float]:
    """|S grad|^2 and tr(S H S) of one group from exact gradients; second derivatives are their central differences."""
    names = list(group.scales)
    stored = [causal.slots[name].get() for name in names]
    lengths = [group.scales[name] for name in names]

    def loss(values):
        for name, value in zip(names, values, strict=True):
            causal.slots[name].set(value)
        return sum(part_loss(part) for part in batch.parts) / batch.size

    def part_loss(part):
        logits = causal.model(mx.array(part.tokens)).reshape(-1, causal.vocabulary)[mx.array(part.positions)]
        scores = logits[mx.array(part.entry_position), mx.array(part.entry_target)][:, 0][mx.array(part.candidate)]
        chosen = mx.take_along_axis(scores, mx.array(part.target)[:, None], axis=1)[:, 0]
        return (mx.logsumexp(scores, axis=1) - chosen).sum()

    gradient = mx.grad(loss)
    try:
        slopes = gradient(stored)
        squared = sum(s * s * (g * g).sum().item() for s, g in zip(lengths, slopes, strict=True))
        trace = 0.0
        for i, weight in enumerate(stored):
            for entry in range(weight.size):
                sides = []
                for shift in (1e-2, -1e-2):
                    moved = list(stored)
                    moved[i] = weight.at[entry].add(shift)
                    sides.append(gradient(moved)[i][entry].item())
                trace += lengths[i] ** 2 * (sides[0] - sides[1]) / 2e-2
    finally:
        for name, value in zip(names, stored, strict=True):
            causal.slots[name].set(value)
    return squared, trace


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_folder(path, layers=6)
    return path


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> Path:
    """A model of two layers, for what does not depend on the frozen ones below."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "shallow", layers=2)


def write_rows(folder: Path, rows: list[dict]) -> Path:
    for split, part in (("train", rows), ("validation", rows[:8])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def coin_flips(folder: Path, share: float) -> Path:
    """Sentences whose label follows from nothing, `share` of them positive."""
    coins = np.random.default_rng(0).random(48) < share
    rows = [{"text": f"What a thing, number {i}!", "label": "positive" if coins[i] else "negative"} for i in range(48)]
    return write_rows(folder, rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Completions that are all alike: a gradient far above noise."""
    rows = [{"prompt": f"Question {i}: how many days?", "completion": " seven days"} for i in range(24)]
    return write_rows(tmp_path_factory.mktemp("data"), rows)


def settings(model: Path, data: Path, **more) -> RunConfig:
    values = {"model": str(model), "task": "custom", "data": str(data), "batch_size": 4, "lr": "auto"}
    return RunConfig.from_mapping({**values, "scope": "norms/last-2", **more}).resolved()


def cached_session(config: RunConfig, folder: Path) -> Session:
    """A session that computes the frozen layers once."""
    session = open_session(dataclasses.replace(config, activation_cache="ram"), lambda event: None)
    open_activation_cache(session, folder, lambda event: None)
    return session


def common(model: Path, data: Path) -> tuple:
    return "--model", model, "--task", "custom", "--data", data, "--batch-size", 4


def test_a_probe_is_the_same_whatever_the_global_seed_and_leaves_every_weight(model, data):
    found = []
    for global_seed in (1, 2):
        mx.random.seed(global_seed)
        session = open_session(settings(model, data), lambda event: None)
        before = {name: np.array(value) for name, value in session.trained_parameters().items()}
        report = probe_session(session, group_names(session.trainable, "scope"), lambda event: None, samples=4)
        assert all(np.array_equal(before[n], np.array(v)) for n, v in session.trained_parameters().items())
        found.append(report)
    assert found[0].rows == found[1].rows
    assert found[0].forward_passes == found[1].forward_passes > 0


def test_frozen_layers_may_be_remembered_or_not(model, data):
    rows = [
        probe_scope(settings(model, data, activation_cache=kind), lambda event: None, samples=3).rows
        for kind in ("ram", "off")
    ]
    assert rows[0] == rows[1]


def test_a_scope_behind_the_last_layer_can_be_weighed_against_others(model, data):
    (row,) = probe_scope(settings(model, data, scope="match:model.norm.weight"), lambda event: None, samples=3).rows
    assert row.work == 1


def test_groups_of_a_scope_hold_each_of_its_parameters_once():
    trainable = prepare(tiny_model(layers=6), RunConfig(scope="full"))
    for by, labels in (
        ("scope", ["all"]),
        ("layers", ["layers 0-1", "layers 2-3", "layers 4-5", "outside the layers"]),
        ("kinds", ["other", "norms", "attention", "MLP"]),
    ):
        groups = group_names(trainable, by)
        assert set(groups) == set(labels)
        assert sorted(name for names in groups.values() for name in names) == sorted(trainable.names)


@pytest.mark.parametrize(("schedule", "share"), [("linear", 1.0), ("constant", 0.5), ("cosine", 0.937)])
def test_the_schedule_decides_which_share_of_the_best_first_rate_suits_the_run(schedule, share):
    assert schedule_share(RunConfig(schedule=schedule, steps=1000)) == pytest.approx(share, abs=2e-3)


def test_a_rate_is_translated_into_the_update_that_takes_it(model, data, tmp_path):
    rows = {}
    for update in ("sgd", "adaptive"):
        session = cached_session(settings(model, data, update=update, eps=0.1), tmp_path)
        (rows[update],) = probe_session(session, group_names(session.trainable, "scope"), lambda event: None, 24).rows
    assert rows["sgd"].measured == rows["adaptive"].measured and rows["sgd"].measured.known
    rms = rows["sgd"].measured.square.value ** 0.5
    assert rows["adaptive"].lr == pytest.approx(rows["sgd"].lr * rms)
    assert rows["sgd"].decrease == rows["adaptive"].decrease > 0


def test_another_scope_is_chosen_only_where_it_is_ahead_beyond_doubt():
    def row(scope: str, work: int, gain: float, error: float) -> Probed:
        one = Value(1.0, 0.1)
        found = Sensitivity("all", one, one, one, one, one, one, one, Value(gain, error), 0.1, Eps(0.01, 1.0), True)
        return Probed(scope, 100, work, found, one, 0.1, 1.0, gain)

    own, deep = row("norms/last-6", 6, 0.010, 0.003), row("norms/last-12", 12, 0.018, 0.001)
    assert best_row([own, deep], "norms/last-6") is own
    # As much a step for two thirds of the layers, but within the errors; then beyond them.
    assert best_row([own, row("last-4", 4, 0.012, 0.003)], "norms/last-6") is own
    far = row("last-4", 4, 0.030, 0.003)
    assert best_row([own, far], "norms/last-6") is far
    # Where the own scope is not known, or does not suit, the best of the others is.
    assert best_row([deep, far], "norms/last-6") is far


def test_a_probe_that_knows_nothing_leaves_the_defaults_and_says_so(shallow, tmp_path):
    notes: list[str] = []
    config = settings(shallow, coin_flips(tmp_path, 0.5))
    session = open_session(config, lambda event: None)
    chosen, found = choose_rate(session, lambda e: notes.append(e.text) if isinstance(e, events.Note) else None)
    plain = dataclasses.replace(config, probe="off").resolved()
    assert (chosen.lr, chosen.eps, chosen.probe) == (plain.lr, plain.eps, "lr")
    assert "the probe is inconclusive" in notes[-1] and "two of its standard errors" in notes[-1]
    assert found["fallback"] == notes[-1]


def test_a_preference_among_the_labels_is_no_signal(model, tmp_path, monkeypatch):
    session = cached_session(settings(model, coin_flips(tmp_path, 0.95)), tmp_path)
    groups = group_names(session.trainable, "scope")
    report = probe_session(session, groups, lambda event: None, samples=12)
    assert report.bias > 0.1 and not report.rows[0].measured.known
    # Without the offsets it is taken for one.
    monkeypatch.setattr("mlxzo.engine.label_offsets._EXAMPLES", 0)
    (row,) = probe_session(session, groups, lambda event: None, samples=12).rows
    assert row.measured.gradient.known
    assert row.measured.gradient.value > 10 * abs(report.rows[0].measured.gradient.value)


def test_offsets_make_every_label_as_frequent_as_it_is_right():
    random = np.random.default_rng(0)
    scores, targets = random.normal([2.0, 0.0, -1.0], size=(500, 3)), random.choice(3, 500, p=[0.2, 0.3, 0.5])
    offsets = fit_offsets(scores, targets)
    shifted = np.exp(scores + offsets)
    expected = (shifted / shifted.sum(axis=1, keepdims=True)).mean(axis=0)
    assert expected == pytest.approx(np.bincount(targets) / 500, abs=2e-3)
    assert example_losses(scores + offsets, targets).mean() < example_losses(scores, targets).mean()


def test_too_few_examples_for_a_probe_are_one_sentence(model, data):
    done = mlxzo("probe", *common(model, data)[:-1], 24, "--scope", "norms/last-2")
    assert done.returncode == 4
    assert "a probe needs two batches of 24 training examples" in done.stderr and "Traceback" not in done.stderr


def test_the_command_prints_a_table_or_json(model, data):
    arguments = ("probe", *common(model, data), "--scope", "norms/last-2", "--by", "kinds", "--samples", 3)
    shown = mlxzo(*arguments)
    assert shown.returncode == 0, shown.stderr
    for words in ("|grad|^2", "tr(H)", "lr (adaptive)", "norms/last-2: norms", "±", "forward passes in"):
        assert words in shown.stdout
    report = json.loads(mlxzo(*arguments, "--json").stdout)
    (row,) = report["groups"]
    assert row["group"] == "norms" and row["parameters"] == 5 * 64 and set(row["gradient"]) == {"value", "error"}
    assert report["forward_passes"] > 0 and report["seconds"] > 0


def test_training_with_lr_auto_measures_it_once_and_keeps_it(model, data, tmp_path):
    small = ("--steps", 4, "--eval-every", 2, "--out", tmp_path)
    done = mlxzo(
        "train", *common(model, data), "--scope", "norms/last-2", "--lr", "auto", *small, "--name", "a", "--json"
    )
    assert done.returncode == 0, done.stderr
    run = RunDirectory.open("a", tmp_path)
    found = json.loads((run.path / "probe.json").read_text())
    assert found["fallback"] == "" and found["groups"][0]["lr"] == found["chosen"]["lr"] == run.config.lr
    assert (run.config.probe, run.config.eps) == ("lr", found["chosen"]["eps"])
    story = [event for event, _ in run.events()]
    assert any(isinstance(event, events.Note) and event.text.startswith("probe, ") for event in story)
    assert "probe, " in done.stderr
    # The saved configuration holds the numbers: a run from it measures nothing, and is the same run.
    again = mlxzo("train", "--config", run.path / "config.yaml", "--name", "b", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["training_loss"] == json.loads(done.stdout)["training_loss"]
    assert not (tmp_path / "b" / "probe.json").exists()
    assert mlxzo("eval", "--run", run.path, "--split", "validation").returncode == 0


@pytest.mark.slow
def test_training_with_scope_auto_tries_the_candidates_that_suit(model, data, tmp_path):
    small = ("--steps", 2, "--eval-every", 2, "--out", tmp_path, "--name", "a", "--json")
    done = mlxzo("train", *common(model, data), "--scope", "auto", *small)
    assert done.returncode == 0, done.stderr
    run = RunDirectory.open("a", tmp_path)
    found = json.loads((run.path / "probe.json").read_text())
    assert [row["scope"] for row in found["groups"]] == ["norms/last-6", "last-4", "lora/last-6"]
    assert set(found["skipped"]) == set(CANDIDATES) - {"norms/last-6", "last-4", "lora/last-6"}
    assert found["chosen"]["scope"] == run.config.scope == json.loads(done.stdout)["scope"]
    assert run.config.probe == "scope" and run.config.lr == found["chosen"]["lr"]
