"""Trainable parameters: turns a scope such as `norms/last-6` into named parameters of a model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..core.scope import FINAL_NORM_LENGTH, Scope
from .adapters import add_biases, add_gains, add_lora, expert_layers, final_norm, layer_number, promote_norms
from .slots import Slot, decoder, decoder_layers, parameter_slots

# The squares of a tensor are summed in pieces of about this many elements.
_PIECE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Trainable:
    """The trainable parameters of a model.

    Attributes:
        names: dotted names, sorted.
        scales: for each name the length of one direction entry relative to eps and lr (1 if absent).
        kinds: for each name its kind in the scope.
        frozen_layers: number of first decoder layers whose output no trainable parameter can change.
        remarks: sentences on what of the model does not train and might be expected to.
    """

    names: tuple[str, ...]
    scales: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    frozen_layers: int = 0
    remarks: tuple[str, ...] = ()


def prepare(model: nn.Module, config: RunConfig) -> Trainable:
    """Makes `model` trainable in the scope of `config`: adds adapters, or promotes parameters to float32.

    Changes the model in place; build `CausalLM` afterwards. Parameters in half precision stay so; new ones, norms and
    biases are float32.

    Raises:
        ConfigError: the scope names more layers than there are, quantised weights, or parameters that the model does
            not have.
    """
    scope = config.parsed_scope
    first = _first_layer(model, config)
    places = {kind: find(model, config, first) for kind, find in _FINDERS.items() if kind in scope.kinds}
    slots = parameter_slots(model)
    # Adapters rename the modules they wrap, so names are read only now. A parameter without one was matched by name and
    # then promoted by another kind, which has its new place.
    names = {(id(slot.container), slot.key): name for name, slot in slots.items()}
    chosen: dict[str, str] = {}
    for kind in scope.kinds:
        for slot in places[kind]:
            name = names.get((id(slot.container), slot.key))
            if name is not None:
                chosen.setdefault(name, kind)
    lengths: dict[str, float] = {}
    for kind in scope.kinds:
        parameters = {name: slots[name].get() for name in sorted(chosen) if chosen[name] == kind}
        lengths |= _direction_lengths(kind, parameters, scope, final_norm(model))
    experts = expert_layers(model, first) if "lora" in scope.kinds else ()
    remarks = (f"experts get no adapters: LoRA leaves out {', '.join(experts)}",) if experts else ()
    return Trainable(tuple(sorted(chosen)), lengths, chosen, _frozen_layers(model, chosen), remarks)


def _first_layer(model: nn.Module, config: RunConfig) -> int:
    """Number of the first decoder layer in the scope.

    Raises:
        ConfigError: the model has no such layer.
    """
    scope = config.parsed_scope
    count = len(decoder_layers(model))
    if not count and (scope.last_layers is not None or not set(scope.kinds) <= {"full", "match", "scales"}):
        raise ConfigError(
            f"scope {config.scope} needs a model with a stack of decoder layers, and this one has none",
            "use --scope full",
        )
    last = count if scope.last_layers is None else scope.last_layers
    if last > count:
        raise ConfigError(
            f"scope {config.scope} asks for the last {last} layers, and the model has {count}",
            f"use at most last-{count}",
        )
    return count - last


def _full(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Every weight."""
    quantised = sum("scales" in module for _, module in model.named_modules())
    if quantised:
        raise ConfigError(
            f"{quantised} weights of this model are quantised, and a quantised weight cannot take small steps",
            "use --scope scales, lora or norms/last-6, or the model's unquantised variant",
        )
    return list(_floating(model, config, first).values())


def _match(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Parameters whose dotted name fits one of the scope's patterns."""
    scope = config.parsed_scope
    slots = _floating(model, config, first)
    for glob in scope.globs:
        if not any(fnmatchcase(name, glob) for name in slots):
            raise _no_match(glob, list(slots), any(fnmatchcase(name, glob) for name in parameter_slots(model)))
    return [slot for name, slot in slots.items() if any(fnmatchcase(name, glob) for glob in scope.globs)]


def _no_match(glob: str, names: list[str], elsewhere: bool) -> ConfigError:
    near = difflib.get_close_matches(glob, names, n=4, cutoff=0.4) or names[-4:]
    message = f"match:{glob} fits no parameter that can train"
    if elsewhere:
        message += ": those it fits are quantised, or outside the layers of the scope"
    return ConfigError(message, f"some that can train: {', '.join(near)}; * stands for any text")


def _scales(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Scales and offsets of quantised weights, in their own dtype (QZO, arXiv 2505.13430)."""
    quantised = [module for _, module in model.named_modules() if "scales" in module]
    if not quantised:
        raise ConfigError(
            "scope scales trains the scales of quantised weights, and this model is not quantised",
            "use --scope norms/last-6, lora or last-4, or a quantised variant of the model",
        )
    owners = {id(module) for module in quantised}
    slots = [
        slot
        for slot in _floating(model, config, first).values()
        if id(slot.container) in owners and slot.key in ("scales", "biases")
    ]
    if not slots:
        raise ConfigError(
            f"scope {config.scope} finds no scales that can move: they are whole powers of two, or in other layers",
            "use --scope norms/last-6 or lora",
        )
    return slots


# In this order: kinds that use the model's own names come before those that wrap its modules.
_FINDERS = {
    "full": _full,
    "match": _match,
    "scales": _scales,
    "norms": promote_norms,
    "lora": add_lora,
    "biases": add_biases,
    "gains": add_gains,
}


def _direction_lengths(kind: str, parameters: dict[str, mx.array], scope: Scope, final_norm: str) -> dict[str, float]:
    """Length of the direction entries of one kind's parameters: that of the kind, or the rms of each tensor.

    A tensor of zeros (offsets of symmetric weights) has no rms, and takes the mean rms of the others.
    """
    ratio, length = scope.rate_ratio(kind), scope.step_sizes(kind).length
    if length is not None:
        lengths = dict.fromkeys(parameters, length)
        if kind == "norms":
            lengths |= {name: FINAL_NORM_LENGTH for name in parameters if name.startswith(f"{final_norm}.")}
        return {name: ratio * length for name, length in lengths.items()}
    lengths = {name: _rms(parameter) for name, parameter in parameters.items()}
    moving = [length for length in lengths.values() if length > 0.0]
    mean = math.fsum(moving) / max(1, len(moving))
    # Rounded, so that the result does not depend on the order of summation.
    return {name: float(f"{ratio * (length or mean):.6g}") for name, length in lengths.items()}


def _rms(parameter: mx.array) -> float:
    """Root of the mean square, summed in float64."""
    flat, total = parameter.reshape(-1), 0.0
    for start in range(0, flat.size, _PIECE_ELEMENTS):
        piece = np.array(flat[start : start + _PIECE_ELEMENTS].astype(mx.float32)).astype(np.float64)
        total += float(np.square(piece).sum())
    return math.sqrt(total / max(1, flat.size))


def _frozen_layers(model: nn.Module, names: Iterable[str]) -> int:
    """Number of decoder layers before the first parameter named."""
    count = len(decoder_layers(model))
    if not count:
        return 0
    after_layers = (f"{final_norm(model)}.", f"{decoder(model)[0]}lm_head.")
    numbers = []
    for name in names:
        number = layer_number(name)
        if number is None:
            number = count if name.startswith(after_layers) else 0
        numbers.append(number)
    return min([*numbers, count])


def _floating(model: nn.Module, config: RunConfig, first: int) -> dict[str, Slot]:
    """Floating parameters by name: all, or those of the last K layers if the scope has a last-K."""
    whole = config.parsed_scope.last_layers is None
    return {
        name: slot
        for name, slot in parameter_slots(model).items()
        if mx.issubdtype(slot.get().dtype, mx.floating)
        and (whole or ((number := layer_number(name)) is not None and number >= first))
    }
