"""How the worker of a run becomes one of several ranks: it joins them, takes over rank 0's configuration, and on a
resume rank 0's journal and states, and sees that all of them have the same model and data.

Rank 0 keeps the run. The others have a run directory for as long as they live, in a temporary folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core import events
from ..core.config import RunConfig
from ..core.files import write_atomic
from ..core.options import parse_shares
from ..core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RunDirectory
from ..engine.distributed.communicator import Communicator, check_spread, rank_of_environment, shares_points
from .steering import RunControl

if TYPE_CHECKING:
    from ..engine.distributed.mlx_communicator import MlxCommunicator

# Where things lie is each machine's own business; what is in them is compared.
_PLACES = ("model", "task", "data", "reward_command", "reward_function", "out", "name")


def join(run: RunDirectory, steering: RunControl, resume: bool, emit: events.Emit) -> Communicator:
    """The team that this process belongs to, by its environment; every rank then has rank 0's configuration.

    Raises:
        RanksError: the ranks do not find one another. ConfigError: they have different versions or options, or there
            are too many of them.
    """
    rank = rank_of_environment()
    if rank is None:
        return Communicator()
    from ..engine.distributed.mlx_communicator import join

    team = join(rank, steering.listen_while_waiting)
    steering.join(team)
    emit(events.Note(f"rank {team.rank} of {team.size}: {', '.join(team.names)}"))
    team.compare(_versions())
    own = run.config if resume else spread(run.config, team.size)
    theirs = RunConfig.from_mapping(json.loads(team.broadcast(json.dumps(own.to_dict()).encode())))
    team.refuse([] if resume else _differences(theirs, own))
    places = () if resume and team.rank else _PLACES
    run.settle(dataclasses.replace(theirs, **{name: getattr(own, name) for name in places}))
    check_spread(theirs, team.size)
    if least := _idle(theirs, team.size):
        emit(events.Note(least))
    if theirs.shares is not None:
        team.share(parse_shares(theirs.shares))
    if resume:
        _take_over(run, team)
    return team


def settled(run: RunDirectory, team: Communicator, config: RunConfig) -> RunConfig:
    """The configuration with what rank 0 found, where each rank measured or predicted something; kept with the run."""
    if team.size == 1:
        return config
    theirs = json.loads(team.broadcast(json.dumps(config.to_dict()).encode()))
    config = RunConfig.from_mapping({**theirs, **{name: getattr(config, name) for name in _PLACES}})
    run.settle(config)
    return config


def begin(team: Communicator, config: RunConfig, facts: dict[str, Any]) -> None:
    """Sees that loaded ranks have the same model and data, and from here on lets none of them wait for long.

    Args:
        facts: what environment.json holds.

    Raises:
        ConfigError: they have not.
    """
    if team.size > 1:
        names = {"base weights": "base_weights_sha256", "data": "data_sha256"}
        team.compare({what: facts[key] for what, key in names.items()})
        team.limit_seconds = config.stall_seconds


def spread(config: RunConfig, size: int) -> RunConfig:
    """The configuration of a new run with micro-batches that are small enough for all ranks to get one.

    They are part of the configuration, so that the run goes on with any number of ranks, or alone, to the bit.

    Raises:
        ConfigError: a step has fewer pieces of work than there are ranks.
    """
    check_spread(config, size)
    if shares_points(config) or config.micro_batch is not None:
        return config
    return dataclasses.replace(config, micro_batch=-(-config.batch_size // size))


def _idle(config: RunConfig, size: int) -> str:
    """What to say of micro-batches that are too large for all ranks to get one; mostly nothing."""
    rows = config.micro_batch or config.batch_size
    if shares_points(config) or rows * (size - 1) < config.batch_size:
        return ""
    return (
        f"micro-batches have up to {rows} sequences, so a step may have too few for {size} ranks, and some wait: "
        f"--micro-batch {-(-config.batch_size // size)} shares it out, with the same losses to the rounding of float32"
    )


def _versions() -> dict[str, str]:
    import mlx.core as mx

    from ..zo.noise import NOISE_VERSION

    return {
        "mlxzo": __version__,
        "MLX": mx.__version__,
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


def _take_over(run: RunDirectory, team: MlxCommunicator) -> None:
    """Brings what a run goes on from to the ranks that do not have it."""
    # The last snapshot of MeZO only saves time: its journal leads there as well.
    names = [run.events_path.name, str(BEST_STATE), str(JOURNAL if run.config.method == "mezo" else LAST_STATE)]
    for name in names:
        path = run.path / name
        data = team.broadcast(path.read_bytes() if team.rank == 0 and path.exists() else b"")
        if team.rank and data:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
