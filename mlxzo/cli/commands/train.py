"""Fine-tune a model on a task.

  mlxzo train --model smollm2-135m --task reviews
  mlxzo train --task custom --data my_data --scope lora --steps 2000
  mlxzo train --config run.yaml --seed 1 --json > result.json
  mlxzo train --task custom --data my_data --objective reward --reward-command "python score.py" --allow-code
  mlxzo train --resume RUN
  mlxzo train --hosts 2 ...            two processes on this machine
  mlxzo train --hosts hosts.json ...   one process on each machine of a hosts file (docs/distributed.md)

Options come from --config FILE (YAML: `option: value` lines) and from flags; a flag wins.
Ctrl-C stops after the current step and saves; a second Ctrl-C stops by force. --resume continues a run however it
ended, and reaches the same weights, bit for bit, as a run that was never interrupted (backpropagation on a GPU: to
rounding); --steps gives it more steps.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ...core.config import RunConfig
from ...core.errors import EXIT_DONE, ConfigError
from ...core.yaml_file import read_yaml
from ...runtime.hosts import LOCALHOST
from ...runtime.launcher import RELAY
from ...runtime.preflight import check_names
from ..options import add_allow_code, add_config_options, add_json, config_values

if TYPE_CHECKING:
    from ...core.run_directory import RunDirectory
    from ...engine.tuned_source import Source
    from ...runtime.supervisor import Supervisor


_TUNED = ("run", "adapter", "journal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="a YAML file of options, such as a run's config.yaml")
    source.add_argument("--resume", metavar="RUN", help="continue an interrupted run: its directory or id")
    add_allow_code(parser)
    parser.add_argument(
        "--hosts",
        metavar="FILE|N",
        help="share the work among machines (a hosts file of mlx.launch) or among N processes on this machine",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="with --hosts, the port of rank 0; others take the next ones (default: 32323; on one machine, free ones)",
    )
    # Flags of the commands that use a tuned model: `run` says what to do in place of them.
    for name in _TUNED:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    add_json(parser)
    add_config_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...engine.distributed.communicator import rank_of_environment

    if given := [f"--{name}" for name in _TUNED if getattr(arguments, name) is not None]:
        from ...runtime.resume import TRAIN_FURTHER

        raise ConfigError(
            f"{given[0]}: training begins from a model",
            f"`mlxzo train --resume RUN` goes on with a run; {TRAIN_FURTHER}",
        )
    if arguments.hosts is not None:
        return _launch(arguments)
    rank = rank_of_environment()
    if rank:
        return _follow(arguments, rank)
    supervisor = _supervisor(arguments)
    if rank == 0 and RELAY in os.environ:
        from ..distributed import lead

        return lead(supervisor)
    from ..foreground import train

    train(supervisor, as_json=arguments.json)
    return EXIT_DONE


def _supervisor(arguments: argparse.Namespace) -> Supervisor:
    """The supervisor of the run to train, which is new or goes on."""
    from ...core.run_directory import RunDirectory
    from ...runtime.supervisor import Supervisor

    config, found = _read(arguments)
    if found is None:
        return Supervisor(RunDirectory.create(config), allow_code=arguments.allow_code)
    return Supervisor(found, resume=True, config=config, allow_code=arguments.allow_code)


def _read(arguments: argparse.Namespace) -> tuple[RunConfig, RunDirectory | None]:
    """The configuration, checked for consent to the code that it names, and the run to resume, if any."""
    from ...core.run_directory import RunDirectory
    from ...engine.reward_command import check_code
    from ...tasks.registry import check_folder

    flags, found = config_values(arguments), None
    if arguments.resume is not None:
        from ...runtime.resume import resume_config

        found = RunDirectory.open(arguments.resume, flags.pop("out", RunConfig.out))
        config = resume_config(found, flags)
    else:
        config = read_config(flags, arguments.config)
        # Before there is a run directory.
        check_folder(config)
    check_code(config, arguments.allow_code)
    return config, found


def _launch(arguments: argparse.Namespace) -> int:
    """Starts the same command as the ranks of a run."""
    from ...engine.distributed.communicator import check_ranks
    from ...runtime.hosts import read_hosts
    from ..distributed import arguments_of, train_on

    hosts = read_hosts(arguments.hosts)
    # Errors of the configuration are better reported once, before the ranks start.
    config, found = _read(arguments)
    if len(hosts.hosts) == 1 and hosts.hosts[0].ssh == LOCALHOST:
        arguments.hosts = None
        return run(arguments)
    check_ranks(config, len(hosts.hosts))
    flags = config_values(arguments)
    if hosts.shares is not None:
        flags.setdefault("shares", hosts.shares)
    resume = None if found is None else str(found.path)
    given = arguments_of(flags, arguments.config, resume, arguments.allow_code)
    train_on(hosts, given, arguments.port, as_json=arguments.json)
    return EXIT_DONE


def _follow(arguments: argparse.Namespace, rank: int) -> int:
    """Trains as a rank other than 0."""
    from ..distributed import follow

    resume = arguments.resume is not None
    flags = config_values(arguments)
    # Rank 0 has the configuration of a resumed run and sends it.
    config = RunConfig.from_mapping(flags).resolved() if resume else _read(arguments)[0]
    return follow(config, rank, resume=resume, allow_code=arguments.allow_code)


def read_config(flags: dict[str, Any], file: str | None) -> RunConfig:
    """The resolved configuration of flags over a YAML file, with names checked and paths made absolute.

    Raises:
        ConfigError: lists every unknown option and bad value; or the task is unknown.
        ModelError: no model has this name.
    """
    values = {**(read_yaml(file) if file else {}), **flags}
    config = RunConfig.from_mapping(values, source=file or "").resolved()
    return check_names(config)


def read_tuned_config(flags: dict[str, Any], source: Source | None) -> RunConfig:
    """The resolved configuration of flags over the options that `source` records, if there is one.

    Raises:
        ConfigError, ModelError: as `read_config`; or the source cannot be read.
    """
    known = {} if source is None else source.options()
    return check_names(RunConfig.from_mapping({**known, **flags}).resolved())
