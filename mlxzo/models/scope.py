"""What trains: turns a scope such as `norms/last-6` into named parameters of a model, ready to be trained."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from ..config import RunConfig, Scope
from ..errors import ConfigError
from ..zo.noise import direction_key
from .causal import decoder, parameter_slots, slot_of

# Malladi et al. 2023 put LoRA on queries and values; models with one fused projection get it there.
_LORA_SUFFIXES = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",), ("Wqkv",), ("c_attn",))

# Length of a direction entry for norm weights, relative to eps and lr: the final norm acts on the logits directly
# and stands larger steps than the norms inside the blocks.
BLOCK_NORM_SCALE = 0.01
FINAL_NORM_SCALE = 0.05


@dataclass(frozen=True)
class Trainable:
    """The parameters that train.

    Attributes:
        names: dotted names, sorted.
        scales: for each name the length of one direction entry relative to eps and lr (1 where absent).
        frozen_layers: the first decoder layers whose output no trainable parameter can change.
    """

    names: tuple[str, ...]
    scales: dict[str, float] = field(default_factory=dict)
    frozen_layers: int = 0


def prepare(model: nn.Module, config: RunConfig) -> Trainable:
    """Makes `model` trainable in the scope of `config`: adds adapters or promotes what must be float32.

    Changes the model in place; build `CausalLM` afterwards.

    Raises:
        ConfigError: the scope asks for more layers than there are, or for weights that are quantised.
    """
    scope = config.parsed_scope
    path, owner = decoder(model)
    layers = getattr(getattr(owner, "model", None), "layers", None)
    if layers is None:
        if scope != Scope("full", None):
            raise ConfigError(
                f"scope {config.scope} needs a model with a stack of decoder layers, and this one shows none",
                "use --scope full",
            )
        return Trainable(_floating(model))
    last = len(layers) if scope.last_layers is None else scope.last_layers
    if last > len(layers):
        raise ConfigError(
            f"scope {config.scope} asks for the last {last} layers, and the model has {len(layers)}",
            f"use at most last-{len(layers)}",
        )
    first = len(layers) - last
    if scope.kind == "lora":
        return _lora(model, config, layers, first)
    if scope.kind == "norms":
        return _norms(model, f"{path}model.norm", first)
    return _full(model, first, whole_model=scope.last_layers is None)


def _full(model: nn.Module, first: int, whole_model: bool) -> Trainable:
    quantised = sum("scales" in module for _, module in model.named_modules())
    if quantised:
        raise ConfigError(
            f"{quantised} weights of this model are quantised, and a quantised weight cannot move by small steps",
            "use --scope lora or --scope norms/last-6, or the model's unquantised variant",
        )
    if whole_model:
        return Trainable(_floating(model))
    numbers = {name: _layer_number(name) for name in parameter_slots(model)}
    names = tuple(name for name, number in numbers.items() if number is not None and number >= first)
    return Trainable(names, frozen_layers=first)


def _norms(model: nn.Module, final_norm: str, first: int) -> Trainable:
    """Norm weights of the last layers and of the final norm, kept in float32: they are few and move by little."""
    names: dict[str, float] = {}
    for path, module in _modules(model):
        number = _layer_number(path)
        final = path == final_norm
        if "Norm" not in type(module).__name__ or not (final or (number is not None and number >= first)):
            continue
        if module["weight"].dtype != mx.float32:
            slot_of(model, path).set(PromotedNorm(module))
        scale = FINAL_NORM_SCALE if final else BLOCK_NORM_SCALE
        names |= {f"{path}.{leaf}": scale for leaf in ("weight", "bias") if leaf in module}
    if not names:
        raise ConfigError("this model shows no norm weights", "use --scope lora or full")
    return Trainable(tuple(sorted(names)), names, first)


def _lora(model: nn.Module, config: RunConfig, layers: list, first: int) -> Trainable:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    linears = {
        path for path, module in layers[first].named_modules() if isinstance(module, (nn.Linear, nn.QuantizedLinear))
    }
    for suffixes in _LORA_SUFFIXES:
        keys = sorted({path for path in linears if path.split(".")[-1] in suffixes})
        if keys:
            break
    else:
        keys = sorted(linears)
    if not keys:
        raise ConfigError("this model has no linear layers that adapters could go on", "use --scope norms/last-6")
    settings = {"rank": config.lora_rank, "scale": config.lora_scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, len(layers) - first, settings)
    names = []
    for name, slot in parameter_slots(model).items():
        leaf = name.split(".")[-1]
        if leaf == "lora_a":
            # mlx-lm draws adapters from the global generator; a run must not depend on it.
            bound = slot.get().shape[0] ** -0.5
            key = direction_key(config.seed, 0, 0, f"initial|{name}")
            slot.set(mx.random.uniform(-bound, bound, slot.get().shape, mx.float32, key))
        if leaf in ("lora_a", "lora_b"):
            names.append(name)
    return Trainable(tuple(names), frozen_layers=first)


class PromotedNorm(nn.Module):
    """A norm whose weights are held in float32 while its output keeps the dtype of its input.

    Half precision has steps of 0.8 % at 1.0, as large as the perturbations of a norm weight.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self._norm = norm
        for leaf in ("weight", "bias"):
            if leaf in norm:
                self[leaf] = norm[leaf].astype(mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        for leaf in ("weight", "bias"):
            if leaf in self:
                self._norm[leaf] = self[leaf]
        return self._norm(x).astype(x.dtype)


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that hold a weight of their own, by dotted path."""
    return sorted((path, module) for path, module in model.named_modules() if "weight" in module)


def _layer_number(path: str) -> int | None:
    """The decoder layer a dotted name lies in."""
    match = re.search(r"(?:^|\.)model\.layers\.(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def _floating(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, slot in parameter_slots(model).items() if mx.issubdtype(slot.get().dtype, mx.floating))
