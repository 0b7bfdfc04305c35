"""Export: a run's best state, or one rebuilt from a journal, in mlx-lm's files or as a complete journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ConfigError, ModelError
from ..core.files import write_atomic
from ..core.run_directory import JOURNAL, RunDirectory
from ..models.export import CARD, write_adapter, write_fused, writing
from ..models.loading import fingerprint, weights_fingerprint
from ..models.model_card import card
from .session import open_model
from .task_record import task_record
from .tuned_model import TunedModel
from .tuned_source import Source, read_journal, recorded_options


def export_job(run: RunDirectory, *, form: str, out: Path, dequantise: bool, on_event: events.Emit) -> dict[str, Any]:
    """Writes the best state of a run as `adapter`, `fused` or `journal`.

    Raises:
        MlxzoError: model or state are missing or damaged, the form does not suit the run, or `out` cannot be written.
    """
    _, loaded = open_model(run.config, on_event)
    base_sha256 = weights_fingerprint(loaded.model)
    tuned = TunedModel(loaded, run.config, Source("run", run.path))
    step = tuned.apply(on_event)
    text = card(_impersonal(run.config), form, step, run.result(), base_sha256)
    done: dict[str, Any] = {"run": str(run.path), "form": form, "out": str(out), "step": step}
    on_event(events.Phase("save", str(out)))
    if form != "journal":
        return {**done, **_write(tuned, form, out, {CARD: text, **task_record(run.config, on_event)}, dequantise)}
    journal = read_journal(run.path / JOURNAL)
    if out.exists():
        raise ConfigError(f"{out} exists already", "name another file with --out")
    config = _impersonal(run.config).to_dict()
    header = replace(journal.header, config=config, card=text, sha256=fingerprint(tuned.parameters()))
    data = journal.encode(step, header)
    with writing(out):
        write_atomic(out, data)
    return {**done, "bytes": len(data)}


def _impersonal(config: RunConfig) -> RunConfig:
    """The configuration without paths of this machine, which are private."""
    names = {
        key: Path(getattr(config, key)).name for key in ("model", "task") if Path(getattr(config, key)).is_absolute()
    }
    return replace(config, data=None, name=None, out=RunConfig.out, **names)


def replay_job(
    path: Path, *, model: str | None, form: str, out: Path, dequantise: bool, on_event: events.Emit
) -> dict[str, Any]:
    """Rebuilds the weights of a journal's last step, verifies them, and writes them as `adapter` or `fused`.

    Args:
        model: the base model; None for the one that the journal names.

    Raises:
        MlxzoError: the journal is damaged or of another base, or as for `export_job`.
    """
    journal = read_journal(path)
    overrides = {} if model is None else {"model": model}
    config = RunConfig.from_mapping({**recorded_options(journal), **overrides}, source=path.name)
    try:
        _, loaded = open_model(config, on_event)
    except ModelError as error:
        if model is None:
            # A journal holds no path of the machine that it comes from.
            error.fix += "; --model names a copy of the base model that the journal is of"
        raise
    tuned = TunedModel(loaded, config, Source("journal", path))
    sha256 = tuned.replay(journal, on_event)
    text = journal.header.card or card(config, form, len(journal), None, tuned.base_sha256)
    return {
        "journal": str(path),
        "steps": len(journal),
        "sha256": sha256,
        "verified": journal.header.sha256 is not None,
        "form": form,
        "out": str(out),
        **_write(tuned, form, out, {CARD: text, **task_record(config, on_event)}, dequantise),
    }


def _write(tuned: TunedModel, form: str, out: Path, texts: dict[str, str], dequantise: bool) -> dict[str, Any]:
    """Writes `adapter` or `fused` with further files; returns counts of changed and requantised tensors, if folded."""
    names, base = tuned.trainable.names, tuned.base_names
    if form == "adapter":
        folded = write_adapter(tuned.loaded, tuned.config, names, base, out, texts)
    else:
        folded = write_fused(tuned.loaded, names, base, out, texts, dequantise=dequantise)
    return {} if folded is None else {"tensors": len(folded.changed), "requantised": folded.requantised}
