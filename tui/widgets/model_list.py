"""The list of models: size, weights, predicted peak memory, and whether the run fits with each."""

from __future__ import annotations

from mlxzo.core.config import RunConfig
from mlxzo.core.formatting import format_bytes, format_count
from mlxzo.models.registry import load_registry

from ..planning import Prediction
from .grid import Column, Grid

_COLUMNS = (
    Column("name", "model", 0),
    Column("parameters", "params", 7, right=True),
    Column("weights", "at rest", 8, from_width=54),
    Column("peak", "peak", 8, right=True),
    Column("fit", "fits", 4),
)


class ModelList(Grid[str]):
    """The models of the registry, and one that was typed."""

    def __init__(self, *, id: str):
        super().__init__(
            _COLUMNS,
            self._cell_text,
            id=id,
            help="Models known by name. `params`: parameters; `at rest`: dtype of the stored weights; `peak`: "
            "predicted peak memory; `fits`: ✓ if that is below the cap, or without a cap below the free memory.",
            dim=lambda name: self._fit_mark(name) == "✗",
        )
        self.chosen = RunConfig.model
        self.predictions: dict[str, Prediction | None] = {}
        """By model, as far as they are known; `refresh` shows them."""

    def search(self, typed: str) -> None:
        """Lists the models whose names contain every typed word, after the text itself if it may name another model."""
        typed = typed.strip()
        words = typed.lower().split()
        names = [name for name in load_registry() if all(word in name.lower() for word in words)]
        if typed and ("/" in typed or typed.endswith(".gguf") or not names):
            names = [typed, *names]
        self.show(names, cursor=self.chosen if self.chosen in names else None)

    def _cell_text(self, name: str, key: str) -> str:
        if key == "name":
            return ("● " if name == self.chosen else "  ") + name
        if key == "fit":
            return self._fit_mark(name)
        if key == "peak":
            found = self.predictions.get(name)
            return format_bytes(found.footprint_bytes) if found is not None else ""
        if key == "weights" and (found := self.predictions.get(name)) is not None:
            # Of the files on this machine, where there are some.
            return found.at_rest
        entry = load_registry().get(name)
        if entry is None:
            return ""
        if key == "parameters":
            return format_count(entry.parameters)
        return entry.shape.number_format()

    def _fit_mark(self, name: str) -> str:
        found = self.predictions.get(name)
        return "" if found is None else "✓" if found.problem is None else "✗"
