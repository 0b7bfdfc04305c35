"""Weights rebuilt from a journal are those of the run, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.scoring import Scorer
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import prepare
from mlxzo.zo import inplace
from mlxzo.zo import replay as replaying
from mlxzo.zo.journal import JournalWriter, read
from mlxzo.zo.replay import replay
from tests.engine.examples import BATCHES
from tests.tiny import tiny_model
from tests.variants import mostly_slow

CASES = {
    "full float32": ({}, {"scope": "full"}),
    "full bfloat16": ({"dtype": mx.bfloat16}, {"scope": "full", "lr": 1e-3}),
    "weight decay": (
        {"dtype": mx.bfloat16},
        {"scope": "last-2", "weight_decay": 0.1, "schedule": "cosine", "lr": 1e-2},
    ),
    "two directions": ({}, {"scope": "norms/last-2", "queries": 2}),
    "adapters": ({}, {"scope": "lora", "queries": 3}),
    "scales": ({"bits": 4}, {"scope": "scales/last-2"}),
    "gaussian": ({}, {"scope": "last-1", "directions": "gaussian"}),
}
DEFAULT = ("full float32", "weight decay", "two directions")


def mezo(model_options, options) -> MeZO:
    model = tiny_model("llama", **model_options)
    config = RunConfig(seed=3, steps=21, estimator="spsa", **options).resolved()
    trainable = prepare(model, config)
    return MeZO(Scorer(CausalLM(model, None), trainable.frozen_layers, ActivationCache()), trainable, config)


def trained(method: MeZO) -> dict[str, mx.array]:
    return {name: mx.array(method.causal.slots[name].get()) for name in method.trainable.names}


def same_bits(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and mx.array_equal(a[name].view(mx.uint8), b[name].view(mx.uint8)).item()
        for name in a
    )


@pytest.mark.parametrize("case", mostly_slow(CASES, DEFAULT))
def test_replayed_weights_are_the_trained_ones_to_the_bit(case, tmp_path, monkeypatch):
    run = mezo(*CASES[case])
    start = trained(run)
    run.journal = JournalWriter(tmp_path / "j", run.header("ab" * 32))
    batch, halfway = BATCHES["single"](), {}
    for step in range(7):
        run.step(step, batch)
        if step == 3:
            halfway = trained(run)
    run.journal.close()
    assert not same_bits(start, trained(run))

    journal, seen = read(tmp_path / "j"), []
    rebuilt = mezo(*CASES[case])
    monkeypatch.setattr(replaying, "_STEPS_A_PASS", 3)
    replay(rebuilt.causal.slots, journal, on_progress=lambda *done: seen.append(done))
    assert same_bits(trained(rebuilt), trained(run))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    # In other chunks, and in two parts.
    monkeypatch.setattr(inplace, "CHUNK_BYTES", 3000)
    parts = mezo(*CASES[case])
    replay(parts.causal.slots, journal, stop=4)
    assert same_bits(trained(parts), halfway)
    replay(parts.causal.slots, journal, start=4)
    assert same_bits(trained(parts), trained(run))


@pytest.mark.parametrize("case", ["weight decay", "two directions", "adapters"])
def test_a_resumed_run_takes_the_steps_of_the_uninterrupted_one(case, tmp_path):
    batch = BATCHES["single"]()
    whole = mezo(*CASES[case])
    whole.journal = JournalWriter(tmp_path / "j", whole.header("ab" * 32))
    expected = [whole.step(step, batch) for step in range(5)]
    whole.journal.close()

    # The weights of step 2 come from a snapshot, those of step 4 from the journal, and the rest is trained.
    resumed, base = mezo(*CASES[case]), read(tmp_path / "j")
    replay(resumed.causal.slots, base, stop=2)
    cut = tmp_path / "cut"
    cut.write_bytes(base.encode(4, base.header))
    resumed.resume(read(cut), 2)
    assert [resumed.step(step, batch) for step in range(4, 5)] == expected[4:]
    assert same_bits(trained(resumed), trained(whole))
