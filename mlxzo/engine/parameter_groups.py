"""Groups of trainable parameters: by decoder layer or by kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..models.trainable import Trainable

_LAYER_GROUPS = 4
_OUTSIDE = "outside the layers"


def group_names(trainable: Trainable, by: str) -> dict[str, list[str]]:
    """The trainable parameters in labelled groups.

    Args:
        by: `scope` for one group; `layers` for a few ranges of consecutive decoder layers, and the parameters outside
            them; `kinds` for norms, attention, MLP and the rest.
    """
    if by == "scope":
        return {"all": list(trainable.names)}
    label: Callable[[str], str] = _kind if by == "kinds" else _layers(trainable.names)
    groups: dict[str, list[str]] = {}
    for name in trainable.names:
        groups.setdefault(label(name), []).append(name)
    return dict(sorted(groups.items(), key=lambda item: (item[0] == _OUTSIDE, min(map(_order, item[1])))))


def _kind(name: str) -> str:
    if "norm" in name:
        return "norms"
    return "attention" if "attn" in name else "MLP" if "mlp" in name else "other"


def _layers(names: Sequence[str]) -> Callable[[str], str]:
    """A function from a name to a label such as `layers 24-25`, for at most `_LAYER_GROUPS` ranges of layers."""
    numbers = sorted({_number(name) for name in names} - {-1})
    size = -(-len(numbers) // _LAYER_GROUPS)
    runs = [numbers[i : i + size] for i in range(0, len(numbers), size or 1)]
    labels = {n: f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {n}" for run in runs for n in run}
    return lambda name: labels.get(_number(name), _OUTSIDE)


def _number(name: str) -> int:
    """The number of a parameter's decoder layer, from 0; -1 outside the layers."""
    match = re.search(r"\blayers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _order(name: str) -> tuple[int, str]:
    return _number(name), name
