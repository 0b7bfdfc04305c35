"""The parameters that a scope trains, from the dimensions of a model alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ..core.config import RunConfig
from ..models.architecture import DTYPE_BYTES, ModelShape, Tensor
from ..models.layer_shapes import EXPERTS, GAINED, LORA_TARGETS, MLP_OUTPUTS


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
            norms = [t for t in shape.tensors if "norm" in t.name and t.layer is not None and t.layer >= first]
            norms += [t for t in shape.tensors if t.name == shape.final_norm]
            new = [(t, 4) for t in norms]
            added += sum((4 - rest) * t.size for t in norms)
        else:
            new = [(t, 4) for t in _ADAPTERS[kind](shape, config, first)]
            added += sum(4 * t.size for t, _ in new)
        for tensor, size in new:
            chosen.setdefault(tensor.name, (tensor, size))
    tensors = tuple(chosen.values())
    after = (shape.final_norm, "lm_head.")
    numbers = [t.layer if t.layer is not None else shape.layers if t.name.startswith(after) else 0 for t, _ in tensors]
    return Trained(tensors, added, min([*numbers, shape.layers]))


def _linears(shape: ModelShape, first: int) -> Iterator[Tensor]:
    """The linear layers that adapters can be put on or beside, layer by layer: none of a mixture's experts."""
    for number, layer in enumerate(shape.layer_shapes[first:], start=first):
        for path, (rows, columns) in layer.matrices.items():
            if EXPERTS not in path:
                yield Tensor(f"model.layers.{number}.{path}", rows, columns, number)


def _named(linears: Iterable[Tensor], names: Iterable[str]) -> list[Tensor]:
    ends = tuple(f".{name}" for name in names)
    return [linear for linear in linears if linear.name.endswith(ends)]


def _lora(shape: ModelShape, config: RunConfig, first: int) -> Iterator[Tensor]:
    linears = list(_linears(shape, first))
    if config.lora_targets == "auto":
        linears = next(filter(None, (_named(linears, names) for names in LORA_TARGETS)), linears)
    elif config.lora_targets != "all":
        linears = _named(linears, [name.strip() for name in config.lora_targets.split(",")])
    for linear in linears:
        yield Tensor(f"{linear.name}.lora_a", linear.columns, config.lora_rank, linear.layer)
        yield Tensor(f"{linear.name}.lora_b", config.lora_rank, linear.rows, linear.layer)


def _biases(shape: ModelShape, config: RunConfig, first: int) -> Iterator[Tensor]:
    for linear in _named(_linears(shape, first), MLP_OUTPUTS):
        yield Tensor(f"{linear.name}.bias", 1, linear.rows, linear.layer)


def _gains(shape: ModelShape, config: RunConfig, first: int) -> Iterator[Tensor]:
    for linear in _named(_linears(shape, first), GAINED):
        yield Tensor(f"{linear.name}.gain", 1, linear.rows, linear.layer)


_ADAPTERS = {"lora": _lora, "biases": _biases, "gains": _gains}
