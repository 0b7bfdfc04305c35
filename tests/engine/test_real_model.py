"""The main job on the real default model: slow, and needs the model once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def mlxzo(*arguments: object) -> dict:
    command = [sys.executable, "-m", "mlxzo", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_quickstart_learns_and_its_state_can_be_measured_again(tmp_path):
    result = mlxzo("quickstart", "--out", tmp_path)
    before, after = result["zero_shot"]["test"], result["test"]
    assert before["majority"] == 0.25 and before["examples"] == 400
    assert after["loss"] < before["loss"] - 0.8
    # Less than what was measured with three seeds, by two standard errors and more.
    assert after["value"] > before["value"] + 0.4
    again = mlxzo("eval", "--run", result["run"], "--split", "test")
    assert again["value"] == after["value"]


@pytest.mark.parametrize(
    ("model", "scope"),
    [
        ("smollm2-135m", "full"),
        ("smollm2-135m", "lora/last-8"),
        # 4-bit weights stay; what trains beside them has few parameters.
        ("smollm2-135m-4bit", "norms+lora/last-2"),
    ],
)
def test_every_kind_of_scope_takes_steps_on_a_real_model(model, scope, tmp_path):
    few = ("--train-examples", 32, "--validation-examples", 8, "--test-examples", 8, "--batch-size", 4, "--queries", 2)
    result = mlxzo("train", "--model", model, "--scope", scope, "--steps", 3, *few, "--out", tmp_path)
    assert result["training_loss"]["last"] > 0
    if model.endswith("4bit"):
        assert result["memory"]["mlx_peak_bytes"] < 300e6


def test_generated_text_joins_its_prompt_with_the_space_the_model_wrote():
    spoken = mlxzo("generate", "The capital of France is", "--max-new-tokens", 4)
    assert spoken["base"].startswith(" Paris")
