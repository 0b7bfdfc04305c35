"""The largest models that fit on Macs of several sizes, as predicted; nothing is measured. Needs no Mac.

  python -m bench.mac

Prints the table of docs/mac.md: for each size of memory the cap that `mlxzo plan` assumes there, and the largest model
of models.yaml that is predicted to train under it in each way, on 16 examples of 256 tokens a step.
"""

from __future__ import annotations

from bench.report import table
from mlxzo.core.config import RunConfig
from mlxzo.core.formatting import format_bytes
from mlxzo.core.meter import default_working_set_bytes
from mlxzo.memory.plan_table import WAYS, Way, largest
from mlxzo.memory.plan_table import table as plan
from mlxzo.memory.sizes import Data
from mlxzo.models.registry import load_registry
from mlxzo.models.resolve import shape_of_entry

MEMORY_GIB = (8, 16, 24, 64)
_TOKENS, _BATCH, _STEPS = 256, 16, 1000
# The default scope is no way of `mlxzo plan`, since it takes what a forward pass takes.
_SHOWN = ("MeZO full", "MeZO LoRA", "BP full, checkpointing", "BP LoRA, checkpointing", "BP QLoRA, checkpointing")
_WAYS = (
    Way("MeZO and RSGN, norms/last-0", "mezo", "norms/last-0"),
    *(way for way in WAYS if way.name in _SHOWN),
)


def rows() -> list[list[str]]:
    """The table: a way of training a row, a size of memory a column."""
    base = RunConfig(steps=_STEPS, batch_size=_BATCH)
    shapes = [shape_of_entry(entry) for entry in load_registry().values()]
    cells: dict[str, list[str]] = {way.name: [] for way in _WAYS}
    for gib in MEMORY_GIB:
        found = largest(plan(shapes, base, Data.uniform(_TOKENS), cap_bytes(gib), on_cpu=False, ways=_WAYS))
        for name, cell in cells.items():
            row = found.get(name)
            cell.append(f"{row.model}, {format_bytes(row.footprint_bytes)}" if row else "none")
    return [[name, *cell] for name, cell in cells.items()]


def cap_bytes(gib: int) -> int:
    """The cap that `mlxzo plan` assumes on a Mac of so many GiB."""
    total = gib << 30
    return min(int(0.75 * total), default_working_set_bytes(total))


if __name__ == "__main__":
    table(["", *(f"{gib} GB, cap {format_bytes(cap_bytes(gib))}" for gib in MEMORY_GIB)], rows())
