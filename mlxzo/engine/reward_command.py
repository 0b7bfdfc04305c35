"""The command or function of the user's that judges answers, checked before it runs. Imports no MLX."""

from __future__ import annotations

import shlex
import shutil

from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..core.formatting import shown


def check_code(config: RunConfig, allow_code: bool) -> None:
    """Checks the code that a configuration has judge answers, before a model is loaded.

    Raises:
        ConfigError: the command line does not allow it to run, or there is no such program.
    """
    named = config.reward_command or config.reward_function
    if named and not allow_code:
        raise ConfigError(
            f"the configuration wants to run {shown(named)} to judge answers",
            "check it, and give --allow-code to the command if you trust it",
        )
    if config.reward_command is not None:
        command_words(config.reward_command)


def command_words(command: str) -> list[str]:
    """Program and arguments of a command.

    Raises:
        ConfigError: it is empty, has an unclosed quote, or names no program that can be run.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"reward_command: {error}".lower(), "quote it as in a shell") from None
    if not words:
        raise ConfigError("reward_command: it is empty", "name a program, such as `python score.py`")
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"reward_command: there is no program {shown(words[0])} that can be run",
            "correct its name or path; a script runs by its interpreter, such as `python score.py`, or once "
            "`chmod +x` has made it executable",
        )
    return words
