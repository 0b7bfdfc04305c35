"""`mlxzo plan` as a user meets it."""

import json
import subprocess
import sys

import pytest

from mlxzo.cli.main import main
from mlxzo.models.registry import load_registry


def plan(capsys, *arguments):
    code = main(["plan", *arguments])
    return code, capsys.readouterr()


def test_the_whole_registry_is_answered_without_mlx():
    program = (
        "import sys; from mlxzo.cli.main import main; code = main(['plan', '--memory-cap', '8GB', '--json']); "
        "assert not {'mlx', 'mlx.core', 'mlx_lm', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    document = json.loads(child.stdout)
    assert {row["model"] for row in document["rows"]} == set(load_registry())
    assert document["recommendation"]
    for row in document["rows"]:
        assert sum(part["bytes"] for part in row["components"]) == row["footprint_bytes"]
        assert row["fits"] == (1.05 * row["footprint_bytes"] <= 8e9 + 2) or not row["fits"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--memory-cap 8giraffes", 2, "expected a size such as 8GB"),
        ("--memory-cap 50MB", 3, "below what Python, MLX and a tokenizer take"),
        ("--tokens 0", 2, "--tokens: expected a whole number"),
        ("--tokens 64 --task reviews", 2, "--tokens is the length of made-up examples"),
        ("--model smolm2-135m", 4, "did you mean smollm2-135m"),
        ("--figure plan.doc", 2, "none of .svg, .png and .pdf"),
        ("--batch-size 0", 2, "batch_size: expected a whole number"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(capsys, arguments, code, said):
    got, printed = plan(capsys, *arguments.split())
    assert (got, said in printed.err) == (code, True), printed.err


def test_one_model_shows_its_components_for_each_way(capsys):
    code, printed = plan(capsys, "--memory-cap", "3GB", "--model", "qwen3-0.6b", "--tokens", "128")
    assert code == 0
    assert "qwen3-0.6b, MeZO full: fits" in printed.out
    assert "qwen3-0.6b, BP full: does not fit; at the least" in printed.out
    for text in ("weights", "optimiser state", "predicted peak", "plan --calibrate", "Choose qwen3-0.6b with BP LoRA"):
        assert text in printed.out


def test_all_models_are_grouped_by_what_fits(capsys):
    code, printed = plan(capsys, "--memory-cap", "2GB")
    assert code == 0
    first, last = printed.out.index("Backpropagation fits"), printed.out.index("Nothing fits")
    assert first < printed.out.index("smollm2-360m-4bit") < last < printed.out.index("mistral-7b")


def test_a_folder_of_an_unknown_architecture_says_what_is_assumed(capsys, tmp_path):
    figures = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps({**figures, "model_type": "novel"}))
    code, printed = plan(capsys, "--memory-cap", "8GB", "--model", str(tmp_path))
    assert code == 0
    assert "'novel', is not known here and is taken for a llama-like decoder" in printed.out.replace("\n", " ")


def test_a_task_gives_the_lengths(capsys):
    code, printed = plan(capsys, "--memory-cap", "8GB", "--task", "reviews", "--model", "smollm2-360m")
    assert code == 0
    assert "reviews: up to" in printed.out


def test_the_picture_is_drawn(capsys, tmp_path):
    file = tmp_path / "plan.svg"
    code, printed = plan(capsys, "--memory-cap", "8GB", "--figure", str(file))
    assert (code, str(file) in printed.out) == (0, True)
    assert file.read_text().lstrip().startswith("<?xml")


def test_a_calibration_gives_times(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MLXZO_HOME", str(tmp_path))
    code, printed = plan(capsys, "--memory-cap", "8GB", "--model", "smollm2-360m", "--calibrate", "--json")
    assert code == 0
    measured = json.loads(printed.out)
    assert measured["calibration"]["flops"] > 1e8
    seconds = {row["way"]["name"]: row["seconds_per_step"] for row in measured["rows"]}
    assert 0 < seconds["BP LoRA"] < seconds["BP LoRA, checkpointing"]
    # It is kept.
    _, printed = plan(capsys, "--memory-cap", "8GB", "--model", "smollm2-360m", "--json")
    assert json.loads(printed.out)["calibration"] == measured["calibration"]
