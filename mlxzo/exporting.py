"""What leaves mlxzo: a run's best state, or one rebuilt from a journal, as mlx-lm's files or as a closed journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import events
from .card import card
from .config import RunConfig
from .errors import ConfigError, DataError, ModelError
from .files import write_atomic
from .models.causal import Slot, parameter_slots
from .models.export import Folded, write_adapter, write_fused
from .models.loading import fingerprint, weights_fingerprint
from .models.scope import Trainable, prepare
from .runs import BEST_STATE, JOURNAL, RunDirectory
from .session import open_model
from .states import load_state
from .zo.journal import Header, Journal, JournalError, read
from .zo.noise import NOISE_VERSION
from .zo.replay import replay


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
    tuned = replayed(journal, path.name, model, on_event)
    sha256 = fingerprint(tuned.parameters())
    verified = journal.header.sha256 is not None
    if verified and sha256 != journal.header.sha256:
        raise ModelError(
            f"the weights rebuilt from {path.name} are not those of the run, although base and journal are",
            "please report this with the output of `mlxzo doctor`",
        )
    text = card(tuned.config, form, len(journal), None, tuned.base_sha256)
    folded = tuned.write(form, out, journal.header.card or text, dequantise)
    return {
        "journal": str(path),
        "steps": len(journal),
        "sha256": sha256,
        "verified": verified,
        "form": form,
        "out": str(out),
        **_told(folded),
    }


def replayed(journal: Journal, name: str, model: str | None, emit: events.Emit) -> Tuned:
    """The model that a journal leads to.

    Raises:
        ModelError: the base weights are others, or the scope finds other parameters in them.
    """
    header = journal.header
    if header.noise != NOISE_VERSION:
        raise ModelError(
            f"{name} was made with noise version {header.noise}, and this mlxzo makes {NOISE_VERSION}",
            "use the version of mlxzo that made it",
        )
    overrides = {} if model is None else {"model": model}
    config = RunConfig.from_mapping({**header.config, **overrides}, source=name)
    tuned = Tuned(config, emit)
    if tuned.base_sha256 != header.base_sha256:
        raise ModelError(
            f"{name} belongs to base weights with SHA-256 {header.base_sha256[:16]}..., and those of {config.model} "
            f"have {tuned.base_sha256[:16]}...",
            "name the base model that it was trained on with --model",
        )
    check_parameters(tuned.parameters(), header, name)
    replay(
        tuned.slots,
        journal,
        on_progress=lambda done, total: emit(events.Progress("replaying", float(done), float(total), "steps")),
    )
    return tuned


def check_parameters(parameters: dict[str, mx.array], header: Header, name: str) -> None:
    """Raises ModelError unless a journal is of just these parameters."""
    here = {n: (str(p.dtype).removeprefix("mlx.core."), tuple(p.shape)) for n, p in parameters.items()}
    there = {p.name: (p.dtype, p.shape) for p in header.parameters}
    problems = [
        f"{n} is {here.get(n, 'missing')} here and {there.get(n, 'missing')} in the journal"
        for n in sorted(here.keys() | there.keys())
        if here.get(n) != there.get(n)
    ]
    if problems:
        raise ModelError(
            f"{name} is of other parameters than its scope finds in the model",
            "use the version of mlxzo that made it",
            problems,
        )


def read_journal(path: Path) -> Journal:
    """Reads a journal.

    Raises:
        ConfigError: there is none. DataError: it is damaged, or no journal.
    """
    try:
        return read(path)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no journal at {path}", "only MeZO runs have one; use --to adapter or --to fused"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    except JournalError as error:
        raise DataError(str(error), "copy it again from where it came from") from None


def _told(folded: Folded | None) -> dict[str, Any]:
    return {} if folded is None else {"tensors": len(folded.changed), "requantised": folded.requantised}
