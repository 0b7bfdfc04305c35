"""A tuned model is the same model wherever it is taken from: its run, an adapter, a journal, or fused weights."""

from __future__ import annotations

import io
import json
import math
import shutil

import mlx.core as mx
import pytest

from mlxzo.cli.main import main
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import RunDirectory
from tests.engine.test_resume import train
from tests.tiny import tiny_folder

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def run(model, data, tmp_path_factory):
    config = RunConfig(
        model=str(model),
        task="custom",
        data=str(data),
        out=str(tmp_path_factory.mktemp("runs")),
        scope="lora/last-2",
        lr=0.03,
        steps=6,
        batch_size=8,
        eval_every=3,
    )
    run = RunDirectory.create(config.resolved())
    train(run)
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """What `mlxzo export` makes of it, by form."""
    folder = tmp_path_factory.mktemp("exported")
    for form in ("adapter", "fused", "journal"):
        assert main(["export", str(run.path), "--to", form, "--out", str(folder / form)]) == 0
    return folder


def said(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_whatever_form_it_has_it_measures_and_speaks_alike(run, exported, model, data, capsys):
    on_data = ("--task", "custom", "--data", data)
    prompt = ("the film was", "--max-new-tokens", 20)
    base = said(capsys, "eval", "--model", model, *on_data)
    expected = said(capsys, "eval", "--run", run.path)
    spoken = said(capsys, "generate", "--run", run.path, *prompt)
    assert expected["loss"] != base["loss"]
    assert expected["run"] == str(run.path) and expected["adapter"] is None
    for how, options in {
        "adapter": ("--adapter", exported / "adapter"),
        "journal": ("--journal", exported / "journal", "--model", model),
        "fused": ("--model", exported / "fused"),
    }.items():
        found = said(capsys, "eval", *options, *on_data)
        # Only a journal says which layers are frozen, so that their output is taken as it was in training.
        assert found["loss"] == pytest.approx(expected["loss"], abs=0.0 if how == "journal" else 1e-5), how
        assert found["value"] == expected["value"]
        words = said(capsys, "generate", *options, *prompt)
        assert words["base" if how == "fused" else "tuned"] == spoken["tuned"]


def test_whatever_form_it_has_it_labels_alike_beside_its_base(
    run, exported, model, data, tmp_path, capsys, monkeypatch
):
    on_data = ("--task", "custom", "--data", data)
    text = "What a dull garden!"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")

    def labelled(*options) -> dict[str, float]:
        assert main(["predict", *map(str, options), str(tmp_path / "rows.jsonl")]) == 0
        row = json.loads(capsys.readouterr().out)
        return {label: row[f"probability_{label}"] for label in ("negative", "positive")}

    found = said(capsys, "generate", "--run", run.path, text)
    base, tuned = found["base"]["probabilities"], found["tuned"]["probabilities"]
    assert found["tuned"]["label"] == max(tuned, key=tuned.get)
    assert base != pytest.approx(tuned, abs=1e-3)
    assert labelled("--model", model, *on_data) == pytest.approx(base, abs=1e-5)
    for options in (
        ("--run", run.path),
        ("--run", exported / "adapter"),
        ("--run", exported / "fused"),
        ("--run", exported / "journal", "--model", model, "--data", data),
    ):
        assert labelled(*options) == pytest.approx(tuned, abs=1e-5), options
    # A fused model that is named as what a run became is no base.
    fused = said(capsys, "generate", "--run", exported / "fused", text)
    assert fused["tuned"]["probabilities"] == pytest.approx(tuned, abs=1e-5) and "base" not in fused
    assert main(["generate", "--run", str(run.path), text]) == 0
    shown = capsys.readouterr().out
    assert "base" in shown and f"{100 * tuned['negative']:.1f} %" in shown
    # Other programs, such as the app, ask for the same of models that stay loaded.
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"row": {"text": text}}) + "\n"))
    assert main(["generate", "--run", str(run.path), "--serve", "-"]) == 0
    *served, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert served == [{"speaker": name, **found[name]} for name in ("base", "tuned")] and end == {"done": True}
    assert main(["predict", "--model", str(model), str(tmp_path / "rows.jsonl")]) == 2
    assert "nothing says what this model was tuned for" in " ".join(capsys.readouterr().err.split())


def with_tensors(folder, change) -> None:
    path = str(folder / "adapters.safetensors")
    tensors = {name: mx.array(value) for name, value in mx.load(path).items()}
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(path, tensors)


def nan(tensors) -> None:
    name = min(tensors)
    tensors[name] = mx.where(mx.arange(tensors[name].size).reshape(tensors[name].shape) == 3, mx.nan, tensors[name])


def with_parameters(folder, **changes) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_parameters"].update(changes)
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "says", "code"),
    [
        (lambda folder: (folder / "adapters.safetensors").unlink(), "no adapters.safetensors", 4),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not valid JSON", 4),
        (
            lambda folder: (folder / "adapter_config.json").write_text('{"fine_tune_type": "lora"}'),
            "lacks 'num_layers'",
            4,
        ),
        (lambda folder: (folder / "adapters.safetensors").write_bytes(b"abc"), "is damaged", 4),
        (lambda folder: with_tensors(folder, lambda tensors: tensors.clear()), "holds no tensor", 4),
        (lambda folder: with_tensors(folder, lambda tensors: tensors.popitem()), "is missing in the adapter", 4),
        (lambda folder: with_tensors(folder, nan), "numbers that are not finite, in model.layers", 4),
        (lambda folder: with_parameters(folder, scale=math.nan), "scale that is no finite number", 4),
        (lambda folder: with_parameters(folder, rank="8"), "makes no sense", 4),
        (lambda folder: with_parameters(folder, rank=10**30), "adapter_config.json", 4),
    ],
)
def test_a_damaged_adapter_is_named(damage, says, code, exported, model, tmp_path, capsys):
    folder = tmp_path / "adapter"
    shutil.copytree(exported / "adapter", folder)
    damage(folder)
    assert main(["generate", "--adapter", str(folder), "--model", str(model), "hello"]) == code
    assert says in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused_tensor_by_tensor(exported, tmp_path, capsys):
    other = tiny_folder(tmp_path / "other", hidden=32)
    assert main(["generate", "--adapter", str(exported / "adapter"), "--model", str(other), "hello"]) == 4
    shown = capsys.readouterr().err
    assert "is not of this model" in shown and "q_proj.lora_a is (64, 8) in the adapter and (32, 8)" in " ".join(
        shown.split()
    )


def test_what_is_not_there_is_said(tmp_path, capsys):
    assert main(["eval", "--adapter", str(tmp_path / "none")]) == 4
    assert main(["eval", "--journal", str(tmp_path / "none")]) == 2
    (tmp_path / "text").write_text("no journal")
    assert main(["eval", "--journal", str(tmp_path / "text")]) == 4
    shown = " ".join(capsys.readouterr().err.split())
    for words in ("is not an adapter folder", "there is no journal at", "text is not a journal of mlxzo"):
        assert words in shown
