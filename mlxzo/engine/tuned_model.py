"""Brings a base model to what it was tuned to: a run's best state, an adapter's tensors, or a journal's last step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import mlx.core as mx

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ModelError
from ..core.run_directory import BEST_STATE
from ..models.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from ..models.loading import LoadedModel, fingerprint, weights_fingerprint
from ..models.safetensors_file import safetensors_problem
from ..models.slots import Slot, parameter_slots
from ..models.trainable import Trainable, prepare
from ..zo.journal import Header, Journal
from ..zo.noise import NOISE_VERSION
from ..zo.replay import replay
from .checkpoint_file import load_state
from .tuned_source import Source, read_journal


class Tuning:
    """What a base model that was just loaded is to be tuned to. To make one changes nothing that the model computes.

    Attributes:
        trainable: what was trained of it; of an adapter, which does not say that of the model, nothing.
        slots: where the parameters are that `apply` sets.
    """

    def __init__(self, loaded: LoadedModel, config: RunConfig, source: Source):
        """Makes room in the model.

        Raises:
            MlxzoError: what `source` names is missing, damaged, or of another model or scope.
        """
        self._model, self._source = config.model, source
        if source.kind == "adapter":
            self.trainable = Trainable(())
            self._tensors = add_adapter(loaded, source.path)
            names: Iterable[str] = self._tensors
        else:
            if source.kind == "journal":
                self._base_sha256 = weights_fingerprint(loaded.model)
            self.trainable = prepare(loaded.model, config)
            names = self.trainable.names
        slots = parameter_slots(loaded.model)
        self.slots: dict[str, Slot] = {name: slots[name] for name in names}

    def apply(self, emit: events.Emit) -> None:
        """Brings the model to it.

        Raises:
            MlxzoError: as for making one.
        """
        path = self._source.path
        if self._source.kind == "adapter":
            for name, tensor in self._tensors.items():
                self.slots[name].set(tensor)
        elif self._source.kind == "run":
            load_state(path / BEST_STATE, self.slots, self.trainable.names)
        else:
            replay_checked(self.slots, read_journal(path), path.name, self._model, self._base_sha256, emit)


def add_adapter(loaded: LoadedModel, folder: Path) -> dict[str, mx.array]:
    """Makes room in a model for an mlx-lm adapter (LoRA, DoRA, or whole tensors); returns its tensors by name.

    Raises:
        ModelError: it is none, damaged, or of another model.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    path, described = folder / ADAPTER_WEIGHTS, adapter_config(folder)
    if problem := safetensors_problem(path):
        raise ModelError(f"{path} is damaged: {problem}", "export the adapter again")
    kind = described.get("fine_tune_type", "lora")
    try:
        if kind != "full":
            layers, parameters = described["num_layers"], described["lora_parameters"]
            linear_to_lora_layers(loaded.model, layers, parameters, use_dora=kind == "dora")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} makes no sense for this model: {type(error).__name__}: {error}",
            "export the adapter again, or name the base model that it was trained on with --model",
        ) from None
    tensors, slots = mx.load(str(path)), parameter_slots(loaded.model)
    shapes = {name: tuple(slots[name].get().shape) if name in slots else None for name in tensors}
    problems = [
        f"{name} is {tuple(tensor.shape)} in the adapter and {shapes[name] or 'missing'} in the model"
        for name, tensor in sorted(tensors.items())
        if tuple(tensor.shape) != shapes[name]
    ]
    if problems:
        raise ModelError(
            f"the adapter {folder} is not of this model",
            "name the base model that it was trained on with --model",
            problems,
        )
    return tensors


def replay_checked(
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
