"""Typed errors: a kind, a title, one plain sentence, the fix, and the exit code that goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXIT_DONE = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_DOES_NOT_FIT = 3
EXIT_UNAVAILABLE = 4
EXIT_DIVERGED = 5
EXIT_INTERRUPTED = 130


# A damaged file may have a problem in every line.
_MOST_DETAILS = 200


class MlxzoError(Exception):
    """An error that a user can act on; the command line prints it without a traceback.

    Args:
        message: the problem, in one plain sentence.
        fix: the remedy, in the imperative; may be empty.
        details: further lines, such as every problem of a file with its line number.

    Attributes:
        kind: a stable name for programs, which never changes; `title` is for display only.
    """

    kind = "error"
    title = "Error"
    exit_code = EXIT_USAGE

    def __init__(self, message: str, fix: str = "", details: Sequence[str] = ()):
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details = list(details[:_MOST_DETAILS])
        if (more := len(details) - _MOST_DETAILS) > 0:
            self.details.append(f"and {more:,} more")

    def to_dict(self) -> dict:
        """The fields of `events.Failed`."""
        return {
            "kind": self.kind,
            "title": self.title,
            "message": self.message,
            "fix": self.fix,
            "details": self.details,
            "exit_code": self.exit_code,
        }


class ConfigError(MlxzoError):
    """A wrong option, YAML key or value."""

    kind = "configuration"
    title = "Configuration"


class DoesNotFit(MlxzoError):
    """Memory or disk space that is missing.

    Args:
        needed_bytes: the predicted memory of a run that was refused for it; else None.
        ways: options with values, each of which makes such a run fit by itself.
    """

    kind = "does-not-fit"
    title = "Does not fit"
    exit_code = EXIT_DOES_NOT_FIT

    def __init__(
        self,
        message: str,
        fix: str = "",
        details: Sequence[str] = (),
        needed_bytes: int | None = None,
        ways: Mapping[str, str] | None = None,
    ):
        super().__init__(message, fix, details)
        self.needed_bytes, self.ways = needed_bytes, ways or {}

    def to_dict(self) -> dict:
        return {**super().to_dict(), "needed_bytes": self.needed_bytes}


class WorkerDied(DoesNotFit):
    """The system ended the training process, most often because memory ran out."""

    kind = "worker-died"
    title = "Worker died"


class GpuFailure(WorkerDied):
    """The system ended work on the GPU for another reason than memory, such as its duration."""

    kind = "gpu"
    title = "GPU"


class RankLost(WorkerDied):
    """Another rank of the run ended, or did not answer in time."""

    kind = "rank-lost"
    title = "Rank lost"


class RanksError(MlxzoError):
    """The processes of a run cannot connect: a wrong host or address, or a port that is taken."""

    kind = "ranks"
    title = "Ranks"
    exit_code = EXIT_UNAVAILABLE


class RanksDisagree(MlxzoError):
    """The processes of a run no longer hold the same weights."""

    kind = "ranks-disagree"
    title = "Ranks disagree"
    exit_code = EXIT_INTERNAL


class DataError(MlxzoError):
    """Data files that are missing, malformed or do not match the task."""

    kind = "data"
    title = "Data"
    exit_code = EXIT_UNAVAILABLE


class ModelError(MlxzoError):
    """A model that is unknown, cannot be fetched, or cannot be loaded."""

    kind = "model"
    title = "Model"
    exit_code = EXIT_UNAVAILABLE


class RewardError(MlxzoError):
    """The user's reward program or function failed."""

    kind = "reward"
    title = "Reward"
    exit_code = EXIT_UNAVAILABLE


class SystemFailure(MlxzoError):
    """The operating system refused something: a file, a name, a limit."""

    kind = "system"
    title = "System"
    exit_code = EXIT_UNAVAILABLE


class Diverged(MlxzoError):
    """The model gives numbers that are not finite, or a loss far above the one it began with."""

    kind = "diverged"
    title = "Diverged"
    exit_code = EXIT_DIVERGED

    @classmethod
    def not_finite(cls, what: str) -> Diverged:
        """The error of a model whose weights, as they are, do not compute."""
        return cls(
            f"{what} is not a finite number", "try --dtype float32; if that does not help, the weights are damaged"
        )


class Interrupted(MlxzoError):
    """The user asked the run to stop."""

    kind = "interrupted"
    title = "Interrupted"
    exit_code = EXIT_INTERRUPTED


class InternalError(MlxzoError):
    """A fault in mlxzo itself."""

    kind = "internal-error"
    title = "Internal error"
    exit_code = EXIT_INTERNAL
