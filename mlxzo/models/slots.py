"""The places of a model's parameters and modules, by dotted name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten


@dataclass(frozen=True)
class Slot:
    """The place of a parameter or a module: `container[key]`, in a module or a list inside the model."""

    container: Any
    key: str | int

    def get(self) -> Any:
        return self.container[self.key]

    def set(self, value: Any) -> None:
        self.container[self.key] = value


def parameter_slots(model: nn.Module) -> dict[str, Slot]:
    """The place of every parameter by dotted name, in sorted order."""
    return {name: slot_of(model, name) for name, _ in sorted(tree_flatten(model.parameters()))}


def slot_of(model: nn.Module, name: str) -> Slot:
    """The place of a parameter or module by its dotted name."""
    *parents, leaf = name.split(".")
    container: Any = model
    for part in parents:
        container = container[int(part)] if isinstance(container, list) else container[part]
    return Slot(container, int(leaf) if isinstance(container, list) else leaf)


def slots_of_kind(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Slot]:
    """The place of every module of some kinds by dotted path."""
    return {name: slot_of(model, name) for name, module in model.named_modules() if isinstance(module, kinds)}


def norms(model: nn.Module) -> dict[str, Slot]:
    """The place of every norm with a weight, by dotted path; mlx-lm's norms have no base class in common."""
    paths = [path for path, m in model.named_modules() if "Norm" in type(m).__name__ and "weight" in m]
    return {path: slot_of(model, path) for path in sorted(paths)}


def decoder(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that holds `model.layers` and the head, with its dotted path: "" or, inside a multimodal
    architecture, "language_model."."""
    inner = getattr(model, "language_model", None)
    return ("language_model.", inner) if isinstance(inner, nn.Module) else ("", model)


def decoder_layers(model: nn.Module) -> list[Any]:
    """The decoder layers of a model, the list that its forward pass reads; [] if it shows none."""
    return getattr(getattr(decoder(model)[1], "model", None), "layers", None) or []


def names_by_layer(names: Iterable[str], prefix: str, layers: int) -> tuple[list[list[str]], list[str]]:
    """The parameter names of each decoder layer, which begin with `prefix` and its number, and all other names."""
    by_layer: list[list[str]] = [[] for _ in range(layers)]
    others = []
    for name in names:
        number = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else ""
        (by_layer[int(number)] if number.isdigit() else others).append(name)
    return by_layer, others
