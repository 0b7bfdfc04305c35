"""The handshake of ranks: a worker joins the others, receives rank 0's configuration and, on a resume, its journal and
states, and checks that all have the same model and data.

Rank 0 keeps the run. The run directory of any other rank is temporary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..core import events
from ..core.config import RunConfig
from ..core.defaults import MOST_ROWS
from ..core.files import write_atomic
from ..core.options import parse_shares
from ..core.resolved_config import ResolvedConfig
from ..core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RunDirectory
from ..engine.distributed.communicator import (
    STALL_SECONDS,
    Communicator,
    check_ranks,
    rank_of_environment,
    shares_points,
)
from .control import RunControl

# Paths may differ from machine to machine; the contents are compared.
_PLACES = ("model", "task", "data", "reward_command", "reward_function", "out", "name")


def join(run: RunDirectory, control: RunControl, resume: bool, emit: events.Emit) -> Communicator:
    """The communicator of this process, from its environment; afterwards every rank has rank 0's configuration.

    Raises:
        RanksError: the ranks cannot connect. ConfigError: they have different versions or options, or there are too
            many of them.
    """
    rank = rank_of_environment()
    if rank is None:
        return Communicator()
    from ..engine.distributed.mlx_communicator import join

    communicator = join(rank, control.listen_while_waiting)
    control.join(communicator)
    emit(events.Note(f"rank {communicator.rank} of {communicator.size}: {', '.join(communicator.names)}"))
    communicator.compare(_versions())
    own = run.config if resume else spread(run.config, communicator.size)
    theirs = RunConfig.from_mapping(json.loads(communicator.broadcast(json.dumps(own.to_dict()).encode())))
    communicator.refuse([] if resume else _differences(theirs, own))
    places = () if resume and communicator.rank else _PLACES
    run.update_config(dataclasses.replace(theirs, **{name: getattr(own, name) for name in places}))
    check_ranks(theirs, communicator.size)
    if least := _idle(theirs, communicator.size):
        emit(events.Note(least))
    if theirs.shares is not None:
        communicator.share(parse_shares(theirs.shares))
    if resume:
        _take_over(run, communicator)
    return communicator


def broadcast_config(run: RunDirectory, communicator: Communicator, config: RunConfig) -> RunConfig:
    """Gives all ranks rank 0's configuration, each with its own paths, and saves it with the run.

    Ranks may have measured or predicted different values.
    """
    if communicator.size == 1:
        return config
    theirs = json.loads(communicator.broadcast(json.dumps(config.to_dict()).encode()))
    config = RunConfig.from_mapping({**theirs, **{name: getattr(config, name) for name in _PLACES}})
    run.update_config(config)
    return config


def begin(communicator: Communicator, facts: dict[str, Any]) -> None:
    """Checks that loaded ranks have the same model and data, and limits their waits from here on.

    Args:
        facts: the content of environment.json.

    Raises:
        ConfigError: they have not.
    """
    names = {"base weights": "base_weights_sha256", "data": "data_sha256"}
    communicator.compare({what: facts[key] for what, key in names.items()})
    communicator.limit_seconds = STALL_SECONDS


def spread(config: RunConfig, size: int) -> RunConfig:
    """The configuration of a new run with micro-batches small enough that every rank gets one.

    They are part of the configuration, so that the run continues bit-identically with any number of ranks.

    Raises:
        ConfigError: a step has fewer pieces of work than there are ranks.
    """
    check_ranks(config, size)
    if shares_points(config) or config.micro_batch is not None:
        return config
    return dataclasses.replace(config, micro_batch=min(MOST_ROWS, -(-_batch_size(config) // size)))


def _batch_size(config: RunConfig) -> int:
    """Examples of a step, as far as they are known without the data."""
    batch = ResolvedConfig.of(config).batch_size
    return batch if config.train_examples is None else min(batch, config.train_examples)


def _idle(config: RunConfig, size: int) -> str:
    """A note on micro-batches too large for every rank to get one; empty where they are not."""
    batch = _batch_size(config)
    rows = config.micro_batch or batch
    if shares_points(config) or rows * (size - 1) < batch:
        return ""
    return (
        f"micro-batches have up to {rows} sequences, so a step may have too few of them for {size} ranks, and some "
        f"ranks wait: --micro-batch {-(-batch // size)} gives each one; losses change by float32 rounding"
    )


def _versions() -> dict[str, str]:
    import mlx.core as mx

    from ..zo.noise import NOISE_VERSION

    return {
        "mlxzo": __version__,
        "MLX": version("mlx"),
        "noise version": str(NOISE_VERSION),
        "device": str(mx.default_device().type).removeprefix("DeviceType."),
    }


def _differences(theirs: RunConfig, own: RunConfig) -> Sequence[str]:
    """Options of this rank that are not those of rank 0."""
    return [
        f"{name}: {value} on rank 0, {getattr(own, name)} here"
        for name, value in theirs.to_dict().items()
        if name not in _PLACES and value != getattr(own, name)
    ]


def _take_over(run: RunDirectory, communicator: Communicator) -> None:
    """Copies the files that a run resumes from to the ranks that do not have them."""
    # MeZO needs no last snapshot: replaying its journal gives the same state.
    names = [run.events_path.name, str(BEST_STATE), str(JOURNAL if run.config.method == "mezo" else LAST_STATE)]
    for name in names:
        path = run.path / name
        data = communicator.broadcast(path.read_bytes() if communicator.rank == 0 and path.exists() else b"")
        if communicator.rank and data:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
