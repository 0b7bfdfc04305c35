"""Fine-tune a model on a task.

  mlxzo train --model smollm2-135m --task reviews
  mlxzo train --task custom --data my_data --scope lora --steps 2000
  mlxzo train --config run.yaml --seed 1 --json > result.json
  mlxzo train --task custom --data my_data --objective reward --reward-command "python score.py" --allow-code
  mlxzo train --resume RUN

Options come from --config FILE (YAML: `option: value` lines) and from flags; a flag wins.
Ctrl-C stops after the step in hand and saves; a second Ctrl-C stops by force. However a run ended, --resume goes on
where it stopped, and ends with the very weights that it would have had; --steps gives it more steps.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..errors import EXIT_DONE
from ..names import check_names
from .options import add_config_options, add_json, config_values

if TYPE_CHECKING:
    from ..tuned import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="a YAML file of options, such as a run's config.yaml")
    source.add_argument("--resume", metavar="RUN", help="go on with an interrupted run: its directory or id")
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run the judge that --reward-command or --reward-function names, wherever those options come from",
    )
    add_json(parser)
    add_config_options(parser)


def run(arguments: argparse.Namespace) -> int:
    flags = config_values(arguments)
    from ..reward import check_consent
    from ..runs import RunDirectory
    from .foreground import train

    if arguments.resume is not None:
        from ..resuming import resume_config

        found = RunDirectory.open(arguments.resume, flags.pop("out", RunConfig.out))
        changed = resume_config(found, flags)
        check_consent(changed, arguments.allow_code)
        found.settle(changed)
        train(found, as_json=arguments.json, resume=True, allow_code=arguments.allow_code)
    else:
        config = read_config(flags, arguments.config)
        check_consent(config, arguments.allow_code)
        train(RunDirectory.create(config), as_json=arguments.json, allow_code=arguments.allow_code)
    return EXIT_DONE


def read_config(flags: dict[str, Any], file: str | None) -> RunConfig:
    """The resolved configuration of flags over a YAML file, with names checked and paths made absolute.

    Raises:
        ConfigError: every unknown option and bad value at once; an unknown task.
        ModelError: a name that no model has.
    """
    values = {**(RunConfig.read_yaml(file) if file else {}), **flags}
    config = RunConfig.from_mapping(values, source=file or "").resolved()
    return check_names(config)


def read_tuned_config(flags: dict[str, Any], source: Source | None) -> RunConfig:
    """The configuration that `source` names with flags over it; without a source, that of the flags alone.

    Raises:
        ConfigError, ModelError: as `read_config`, and where what `source` names cannot be read.
    """
    known = {} if source is None else source.options()
    return check_names(RunConfig.from_mapping({**known, **flags}).resolved())
