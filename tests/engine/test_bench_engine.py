"""The engine's benchmark runs end to end, and its contestants do the same work."""

from __future__ import annotations

import importlib.util
import io
import json
from contextlib import contextmanager, redirect_stdout

import mlx.core as mx
import numpy as np
import pytest

from bench import engine
from bench.contestants import ScopedModel, Shape, ordinary_tokens, synthetic_examples, textbook_step, whole_batch
from mlxzo.models.loading import load_model
from tests.tiny import SPECIAL_TOKENS, tiny_folder

LENGTH, BATCH_SIZE, ANSWER = 16, 2, 3


@contextmanager
def uncompiled():
    """Has MLX compile nothing: on a CPU it starts a C++ compiler for each of some 30 kernels of mlx-lm's trainer."""
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def run(folder, *more: str) -> tuple[list[dict], str]:
    """The figures that a benchmark of one round prints for a model folder, and the tables after them."""
    shape = ("--lengths", str(LENGTH), "--batch-sizes", str(BATCH_SIZE), "--answer-tokens", str(ANSWER))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        # The pause between turns keeps times clean, and times are not looked at here.
        patch.setattr(engine, "PAUSE_SECONDS", 0.0)
        assert engine.main(["--models", str(folder), *shape, "--rounds", "1", *more]) == 0
    lines, _, tables = printed.getvalue().partition("\n\n")
    return [json.loads(line) for line in lines.splitlines()], tables


def losses(figures: list[dict], answer_tokens: int) -> dict[str, float | None]:
    return {
        f["contestant"]: f["loss"]
        for f in figures
        if f["figure"] == "contestant" and f["answer_tokens"] == answer_tokens
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def printed(folder):
    with uncompiled():
        return run(folder, "--scopes", "full", "lora/last-2", "last-1", "last-6")


@pytest.fixture(scope="module")
def figures(printed):
    return printed[0]


def test_every_contestant_has_its_time_and_memory(figures):
    assert figures[0]["figure"] == "machine" and figures[0]["threads"] >= 1
    assert set(losses(figures, 1)) == {
        "forward",
        *(f"{part} full" for part in ("step", "noise", "update", "rsgn")),
        *(f"{part} {s}" for s in ("lora/last-2", "last-1") for part in ("step", "forward", "noise", "update", "rsgn")),
        "textbook",
        *(f"{bp} lora/last-2{how}" for bp in ("bp", "mlx-lm") for how in ("", ", checkpointing")),
    }
    for figure in (f for f in figures if f["figure"] == "contestant"):
        assert figure["length"] == LENGTH and figure["batch_size"] == BATCH_SIZE
        assert len(figure["seconds"]) == 1 and figure["median_seconds"] > 0
        assert figure["peak_bytes"] > 0


def test_a_step_leaves_no_memory_behind(figures):
    turns = [f for f in figures if f["figure"] == "contestant"]
    assert {f["resting_change_bytes"] for f in turns if f["contestant"].startswith(("step", "textbook", "bp"))} == {0}


def test_the_promised_ratios_are_there(figures):
    ratios = {(f["quantity"], f["of"], f["to"], f["times"]) for f in figures if f["figure"] == "ratio"}
    assert ratios >= {
        ("time", "step full", "forward", 2),
        ("peak", "step full", "forward", 1),
        ("time", "step last-1", "step full", 1),
        ("time", "textbook", "step full", 1),
        ("time", "bp lora/last-2", "step lora/last-2", 1),
        *(
            (quantity, f"bp lora/last-2{how}", f"mlx-lm lora/last-2{how}", 1)
            for quantity in ("time", "peak")
            for how in ("", ", checkpointing")
        ),
    }
    for figure in (f for f in figures if f["figure"] == "shares"):
        total = sum(figure[part] for part in ("forward", "noise", "update", "rest"))
        assert total == pytest.approx(1.0)


def test_what_a_model_cannot_do_is_said(figures):
    (skipped,) = [f for f in figures if f["figure"] == "skipped"]
    assert skipped["contestant"] == "step last-6" and "the model has 3" in skipped["reason"]


def test_the_tables_hold_every_cell(printed):
    tables = printed[1]
    headings = ("over forward peak", "noise in them", "faster than textbook in MLX", "peak over mlx-lm's")
    for heading in headings:
        assert heading in tables
    assert f"{BATCH_SIZE}x{LENGTH}, {ANSWER} answer tokens" in tables


@pytest.mark.parametrize("answer_tokens", [1, ANSWER])
def test_all_mezo_steps_see_the_loss_of_the_same_batch(figures, answer_tokens):
    seen = losses(figures, answer_tokens)
    for name in ("step full", "step lora/last-2", "forward lora/last-2", "step last-1", "forward last-1", "textbook"):
        # Two sides of a random direction have the plain loss as their mean, but for the curvature.
        assert seen[name] == pytest.approx(seen["forward"], rel=1e-2), name


@pytest.mark.parametrize("answer_tokens", [1, ANSWER])
def test_the_textbook_step_computes_the_same_loss(folder, answer_tokens):
    scoped = ScopedModel(load_model(folder), engine.run_config(str(folder), "full"))
    examples = synthetic_examples(Shape(LENGTH, BATCH_SIZE, answer_tokens), np.arange(10, 500))
    plain = scoped.turns(examples)["forward"](0)
    # So close to the weights that both sides have their loss.
    textbook = textbook_step(scoped.scorer.causal, whole_batch(examples), eps=1e-6, seed=1)
    assert textbook == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("checkpointing", ["", ", checkpointing"])
def test_backpropagation_trains_on_the_same_answer(figures, checkpointing):
    seen = losses(figures, ANSWER)
    for trainer in ("bp", "mlx-lm"):
        assert seen[f"{trainer} lora/last-2{checkpointing}"] == pytest.approx(seen["forward"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.variant
def test_the_compiled_steps_of_mlx_lm_train_on_the_same_answer(folder):
    figures, _ = run(folder, "--scopes", "lora/last-2", "--contestants", "bp")
    test_backpropagation_trains_on_the_same_answer(figures, "")
    test_backpropagation_trains_on_the_same_answer(figures, ", checkpointing")


def test_a_scopes_adapters_are_out_of_the_model_between_turns(folder):
    loaded = load_model(folder)
    before = dict(loaded.model.named_modules())
    scoped = ScopedModel(loaded, engine.run_config(str(folder), "lora"))
    assert dict(loaded.model.named_modules()) == before
    with scoped.installed():
        assert any("lora_a" in module for _, module in loaded.model.named_modules())
    assert dict(loaded.model.named_modules()) == before


def test_batches_are_of_exact_length_and_of_ordinary_tokens(folder):
    ids = ordinary_tokens(load_model(folder), 512)
    assert not set(range(len(SPECIAL_TOKENS))) & set(ids.tolist())
    for answer_tokens in (1, ANSWER):
        part = whole_batch(synthetic_examples(Shape(LENGTH, BATCH_SIZE, answer_tokens), ids))
        assert part.tokens.shape == (BATCH_SIZE, LENGTH)
        assert np.isin(part.tokens, ids).all()
        assert part.positions.tolist() == [
            row * LENGTH + LENGTH - answer_tokens + i for row in range(BATCH_SIZE) for i in range(answer_tokens)
        ]
        assert part.shared == (answer_tokens == 1)


def test_a_4bit_model_is_left_to_those_who_can(tmp_path):
    figures, _ = run(tiny_folder(tmp_path, bits=4), "--scopes", "full", "lora", "--contestants", "textbook")
    assert {f["contestant"] for f in figures if f["figure"] == "skipped"} == {"step full", "textbook"}
    assert {"forward", "step lora"} <= set(losses(figures, 1))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_reference_in_pytorch_computes_the_same_model(tmp_path, kind):
    pytest.importorskip("torch")
    figures, tables = run(tiny_folder(tmp_path, kind), "--scopes", "full", "--contestants", "--torch")
    (logits,) = [f for f in figures if f["figure"] == "torch logits"]
    assert logits["largest_relative_difference"] < 1e-4
    for answer_tokens in (1, ANSWER):
        seen = losses(figures, answer_tokens)
        assert seen["torch forward"] == pytest.approx(seen["forward"], rel=1e-4)
        assert seen["torch step"] == pytest.approx(seen["forward"], rel=1e-2)
    assert "faster than PyTorch" in tables


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_without_pytorch_the_option_says_what_to_install(capsys):
    with pytest.raises(SystemExit) as stopped:
        engine.main(["--torch"])
    assert stopped.value.code == 2
    assert "pip install '.[torch]'" in capsys.readouterr().err
