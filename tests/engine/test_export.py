"""What is exported computes what the run's best state computes: in mlx-lm itself, and rebuilt from a journal."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, DataError, DoesNotFit, ModelError
from mlxzo.core.resolved_config import ResolvedConfig
from mlxzo.core.run_directory import BEST_STATE, JOURNAL, RunDirectory
from mlxzo.engine.checkpoint_file import save_state
from mlxzo.engine.export import export_job, replay_job
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.scoring import Scorer
from mlxzo.engine.session import open_model
from mlxzo.engine.tuned_source import recorded_options
from mlxzo.models import export as export_module
from mlxzo.models.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mlxzo.models.causal import CausalLM
from mlxzo.models.loading import weights_fingerprint
from mlxzo.models.trainable import prepare
from mlxzo.zo.journal import RECORD_BYTES, Header, JournalWriter, read
from mlxzo.zo.noise import NOISE_VERSION
from tests.engine.examples import BATCHES
from tests.tiny import tiny_folder
from tests.variants import mostly_slow

pytestmark = pytest.mark.device

TOKENS = mx.array([[5, 9, 200, 31, 7, 77]])
STEPS = 4
SCOPES = ("full", "last-2", "lora", "norms/last-2", "gains", "norms+gains/last-1", "match:*.q_proj.weight")


def silent(event: object) -> None:
    """Takes the events that nobody watches."""


def tuned_run(folder: Path, scope: str, model: Path) -> tuple[RunDirectory, mx.array]:
    """A run of a few steps as training leaves it, and the logits of its best state, that of the last step but one."""
    config = RunConfig(
        model=str(model), scope=scope, lr=0.05, out=str(folder), name="run", steps=STEPS, seed=2
    ).resolved()
    run = RunDirectory.create(config)
    _, loaded = open_model(config, silent)
    base = weights_fingerprint(loaded.model)
    trainable = prepare(loaded.model, config)
    causal = CausalLM(loaded.model, None)
    method = MeZO(Scorer(causal, trainable.frozen_layers), trainable, config)
    method.journal = JournalWriter(run.path / JOURNAL, method.header(base))
    logits = None
    for step in range(STEPS):
        method.step(step, BATCHES["several"]())
        if step == STEPS - 2:
            state = {name: causal.slots[name].get() for name in trainable.names}
            save_state(run.path / BEST_STATE, state, step + 1)
            logits = loaded.model(TOKENS)
            mx.eval(logits)
    method.journal.close()
    return run, logits


def folder_of(tmp_path, **options) -> Path:
    path = tmp_path / "base"
    tiny_folder(path, **options)
    return path


def export(run: RunDirectory, form: str, out: Path, dequantise: bool = False) -> dict:
    return export_job(run, form=form, out=out, dequantise=dequantise, on_event=silent)


def base_logits(model: Path) -> mx.array:
    return mlx_lm.load(str(model))[0](TOKENS)


@pytest.mark.parametrize("scope", mostly_slow(SCOPES, ("full", "lora", "norms+gains/last-1")))
def test_mlx_lm_computes_the_same_with_an_adapter_and_with_the_fused_model(scope, tmp_path):
    model = folder_of(tmp_path)
    run, expected = tuned_run(tmp_path / "runs", scope, model)
    assert not mx.allclose(base_logits(model), expected, atol=1e-4).item()
    assert export(run, "adapter", tmp_path / "adapter")["step"] == STEPS - 1
    adapted, _ = mlx_lm.load(str(model), adapter_path=str(tmp_path / "adapter"))
    assert mx.allclose(adapted(TOKENS), expected, atol=1e-5).item()
    export(run, "fused", tmp_path / "fused")
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert mx.allclose(fused(TOKENS), expected, atol=1e-5).item()
    card = (tmp_path / "fused" / "README.md").read_text()
    assert f"scope `{scope}`" in card


def test_an_adapter_holds_what_was_trained_and_no_more(tmp_path):
    run, _ = tuned_run(tmp_path / "runs", "norms/last-1", folder_of(tmp_path))
    export(run, "adapter", tmp_path / "adapter")
    tensors = mx.load(str(tmp_path / "adapter" / ADAPTER_WEIGHTS))
    assert sorted(tensors) == [
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.post_attention_layernorm.weight",
        "model.norm.weight",
    ]
    assert json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())["fine_tune_type"] == "full"


@pytest.mark.parametrize("scope", mostly_slow(["scales", "gains", "lora"], ("scales", "lora")))
def test_a_quantised_base_stays_exact_where_it_can(scope, tmp_path):
    model = folder_of(tmp_path, bits=4)
    run, expected = tuned_run(tmp_path / "runs", scope, model)
    export(run, "adapter", tmp_path / "adapter")
    adapted, _ = mlx_lm.load(str(model), adapter_path=str(tmp_path / "adapter"))
    # Gains go into half-precision scales, which rounds them.
    assert mx.allclose(adapted(TOKENS), expected, atol=1e-5 if scope != "gains" else 0.05).item()
    done = export(run, "fused", tmp_path / "fused")
    assert (done["requantised"] > 0) == (scope == "lora")
    exact = export(run, "fused", tmp_path / "floating", dequantise=True)
    floating, _ = mlx_lm.load(str(tmp_path / "floating"))
    assert mx.allclose(floating(TOKENS), expected, atol=1e-3).item()
    assert exact["requantised"] == 0


def test_residual_biases_make_a_model_with_biases_or_say_why_not(tmp_path):
    model = folder_of(tmp_path)
    run, expected = tuned_run(tmp_path / "runs", "biases", model)
    with pytest.raises(ConfigError, match="no place for 3 parameters"):
        export(run, "adapter", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    export(run, "fused", tmp_path / "fused")
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert mx.allclose(fused(TOKENS), expected, atol=1e-5).item()
    other = tmp_path / "gemma"
    tiny_folder(other, kind="gemma3")
    run, _ = tuned_run(tmp_path / "others", "biases", other)
    with pytest.raises(ConfigError, match="gemma3_text has no place for residual biases"):
        export(run, "fused", tmp_path / "gemma-fused")


@pytest.mark.parametrize("scope", mostly_slow(["full", "lora", "biases"], ("full", "lora")))
def test_a_journal_of_kilobytes_rebuilds_the_best_state(scope, tmp_path):
    model = folder_of(tmp_path)
    run, expected = tuned_run(tmp_path / "runs", scope, model)
    done = export(run, "journal", tmp_path / "small.mlxzo")
    assert done["bytes"] == (tmp_path / "small.mlxzo").stat().st_size < 8000
    told = replay_job(
        tmp_path / "small.mlxzo",
        model=str(model),
        form="fused",
        out=tmp_path / "again",
        dequantise=False,
        on_event=silent,
    )
    assert told["verified"]
    assert told["steps"] == STEPS - 1
    fused, _ = mlx_lm.load(str(tmp_path / "again"))
    assert mx.allclose(fused(TOKENS), expected, atol=1e-5).item()
    # The private places of the machine it comes from stay there.
    assert str(tmp_path) not in str(read(tmp_path / "small.mlxzo").header)


def test_a_journal_is_refused_with_another_base(tmp_path):
    run, _ = tuned_run(tmp_path / "runs", "full", folder_of(tmp_path))
    other = tmp_path / "other"
    tiny_folder(other, seed=1)
    with pytest.raises(ModelError, match="belongs to base weights"):
        replay_job(
            run.path / JOURNAL, model=str(other), form="fused", out=tmp_path / "x", dequantise=False, on_event=silent
        )
    assert not (tmp_path / "x").exists()


def test_a_journal_whose_base_cannot_be_found_or_a_folder_in_its_place_is_told_what_to_name(tmp_path, monkeypatch):
    run, _ = tuned_run(tmp_path / "runs", "norms/last-1", folder_of(tmp_path))
    export(run, "journal", tmp_path / "small.mlxzo")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    more = {"model": None, "form": "fused", "out": tmp_path / "x", "dequantise": False, "on_event": silent}
    with pytest.raises(ModelError) as caught:
        replay_job(tmp_path / "small.mlxzo", **more)
    assert "--model names a copy of the base model" in caught.value.fix
    with pytest.raises(ConfigError) as refused:
        replay_job(run.path, **more)
    assert refused.value.fix == f"the journal of a run is {run.path / JOURNAL}"


def test_an_exported_journal_that_was_cut_is_told_to_be_copied_again(tmp_path):
    model = folder_of(tmp_path)
    run, _ = tuned_run(tmp_path / "runs", "norms/last-1", model)
    export(run, "journal", tmp_path / "whole")
    for lost in (5, RECORD_BYTES):
        (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-lost])
        with pytest.raises(
            (DataError, ModelError), match="is cut short" if lost == 5 else "not those that it"
        ) as caught:
            replay_job(
                tmp_path / "cut", model=str(model), form="fused", out=tmp_path / "x", dequantise=False, on_event=silent
            )
        assert "again from where it came from" in caught.value.fix and not (tmp_path / "x").exists()


def test_nothing_is_overwritten_and_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    run, _ = tuned_run(tmp_path / "runs", "norms/last-1", folder_of(tmp_path))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigError, match="exists already"):
        export(run, "fused", tmp_path / "taken")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "publish_folder", full)
    with pytest.raises(DoesNotFit):
        export(run, "fused", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "runs", "taken"}


def test_the_folder_of_a_killed_export_goes_with_the_next_one_and_that_of_a_live_one_stays(tmp_path):
    left, live, other = (tmp_path / name for name in (".out.part-left", ".out.part-live", ".others.part-x"))
    for folder in (left, live, other):
        (folder / "out").mkdir(parents=True)
    with export_module._held(live), export_module.new_folder(tmp_path / "out", 0) as folder:
        (folder / "model.safetensors").write_bytes(b"x")
    assert {path.name for path in tmp_path.iterdir()} == {live.name, other.name, "out"}


def test_a_write_that_mlx_reports_as_failed_is_told_with_the_place(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"), export_module.writing(tmp_path / "out"):
        raise RuntimeError("[write] Unable to write 199 bytes to file.")


@pytest.mark.parametrize("options", [{}, {"estimator": "spsa"}, {"objective": "reward", "reward_command": "judge"}])
def test_the_options_of_a_runs_own_journal_are_read_whatever_its_estimator(options):
    """Its header holds a resolved configuration, which has values for the options of other estimators too."""
    resolved = ResolvedConfig.of(RunConfig(**options))
    header = Header(resolved.to_dict(), "ab" * 32, (), NOISE_VERSION)
    recorded = recorded_options(SimpleNamespace(header=header))
    assert RunConfig.from_mapping(recorded).estimator == resolved.estimator
