"""Brings a base model to what it was tuned to: a run's best state, an adapter's tensors, or a journal's last step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from . import events
from .config import RunConfig
from .errors import ModelError
from .models.adapter_folder import ADAPTER_WEIGHTS, adapter_config
from .models.causal import Slot, parameter_slots
from .models.loading import LoadedModel, fingerprint, weights_fingerprint
from .models.safetensors_file import safetensors_problem
from .models.scope import Trainable, prepare
from .runs import BEST_STATE
from .states import load_state
from .tuned import Source, read_journal
from .zo.journal import Header, Journal
from .zo.noise import NOISE_VERSION
from .zo.replay import replay


def tune(loaded: LoadedModel, config: RunConfig, source: Source, emit: events.Emit) -> Trainable:
    """Brings a base model that was just loaded to what `source` holds; returns what of it was trained.

    An adapter does not say what of the model that was; nothing is returned as trained then.

    Raises:
        MlxzoError: what `source` names is missing, damaged, or of another model or scope.
    """
    if source.kind == "adapter":
        load_adapter(loaded, source.path)
        return Trainable(())
    base_sha256 = weights_fingerprint(loaded.model)
    trainable = prepare(loaded.model, config)
    slots = parameter_slots(loaded.model)
    if source.kind == "run":
        load_state(source.path / BEST_STATE, slots, trainable.names)
    else:
        trained = {name: slots[name] for name in trainable.names}
        bring(trained, read_journal(source.path), source.path.name, config.model, base_sha256, emit)
    return trainable


def load_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Puts an mlx-lm adapter (LoRA, DoRA, or whole tensors) into a model.

    Raises:
        ModelError: it is none, damaged, or of another model.
    """
    from mlx_lm.tuner.utils import load_adapters

    adapter_config(folder)
    if problem := safetensors_problem(folder / ADAPTER_WEIGHTS):
        raise ModelError(f"{folder / ADAPTER_WEIGHTS} is damaged: {problem}", "export the adapter again")
    try:
        load_adapters(loaded.model, str(folder))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # mlx-lm lists every tensor that has no place, or names the field of its configuration that it misses.
        lines = [line.strip() for line in str(error).splitlines()]
        raise ModelError(
            f"the adapter {folder} does not suit this model: {lines[0]}",
            "name the base model that it was trained on with --model",
            lines[1:],
        ) from None


def bring(
    slots: Mapping[str, Slot], journal: Journal, name: str, model: str, base_sha256: str, emit: events.Emit
) -> str:
    """Replays a journal on the parameters of its scope, and checks the outcome where the journal says what it is.

    Args:
        slots: of the trainable parameters of the base model, as `prepare` left them.
        name: of the journal, for messages, and `model` that of the base.

    Returns:
        The fingerprint of the parameters.

    Raises:
        ModelError: base weights, scope or version are not those that the journal is of.
    """
    header = journal.header
    if header.noise != NOISE_VERSION:
        raise ModelError(
            f"{name} was made with noise version {header.noise}, and this mlxzo makes {NOISE_VERSION}",
            "use the version of mlxzo that made it",
        )
    if base_sha256 != header.base_sha256:
        raise ModelError(
            f"{name} belongs to base weights with SHA-256 {header.base_sha256[:16]}..., and those of {model} "
            f"have {base_sha256[:16]}...",
            "name the base model that it was trained on with --model",
        )
    _check_parameters({name: slot.get() for name, slot in slots.items()}, header, name)
    replay(
        slots,
        journal,
        on_progress=lambda done, total: emit(events.Progress("replaying", float(done), float(total), "steps")),
    )
    sha256 = fingerprint({name: slot.get() for name, slot in slots.items()})
    if header.sha256 is not None and sha256 != header.sha256:
        raise ModelError(
            f"the weights rebuilt from {name} are not those of the run, although base and journal are",
            "please report this with the output of `mlxzo doctor`",
        )
    return sha256


def _check_parameters(parameters: Mapping[str, mx.array], header: Header, name: str) -> None:
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
