"""The sizes that a memory estimate starts from: lengths of a run's examples, and the settings a run can be fitted by.

Imports no MLX.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..core.config import RunConfig
from ..core.meter import system_memory
from ..engine.batching import Shapes, Size
from .coefficients import coefficient


@dataclass(frozen=True)
class ExampleSize:
    """The size of one example: see `batching.Size` for the fields."""

    length: int
    row_count: int = 1
    candidates: int = 2
    scored: int = 1
    shared: bool = True
    written: bool = False


@dataclass(frozen=True, eq=False)
class Data:
    """The sizes of the examples that a run trains on, and of those that it evaluates on."""

    train: tuple[Size, ...]
    evaluated: tuple[Size, ...]

    @staticmethod
    def uniform(tokens: int, count: int = 1000, evaluated: int = 200, scored: int = 1, written: bool = False) -> Data:
        """Examples of one length, with one answer token to choose among labels, or a completion of `scored` tokens."""
        candidates = 2 if scored == 1 and not written else 1
        one = ExampleSize(tokens, 1, candidates, scored, shared=candidates > 1, written=written)
        return Data((one,) * count, (one,) * evaluated)

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens of all rows, padding excluded."""
        return sum(size.length * size.row_count for size in (*self.train, *self.evaluated))

    @functools.cached_property
    def scored(self) -> int:
        """Scored positions of all rows."""
        return sum(size.scored for size in (*self.train, *self.evaluated))

    @functools.cached_property
    def mean_length(self) -> float:
        """Mean number of tokens in a row of a training example."""
        return sum(size.length for size in self.train) / len(self.train)

    @functools.cached_property
    def mean_rows(self) -> float:
        """Mean number of rows of a training example."""
        return sum(size.row_count for size in self.train) / len(self.train)

    def largest_batch(self, batch_size: int, multiple: int) -> tuple[Size, ...]:
        """The largest batch of a step: the longest examples, or all where there are no more.

        A batch across two epochs may hold a long example twice; the margin covers that.
        """
        return self.largest("train", batch_size, multiple)

    @functools.cache  # noqa: B019 (few instances, which live as long as the process)
    def largest(self, split: str, count: int, multiple: int) -> tuple[Size, ...]:
        """The `count` examples of a split with most tokens."""
        shapes = Shapes(multiple)
        found = sorted(getattr(self, split), key=lambda size: shapes.padded(size) * size.row_count, reverse=True)
        return tuple(found[:count])


@dataclass(frozen=True)
class Settings:
    """The settings that fit a run to a cap.

    Attributes:
        micro_batch: most sequences in one forward pass; None: as many as suit the device.
        checkpointing: gradient checkpointing in backpropagation.
        keeps_prefix: the output of the frozen layers is kept in memory.
        cache_limit_bytes: limit of MLX's cache of freed buffers.
    """

    micro_batch: int | None
    checkpointing: bool
    keeps_prefix: bool
    cache_limit_bytes: int

    @staticmethod
    def of(config: RunConfig, on_cpu: bool) -> Settings:
        """The settings of a configuration; `auto` counts as the faster choice, as without a cap."""
        return Settings(
            config.micro_batch,
            config.checkpointing == "on",
            config.activation_cache == "ram",
            uncapped_cache_bytes(on_cpu),
        )


def uncapped_cache_bytes(on_cpu: bool) -> int:
    """The limit of MLX's cache of freed buffers in a process without a memory cap.

    On the CPU it is MLX's own. On Metal that is nearly all memory, and the cache is wired: a process of 7 GiB was seen
    to take 51 (mlx-lm, pull request 986).
    """
    if on_cpu:
        return int(coefficient("default_cache_bytes"))
    return max(int(coefficient("default_cache_bytes")), int(coefficient("cache_share") * system_memory()[0]))
