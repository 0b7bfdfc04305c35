"""What leaves mlxzo: a run's best state, or one rebuilt from a journal, as mlx-lm's files or as a closed journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..core.files import write_atomic
from ..core.run_directory import BEST_STATE, JOURNAL, RunDirectory
from ..models.export import Folded, write_adapter, write_fused, writing
from ..models.loading import fingerprint, weights_fingerprint
from ..models.model_card import card
from ..models.slots import Slot, parameter_slots
from ..models.trainable import Trainable, prepare
from .checkpoint_file import load_state
from .session import open_model
from .tuned_model import replay_checked
from .tuned_source import read_journal


class Tuned:
    """A base model made ready for a run's scope, whose parameters are then brought to a state of that run.

    Attributes:
        base: names of the parameters that the model had before.
        base_sha256: fingerprint of the base weights.
    """

    def __init__(self, config: RunConfig, emit: events.Emit):
        self.config = config
        _, self.loaded = open_model(config, emit)
        self.base_sha256 = weights_fingerprint(self.loaded.model)
        self.base = tuple(parameter_slots(self.loaded.model))
        self.trainable: Trainable = prepare(self.loaded.model, config)
        slots = parameter_slots(self.loaded.model)
        self.slots: dict[str, Slot] = {name: slots[name] for name in self.trainable.names}

    def parameters(self) -> dict[str, mx.array]:
        return {name: slot.get() for name, slot in self.slots.items()}

    def write(self, form: str, out: Path, text: str, dequantise: bool) -> Folded | None:
        names = self.trainable.names
        if form == "adapter":
            return write_adapter(self.loaded, self.config, names, self.base, out, text)
        return write_fused(self.loaded, names, self.base, out, text, dequantise=dequantise)


def export_job(run: RunDirectory, *, form: str, out: Path, dequantise: bool, on_event: events.Emit) -> dict[str, Any]:
    """Writes the best state of a run as `adapter`, `fused` or `journal`.

    Raises:
        MlxzoError: the model or the state cannot be had, the form does not suit the run, or `out` cannot be written.
    """
    tuned = Tuned(run.config, on_event)
    step = load_state(run.path / BEST_STATE, tuned.slots, tuned.trainable.names)
    text = card(_impersonal(run.config), form, step, run.result(), tuned.base_sha256)
    done: dict[str, Any] = {"run": str(run.path), "form": form, "out": str(out), "step": step}
    on_event(events.Phase("save", str(out)))
    if form != "journal":
        folded = tuned.write(form, out, text, dequantise)
        return {**done, **_told(folded)}
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
    """A configuration without the paths of this machine, which others need not know."""
    names = {
        key: Path(getattr(config, key)).name for key in ("model", "task") if Path(getattr(config, key)).is_absolute()
    }
    return replace(config, data=None, name=None, out=RunConfig.out, **names)


def replay_job(
    path: Path, *, model: str | None, form: str, out: Path, dequantise: bool, on_event: events.Emit
) -> dict[str, Any]:
    """Rebuilds the weights that a journal leads to, checks them, and writes them as `adapter` or `fused`.

    Args:
        model: the base model; None for the one that the journal names.

    Raises:
        MlxzoError: the journal is damaged or of another base, or what `export_job` raises.
    """
    journal = read_journal(path)
    overrides = {} if model is None else {"model": model}
    tuned = Tuned(RunConfig.from_mapping({**journal.header.config, **overrides}, source=path.name), on_event)
    sha256 = replay_checked(tuned.slots, journal, path.name, tuned.config.model, tuned.base_sha256, on_event)
    text = card(tuned.config, form, len(journal), None, tuned.base_sha256)
    folded = tuned.write(form, out, journal.header.card or text, dequantise)
    return {
        "journal": str(path),
        "steps": len(journal),
        "sha256": sha256,
        "verified": journal.header.sha256 is not None,
        "form": form,
        "out": str(out),
        **_told(folded),
    }


def _told(folded: Folded | None) -> dict[str, Any]:
    return {} if folded is None else {"tensors": len(folded.changed), "requantised": folded.requantised}
