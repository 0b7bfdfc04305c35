"""A base model brought to what it was tuned to: a run's best state, an adapter's tensors, or a journal's last step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import mlx.core as mx

from ..core import events
from ..core.config import RunConfig
from ..core.errors import DataError, ModelError
from ..core.parsing import ContentError, parsing
from ..core.run_directory import BEST_STATE
from ..models.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from ..models.loading import LoadedModel, fingerprint, weights_fingerprint
from ..models.safetensors_file import safetensors_problem
from ..models.slots import Slot, parameter_slots
from ..models.trainable import Trainable, prepare
from ..zo.journal import Journal
from ..zo.noise import NOISE_VERSION
from ..zo.replay import replay
from .checkpoint_file import load_state
from .reward import Judge
from .session import Inputs, Session, load_base, make_session
from .tuned_source import Source, read_journal

_AGAIN = "export the adapter again"
_NAME_BASE = "name the base model that it was trained on with --model"


class TunedModel:
    """A base model with room for the parameters that a source trained; `apply` sets them.

    The new parameters are initialised such that the model computes what it did before, until `apply`.

    Attributes:
        trainable: the parameters that the source trained; empty for an adapter, which does not name them.
        slots: the places of the parameters that `apply` sets.
        base_names: names of the parameters that the model had before.
        base_sha256: fingerprint of the base weights; for a journal alone, since it reads all of them.
    """

    def __init__(self, loaded: LoadedModel, config: RunConfig, source: Source):
        """Changes the loaded model in place.

        Args:
            config: that the source was trained with; of an adapter, any with its base model.

        Raises:
            MlxzoError: the source is missing, damaged, or of another model or scope.
        """
        self.loaded, self.config, self._source = loaded, config, source
        self.base_names = tuple(parameter_slots(loaded.model))
        self.base_sha256 = weights_fingerprint(loaded.model) if source.kind == "journal" else ""
        self._tensors: dict[str, mx.array] = {}
        if source.kind == "adapter":
            self.trainable = Trainable(())
            self._tensors = add_adapter(loaded, source.path)
        else:
            self.trainable = prepare(loaded.model, config)
        slots = parameter_slots(loaded.model)
        names: Iterable[str] = self._tensors or self.trainable.names
        self.slots: dict[str, Slot] = {name: slots[name] for name in names}

    def parameters(self) -> dict[str, mx.array]:
        """The parameters that `apply` sets, as they are now, by name."""
        return {name: slot.get() for name, slot in self.slots.items()}

    def apply(self, emit: events.Emit) -> int:
        """Sets the parameters; returns the number of training steps behind them, 0 for an adapter.

        Raises:
            MlxzoError: the source is missing, damaged, or of another model or scope.
        """
        path = self._source.path
        if self._source.kind == "run":
            return load_state(path / BEST_STATE, self.slots, self.trainable.names)
        if self._source.kind == "journal":
            journal = read_journal(path)
            self.replay(journal, emit)
            return len(journal)
        for name, tensor in self._tensors.items():
            self.slots[name].set(tensor)
        return 0

    def replay(self, journal: Journal, emit: events.Emit) -> str:
        """Replays the source's journal on the base weights and verifies the result where the journal has its
        fingerprint.

        Returns:
            The fingerprint of the parameters.

        Raises:
            ModelError: base weights, scope or noise version are not those of the journal, or the result differs.
            DataError: an exported journal is cut short.
        """
        header, name = journal.header, self._source.path.name
        if header.sha256 is not None and journal.torn_bytes:
            raise DataError(f"{name} is cut short: it ends within a step", "copy it again from where it came from")
        if header.noise != NOISE_VERSION:
            raise ModelError(
                f"{name} was made with noise version {header.noise}, and this mlxzo makes {NOISE_VERSION}",
                "use the version of mlxzo that made it",
            )
        if self.base_sha256 != header.base_sha256:
            raise ModelError(
                f"{name} belongs to base weights with SHA-256 {header.base_sha256[:16]}..., and those of "
                f"{self.config.model} have {self.base_sha256[:16]}...",
                _NAME_BASE,
            )
        here = {n: (str(p.dtype).removeprefix("mlx.core."), tuple(p.shape)) for n, p in self.parameters().items()}
        there = {p.name: (p.dtype, p.shape) for p in header.parameters}
        problems = [
            f"{n} is {here.get(n, 'missing')} here and {there.get(n, 'missing')} in the journal"
            for n in sorted(here.keys() | there.keys())
            if here.get(n) != there.get(n)
        ]
        if problems:
            raise ModelError(
                f"{name} records other parameters than its scope finds in the model",
                "use the version of mlxzo that made it",
                problems,
            )
        replay(
            self.slots,
            journal,
            on_progress=lambda done, total: emit(events.Progress("replaying", float(done), float(total), "steps")),
        )
        sha256 = fingerprint(self.parameters())
        if header.sha256 is not None and sha256 != header.sha256:
            raise ModelError(
                f"the weights rebuilt from the {len(journal)} steps of {name} are not those that it was exported with",
                "copy the journal again from where it came from: it may have been cut; if it is whole, please report "
                "this with the output of `mlxzo doctor`",
            )
        return sha256


def open_tuned(inputs: Inputs, source: Source | None, emit: events.Emit, judge: Judge | None = None) -> Session:
    """The session of the base model, or of the model that a source tuned, whose answers `judge` scores.

    Raises:
        MlxzoError: model or source are missing or damaged.
    """
    base, trainable = load_base(inputs), Trainable(())
    if source is not None:
        tuned = TunedModel(base.loaded, inputs.config, source)
        tuned.apply(emit)
        trainable = tuned.trainable
    return make_session(inputs, base, trainable, emit, judge=judge)


def add_adapter(loaded: LoadedModel, folder: Path) -> dict[str, mx.array]:
    """Adds the layers of an mlx-lm adapter (LoRA, DoRA, or whole tensors) to a model; returns its tensors by name.

    Raises:
        ModelError: the folder holds no adapter, a damaged one, or one of another model.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    path, described = folder / ADAPTER_WEIGHTS, adapter_config(folder)
    if problem := safetensors_problem(path):
        raise ModelError(f"{path} is damaged: {problem}", _AGAIN)
    kind = described.get("fine_tune_type", "lora")
    base = {id(slot.get()) for slot in parameter_slots(loaded.model).values()}
    with parsing(folder / ADAPTER_CONFIG, ModelError, f"{_AGAIN}, or {_NAME_BASE}"):
        if kind != "full":
            layers, parameters = described["num_layers"], described["lora_parameters"]
            if not math.isfinite(parameters["scale"]):
                raise ContentError("has a scale that is no finite number")
            linear_to_lora_layers(loaded.model, layers, parameters, use_dora=kind == "dora")
    slots = parameter_slots(loaded.model)
    with parsing(path, ModelError, _AGAIN):
        # The stub of `mx.load` returns the types of all formats; a safetensors file gives a dictionary.
        tensors = cast("dict[str, mx.array]", mx.load(str(path)))
        if not tensors:
            raise ContentError("holds no tensor")
        here = {name: tuple(slots[name].get().shape) for name in slots.keys() & tensors.keys()}
        there = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        # What the file lacks of the layers that were just added would keep its random numbers.
        needed = sorted({*tensors, *(name for name, slot in slots.items() if id(slot.get()) not in base)})
        problems = [
            f"{name} is {there.get(name, 'missing')} in the adapter and {here.get(name, 'missing')} in the model"
            for name in needed
            if name not in there or there[name] != here.get(name)
        ]
        if problems:
            raise ModelError(f"the adapter {folder} is not of this model", _NAME_BASE, problems)
        if broken := [name for name, tensor in sorted(tensors.items()) if not mx.isfinite(tensor).all().item()]:
            raise ContentError(f"holds numbers that are not finite, in {', '.join(broken[:4])}")
    return tensors
