"""Small float32 parameters inserted into a model: promoted norms, LoRA pairs, residual biases and output gains.

`promote_norms` and each `add_...` change the model in place, in decoder layers `first` and later, leave its outputs
unchanged, and return the places of the parameters to train.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..zo.noise import direction_key
from .layer_shapes import GAINED, LORA_TARGETS, MLP_OUTPUTS
from .slots import Slot, decoder, decoder_layers, norms, parameter_slots, slot_of

Linear = nn.Linear | nn.QuantizedLinear


class PromotedNorm(nn.Module):
    """A norm with float32 weights whose output keeps the dtype of its input.

    Half precision has steps of 0.8 % at 1.0, as large as the perturbations of a norm weight.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self._norm = norm
        for leaf in ("weight", "bias"):
            if leaf in norm:
                self[leaf] = norm[leaf].astype(mx.float32)

    def __call__(self, x: mx.array, *gate: mx.array) -> mx.array:
        for leaf in ("weight", "bias"):
            if leaf in self:
                self._norm[leaf] = self[leaf]
        return self._norm(x, *gate).astype(x.dtype)


class BiasedLinear(nn.Module):
    """A linear layer, quantised or not, with a float32 bias, zero if it had none.

    The output keeps the layer's dtype: a float32 bias inside `nn.Linear` would turn the whole residual stream of a
    half-precision model into float32.
    """

    def __init__(self, linear: Linear):
        super().__init__()
        bias = linear.pop("bias", None)
        self.linear = linear
        self.bias = mx.zeros(linear["weight"].shape[:1]) if bias is None else bias.astype(mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        return (y + self.bias).astype(y.dtype)


class GainedLinear(nn.Module):
    """A linear layer, quantised or not, with a float32 gain for each output, 1 at first; the output keeps its dtype."""

    def __init__(self, linear: Linear):
        super().__init__()
        self.linear = linear
        self.gain = mx.ones(linear["weight"].shape[:1])

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        return (y * self.gain).astype(y.dtype)


def promote_norms(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Norm weights of the last layers and of the final norm, in float32: they are few and change little.

    Raises:
        ConfigError: the model has no norm weights.
    """
    final = final_norm(model)
    slots = []
    for path, place in norms(model).items():
        number = layer_number(path)
        if path != final and (number is None or number < first):
            continue
        norm = place.get()
        if norm["weight"].dtype != mx.float32:
            norm = PromotedNorm(norm)
            place.set(norm)
        slots += [Slot(norm, leaf) for leaf in ("weight", "bias") if leaf in norm]
    if not slots:
        raise ConfigError("this model exposes no norm weights", "use --scope lora or full")
    return slots


def add_lora(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Low-rank adapters (mlx-lm's `LoRALinear`) beside linear layers: A drawn by the seed, B zero, both float32.

    Raises:
        ConfigError: `lora_targets` names a layer that does not exist, or there is no linear layer.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    layers = decoder_layers(model)
    linears = {path for layer in layers[first:] for path, m in layer.named_modules() if isinstance(m, Linear)}
    if not linears:
        raise ConfigError("this model has no linear layers that can take adapters", "use --scope norms/last-6")
    keys = _lora_keys(config.lora_targets, linears, expert_layers(model, first))
    settings = {"rank": config.lora_rank, "scale": config.lora_scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, len(layers) - first, settings)
    slots = []
    for name, slot in parameter_slots(model).items():
        if slot.key == "lora_a":
            # mlx-lm draws adapters from the global generator, which a run must not depend on.
            bound = slot.get().shape[0] ** -0.5
            key = direction_key(config.seed, 0, 0, f"initial|{name}")
            slot.set(mx.random.uniform(-bound, bound, slot.get().shape, mx.float32, key))
        if slot.key in ("lora_a", "lora_b"):
            slots.append(slot)
    return slots


def expert_layers(model: nn.Module, first: int) -> list[str]:
    """Paths within a layer of the linear layers that experts have each for themselves, which take no adapters."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds = (SwitchLinear, QuantizedSwitchLinear)
    layers = decoder_layers(model)[first:]
    return sorted({path for layer in layers for path, m in layer.named_modules() if isinstance(m, kinds)})


def _lora_keys(targets: str, linears: set[str], experts: Sequence[str]) -> list[str]:
    """Paths within a layer that match `lora_targets`; `experts` cannot, and are named in the error."""

    def named(target: str) -> set[str]:
        return {path for path in linears if path == target or path.endswith(f".{target}")}

    if targets == "all":
        return sorted(linears)
    if targets == "auto":
        choices = (set().union(*map(named, suffixes)) for suffixes in LORA_TARGETS)
        return sorted(next(filter(None, choices), linears))
    wanted = [target.strip() for target in targets.split(",")]
    unknown = [target for target in wanted if not target or not named(target)]
    if unknown:
        there = ", ".join(sorted({path.split(".")[-1] for path in linears}))
        without = f" (the experts' {', '.join(experts)} take no adapters)" if experts else ""
        raise ConfigError(
            f"lora_targets: the layers that train have no linear layer named {', '.join(map(repr, unknown))}{without}",
            f"use auto, all, or some of {there}",
        )
    return sorted(set().union(*map(named, wanted)))


def add_biases(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Residual biases: one float32 vector per layer, added to the output of its MLP.

    An existing bias is trained as it is. In a layer of several MLPs the bias goes on the shared expert.

    Raises:
        ConfigError: no MLP output projection is found.
    """
    found = {}
    for path, linear in _projections(model, first, MLP_OUTPUTS).items():
        # Some architectures use one of these names for the output of attention as well.
        if not re.search(r"attn|attention|\.experts\.", path):
            found.setdefault(layer_number(path), []).append((path.count("."), path, linear))
    if not found:
        raise ConfigError(
            f"this model exposes no MLP output projection ({', '.join(MLP_OUTPUTS)}) that can take a bias",
            "use --scope norms/last-6 or lora",
        )
    chosen = [min(candidates, key=lambda c: c[:2]) for _, candidates in sorted(found.items())]
    return [Slot(_wrapped(model, path, BiasedLinear(linear)), "bias") for _, path, linear in chosen]


def add_gains(model: nn.Module, config: RunConfig, first: int) -> list[Slot]:
    """Output gains of the value and MLP gate projections, one float32 value per output.

    Raises:
        ConfigError: neither is found, as in models that fuse them with other projections.
    """
    found = {path: m for path, m in _projections(model, first, GAINED).items() if ".experts." not in path}
    if not found:
        raise ConfigError(
            f"this model has no separate {' or '.join(GAINED)} that can take gains",
            "use --scope norms/last-6, biases or lora",
        )
    return [Slot(_wrapped(model, path, GainedLinear(linear)), "gain") for path, linear in found.items()]


def layer_number(path: str) -> int | None:
    """Number of the decoder layer in a dotted name; None outside the layers."""
    match = re.search(r"(?:^|\.)model\.layers\.(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def final_norm(model: nn.Module) -> str:
    """Dotted path of the norm between the last decoder layer and the head: `norm`, or by another name the only norm
    beside the layers (LFM2)."""
    path, owner = decoder(model)
    body = getattr(owner, "model", None)
    modules = body.children() if isinstance(body, nn.Module) else {}
    norms = [name for name, module in modules.items() if "Norm" in type(module).__name__]
    return f"{path}model.{norms[0] if len(norms) == 1 else 'norm'}"


def _projections(model: nn.Module, first: int, names: tuple[str, ...]) -> dict[str, Linear]:
    """Linear layers of these names in decoder layers from `first` on, by path; inside an adapter, by its name."""
    found = {}
    for path, module in sorted(model.named_modules(), key=lambda item: item[0]):
        number = layer_number(path)
        own_name = path.removesuffix(".linear").split(".")[-1]
        if isinstance(module, Linear) and own_name in names and number is not None and number >= first:
            found[path] = module
    return found


def _wrapped(model: nn.Module, path: str, wrapper: nn.Module) -> nn.Module:
    slot_of(model, path).set(wrapper)
    return wrapper
