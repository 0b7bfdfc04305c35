"""What a whole run does to a tiny model, through the real command line and real child processes.

tests/shell/test_runs_of_the_cli.py has the ways a run is stopped, refused and shown.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory
from tests.command import mlxzo
from tests.tiny import tiny_folder
from tests.variants import slow

pytestmark = pytest.mark.device

TWENTY = ("--steps", 20, "--eval-every", 10)


def train(model: Path, data: Path, out: Path, *more: object) -> subprocess.CompletedProcess:
    fixed = ("--model", model, "--task", "custom", "--data", data, "--out", out, "--json")
    return mlxzo("train", *fixed, "--scope", "full", "--lr", "1e-3", "--batch-size", 8, "--eval-every", 20, *more)


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory) -> tuple[dict, RunDirectory]:
    out = tmp_path_factory.mktemp("runs")
    done = train(model, data, out, *TWENTY, "--name", "first")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), RunDirectory.open("first", out)


def test_training_lowers_the_loss_and_leaves_a_whole_run_directory(finished):
    result, run = finished
    assert result["training_loss"]["last"] < result["training_loss"]["first"]
    assert result["status"] == run.status == "finished"
    assert {path.name for path in run.path.iterdir()} >= {
        "config.yaml",
        "events.jsonl",
        "environment.json",
        "checkpoints",
        "result.json",
    }
    assert run.result() == {key: value for key, value in result.items() if key != "run"}
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["mlx"] and environment["variables"]["MLX_ENABLE_TF32"] == "0"
    assert len(environment["base_weights_sha256"]) == len(environment["data_sha256"]) == 64


def test_the_events_tell_the_whole_story_in_order(finished):
    result, run = finished
    story = [event for event, _ in run.events()]
    steps = [event for event in story if isinstance(event, events.Step)]
    assert [event.step for event in steps] == list(range(1, 21))
    assert all(event.peak_bytes >= event.active_bytes > 0 and event.tokens > 0 for event in steps)
    # The first steps tell nothing of the speed of later ones.
    assert steps[0].eta_seconds is None and 0 < steps[-1].eta_seconds < steps[10].eta_seconds
    evaluations = [event for event in story if isinstance(event, events.Evaluated)]
    assert [(e.kind, e.split, e.step) for e in evaluations[:2]] == [
        ("zero-shot", "validation", 0),
        ("zero-shot", "test", 0),
    ]
    assert [e.step for e in evaluations if e.kind == "validation"] == [10, 20]
    assert (evaluations[-1].kind, evaluations[-1].step) == ("test", result["best"]["step"])
    # The test split is looked at before training and once at the end, never between.
    assert sum(e.split == "test" for e in evaluations) == 2
    assert isinstance(story[-1], events.Finished)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(finished, model, data, tmp_path):
    _, run = finished

    def losses(of: RunDirectory) -> list[float]:
        return [event.loss for event, _ in of.events() if isinstance(event, events.Step)]

    for name, seed in (("again", 0), ("other", 1)):
        assert train(model, data, tmp_path, *TWENTY, "--name", name, "--seed", seed).returncode == 0
    again, other = (RunDirectory.open(name, tmp_path) for name in ("again", "other"))
    assert losses(again) == losses(run)
    best = "checkpoints/best.safetensors"
    assert (again.path / best).read_bytes() == (run.path / best).read_bytes()
    assert losses(other) != losses(run)


def test_a_run_out_of_time_is_the_beginning_of_one_with_more_time(finished, model, data, tmp_path):
    done = train(model, data, tmp_path, "--steps", 1_000_000, "--max-seconds", 0.8, "--name", "short")
    assert done.returncode == 0, done.stderr
    result, run = json.loads(done.stdout), RunDirectory.open("short", tmp_path)
    made = [event for event, _ in run.events() if isinstance(event, events.Step)]
    evaluated = [e for e, _ in run.events() if isinstance(e, events.Evaluated) and e.kind == "validation"]
    assert result["stopped_by"] == "time" and run.status == "finished"
    assert result["steps"] == made[-1].step == evaluated[-1].step < 1_000_000
    # The step or evaluation that reaches the limit is the last, but for the evaluation of the state at the end.
    spent = [step.seconds for step in made] + [evaluation.seconds for evaluation in evaluated]
    assert sum(spent) >= 0.8 > sum(spent) - spent[len(made) - 1] - evaluated[-1].seconds
    # No clock decides the bits: the run that is cut earlier, on a busy machine either, is the beginning of the other.
    again = train(model, data, tmp_path, "--steps", 1_000_000, "--max-seconds", 0.2, "--name", "shorter")
    assert again.returncode == 0, again.stderr
    others = [e for e, _ in RunDirectory.open("shorter", tmp_path).events() if isinstance(e, events.Step)]
    assert made and others
    assert all(one.loss == other.loss for one, other in zip(made, others, strict=False))


def test_a_program_s_prompts_are_answered_as_a_person_s(finished, model):
    _, run = finished
    words = ("What a great", "--max-new-tokens", 16, "--json")
    asked = json.loads(mlxzo("generate", "--run", run.path, *words).stdout)
    assert asked["base"] == json.loads(mlxzo("generate", "--model", model, *words).stdout)["base"] != asked["tuned"]
    request = json.dumps({"prompt": "What a great", "max_new_tokens": 16})
    served = mlxzo("generate", "--run", run.path, "--serve", "-", input=request + "\n")
    *pieces, last = map(json.loads, served.stdout.splitlines())
    assert last == {"done": True} and served.returncode == 0
    for speaker in ("base", "tuned"):
        assert "".join(piece["text"] for piece in pieces if piece["speaker"] == speaker) == asked[speaker]
    wrong = mlxzo("generate", "--model", model, "--serve", "-", input='{"prompt": 3}\n')
    assert wrong.returncode == 2 and "is no request" in wrong.stderr


@pytest.mark.parametrize("scope", [slow("norms/last-1"), slow("lora"), "biases+gains+match:*.o_proj.weight/last-1"])
def test_other_scopes_run_too_and_can_be_generated_from(scope, model, data, tmp_path):
    done = train(model, data, tmp_path, "--steps", 3, "--name", "small", "--scope", scope)
    assert done.returncode == 0, done.stderr
    spoken = mlxzo("generate", "--run", tmp_path / "small", "What a great", "--max-new-tokens", 4, "--json")
    assert spoken.returncode == 0, spoken.stderr
    assert {"base", "tuned"} <= json.loads(spoken.stdout).keys()


@pytest.mark.parametrize(
    "more", [("--scope", "lora", "--checkpointing", "on"), slow(("--optimizer", "adamw", "--lr", "3e-4"))]
)
def test_backpropagation_trains_in_the_same_loop(more, finished, model, data, tmp_path):
    done = train(model, data, tmp_path, "--steps", 10, "--name", "bp", "--method", "bp", "--lr", "3e-3", *more)
    assert done.returncode == 0, done.stderr
    result, run = json.loads(done.stdout), RunDirectory.open("bp", tmp_path)
    assert result["method"] == "bp"
    # Both methods start from the same model on the same data.
    assert result["zero_shot"]["validation"]["loss"] == finished[0]["zero_shot"]["validation"]["loss"]
    assert result["best"]["validation"]["loss"] < result["zero_shot"]["validation"]["loss"]
    steps = [event for event, _ in run.events() if isinstance(event, events.Step)]
    assert len(steps) == 10 and {step.directional_derivative for step in steps} == {None}
    for command in (("generate", "--run", run.path, "What a great"), ("eval", "--run", run.path)):
        assert mlxzo(*command, "--json").returncode == 0


def test_completions_train_on_their_own_loss(model, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"prompt": f"Question {i}: how many days?", "completion": " seven days"} for i in range(12)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = train(model, folder, tmp_path, "--steps", 8, "--name", "completions")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metric"] == "loss"
    assert result["test"] is None
    assert result["best"]["validation"]["loss"] < result["zero_shot"]["validation"]["loss"]


def test_a_run_that_diverges_says_so_and_exits_5(model, data, tmp_path):
    # float16 ends at 65504: steps this long leave it at once.
    done = train(model, data, tmp_path, "--steps", 50, "--lr", "1e6", "--dtype", "float16", "--name", "wild")
    assert done.returncode == 5, done.stderr
    error = json.loads(done.stdout)["error"]
    assert "not a finite number" in error["message"]
    assert "lower --lr" in error["fix"]
    assert (tmp_path / "wild" / "checkpoints" / "best.safetensors").exists()


def test_a_finite_loss_far_above_where_it_began_ends_the_run_and_is_never_the_best(model, data, tmp_path):
    done = train(model, data, tmp_path, "--steps", 8, "--method", "bp", "--lr", "9", "--eval-every", 4, "--name", "far")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 5, done.stderr
    assert re.fullmatch(r"the validation loss of step 4 is \d+\.\d, and it began with 0\.\d", error["message"])
    assert error["fix"] == "lower --lr (it was 9); the best state so far, of step 0, is saved"
    assert not [e for e, _ in RunDirectory.open("far", tmp_path).events() if isinstance(e, events.Evaluated) and e.best]


def test_weights_that_are_no_numbers_are_an_error_wherever_they_compute(data, tmp_path):
    broken = tiny_folder(tmp_path / "broken")
    weights = mx.load(str(broken / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] * mx.nan
    mx.save_safetensors(str(broken / "model.safetensors"), weights, metadata={"format": "mlx"})
    on = ("--model", broken, "--task", "custom", "--data", data)
    for command, sentence in (
        (("eval", *on), "the loss of 16 of 16 test examples is not a finite number"),
        (("generate", "--model", broken, "What a"), "the probability of the next token is not a finite number"),
        (("train", *on, "--out", tmp_path), "before training the loss of 16 of 16 validation examples is not a finite"),
    ):
        done = mlxzo(*command)
        assert done.returncode == 5 and sentence in done.stderr and "try --dtype float32" in done.stderr, done


def test_a_full_disk_while_saving_is_one_sentence_and_exit_code_3(model, data, tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs a small file system, which only root can mount")
    small = tmp_path / "small"
    small.mkdir()
    # Room for configuration and events, not for the 0.5 MB of the model's weights.
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        done = train(model, data, small, "--steps", 20, "--name", "full")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert "disk" in error["message"] or "space" in error["message"]
    assert "Traceback" not in done.stderr


def test_a_saved_state_of_another_scope_is_refused_with_every_difference(finished):
    from mlxzo.core.errors import ModelError
    from mlxzo.engine.checkpoint_file import load_state
    from mlxzo.models.causal import CausalLM
    from tests.tiny import tiny_model

    _, run = finished
    causal = CausalLM(tiny_model(hidden=32))
    with pytest.raises(ModelError) as caught:
        load_state(run.path / "checkpoints/best.safetensors", causal.slots, ("model.norm.weight", "no.such.weight"))
    text = "\n".join(caught.value.details)
    assert "no.such.weight is missing" in text
    assert "model.embed_tokens.weight is not a trained parameter" in text
    assert "model.norm.weight is mlx.core.float32" in text


def test_states_keep_their_bits(tmp_path):
    from mlxzo.engine.checkpoint_file import load_state, save_state
    from mlxzo.models.causal import CausalLM
    from tests.tiny import tiny_model

    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        causal = CausalLM(tiny_model(dtype=dtype))
        stored = {name: slot.get() for name, slot in causal.slots.items()}
        size = save_state(tmp_path / "state.safetensors", stored)
        assert size == (tmp_path / "state.safetensors").stat().st_size
        other = CausalLM(tiny_model(seed=1, dtype=dtype))
        load_state(tmp_path / "state.safetensors", other.slots, tuple(stored))
        assert all(mx.array_equal(other.slots[name].get(), value).item() for name, value in stored.items())
