"""Typed errors: a title, one plain sentence, the fix, and the exit code that goes with them."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_DOES_NOT_FIT = 3
EXIT_UNAVAILABLE = 4
EXIT_DIVERGED = 5
EXIT_INTERRUPTED = 130


class MlxzoError(Exception):
    """An error a user can act on; the command line prints it without a traceback.

    Args:
        message: one plain sentence saying what is wrong.
        fix: what to do about it, in the imperative; may be empty.
        details: further lines, such as every problem of a file with its line number.
    """

    title = "Error"
    exit_code = EXIT_USAGE

    def __init__(self, message: str, fix: str = "", details: Sequence[str] = ()):
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details = list(details)

    def to_dict(self) -> dict:
        return {
            "title": self.title,
            "message": self.message,
            "fix": self.fix,
            "details": self.details,
            "exit_code": self.exit_code,
        }


class ConfigError(MlxzoError):
    """An option, YAML key or value that is wrong."""

    title = "Configuration"


class DoesNotFit(MlxzoError):
    """Memory or disk space that is not there.

    Args:
        needed_bytes: the memory that a run was predicted to need, where it is refused for that; else None.
    """

    title = "Does not fit"
    exit_code = EXIT_DOES_NOT_FIT

    def __init__(self, message: str, fix: str = "", details: Sequence[str] = (), needed_bytes: int | None = None):
        super().__init__(message, fix, details)
        self.needed_bytes = needed_bytes

    def to_dict(self) -> dict:
        return {**super().to_dict(), "needed_bytes": self.needed_bytes}


class WorkerDied(DoesNotFit):
    """The training process was ended by a signal, most often for want of memory."""

    title = "Worker died"


class RankLost(WorkerDied):
    """In a run over several processes, another one ended, or lets this one wait for too long."""

    title = "Rank lost"


class RanksError(MlxzoError):
    """The processes of a run cannot come together: a host, an address, or a port that is taken."""

    title = "Ranks"
    exit_code = EXIT_UNAVAILABLE


class RanksDisagree(MlxzoError):
    """The processes of a run no longer hold the same weights."""

    title = "Ranks disagree"
    exit_code = EXIT_INTERNAL


class DataError(MlxzoError):
    """Data files that are missing, malformed or at odds with the task."""

    title = "Data"
    exit_code = EXIT_UNAVAILABLE


class ModelError(MlxzoError):
    """A model that is unknown, cannot be fetched, or cannot be loaded."""

    title = "Model"
    exit_code = EXIT_UNAVAILABLE


class RewardError(MlxzoError):
    """The user's reward program or function failed."""

    title = "Reward"
    exit_code = EXIT_UNAVAILABLE


class Diverged(MlxzoError):
    """The loss is no longer a finite number."""

    title = "Diverged"
    exit_code = EXIT_DIVERGED


class Interrupted(MlxzoError):
    """The user asked the run to stop."""

    title = "Interrupted"
    exit_code = EXIT_INTERRUPTED


class InternalError(MlxzoError):
    """A mistake of mlxzo's own."""

    title = "Internal error"
    exit_code = EXIT_INTERNAL
