"""The parameters that a scope trains, from the dimensions of a model alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ..core.config import RunConfig
from ..models.architecture import DTYPE_BYTES, ModelShape, Tensor


@dataclass(frozen=True)
class Trained:
    """The parameters that a scope trains.

    Attributes:
        tensors: trained tensors, each with the bytes of one element.
        added_bytes: bytes of parameters that the scope adds, or keeps in float32 beside the stored ones.
        frozen_layers: number of first layers whose output no trained parameter can change.
    """

    tensors: tuple[tuple[Tensor, int], ...]
    added_bytes: int
    frozen_layers: int

    @cached_property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Number of tensors for each pair of size and bytes per number: the layers of a model are alike."""
        return Counter((tensor.size, size) for tensor, size in self.tensors)

    @cached_property
    def numbers(self) -> int:
        return sum(count * numbers for (numbers, _), count in self.sizes.items())

    @cached_property
    def bytes(self) -> int:
        return sum(count * numbers * size for (numbers, size), count in self.sizes.items())


def trained(shape: ModelShape, config: RunConfig) -> Trained:
    """The parameters that the scope of `config` trains, as `models.trainable.prepare` decides on a loaded model."""
    scope = config.parsed_scope
    whole = scope.last_layers is None
    first = 0 if scope.last_layers is None else max(0, shape.layers - scope.last_layers)
    rest = DTYPE_BYTES[shape.dtype_at_rest(config.dtype)]
    chosen: dict[str, tuple[Tensor, int]] = {}
    added = 0
    inside = [t for t in shape.tensors if (whole if t.layer is None else t.layer >= first)]
    for kind in scope.kinds:
        if kind in ("full", "match"):
            fits = [t for t in inside if kind == "full" or any(fnmatchcase(t.name, glob) for glob in scope.globs)]
            new = [(t, rest) for t in fits if t.quantization is None]
        elif kind == "scales":
            new = [
                (Tensor(f"{t.path}.{leaf}", t.rows, t.columns // t.quantization.group_size, t.layer), rest)
                for t in inside
                if t.quantization is not None
                for leaf in ("scales", "biases")
            ]
        elif kind == "norms":
            norms = [t for t in shape.tensors if "norm" in t.name and (t.layer is None or t.layer >= first)]
            new = [(t, 4) for t in norms]
            added += sum((4 - rest) * t.size for t in norms)
        else:
            new = [(t, 4) for t in _ADAPTERS[kind](shape, config, first)]
            added += sum(4 * t.size for t, _ in new)
        for tensor, size in new:
            chosen.setdefault(tensor.name, (tensor, size))
    tensors = tuple(chosen.values())
    after = ("model.norm.", "lm_head.")
    numbers = [t.layer if t.layer is not None else shape.layers if t.name.startswith(after) else 0 for t, _ in tensors]
    return Trained(tensors, added, min([*numbers, shape.layers]))


def _lora(shape: ModelShape, config: RunConfig, first: int) -> Iterable[Tensor]:
    linears = [t for t in shape.tensors if t.layer is not None and t.layer >= first and t.rows > 1]
    targets = config.lora_targets
    if targets == "auto":
        names = ("qkv_proj",) if shape.fused else ("q_proj", "v_proj")
    else:
        names = tuple(name.strip() for name in targets.split(","))
    for linear in linears:
        if targets == "all" or linear.path.endswith(tuple(f".{name}" for name in names)):
            yield Tensor(f"{linear.path}.lora_a", linear.columns, config.lora_rank, linear.layer)
            yield Tensor(f"{linear.path}.lora_b", config.lora_rank, linear.rows, linear.layer)


def _biases(shape: ModelShape, config: RunConfig, first: int) -> Iterable[Tensor]:
    for layer in range(first, shape.layers):
        yield Tensor(f"model.layers.{layer}.mlp.down_proj.bias", 1, shape.hidden, layer)


def _gains(shape: ModelShape, config: RunConfig, first: int) -> Iterable[Tensor]:
    for layer in range(first, shape.layers):
        yield Tensor(f"model.layers.{layer}.self_attn.v_proj.gain", 1, shape.keys, layer)
        yield Tensor(f"model.layers.{layer}.mlp.gate_proj.gain", 1, shape.intermediate, layer)


_ADAPTERS = {"lora": _lora, "biases": _biases, "gains": _gains}
