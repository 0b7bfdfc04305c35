"""What the system refuses (space, memory, files, names) as an error that a user can act on, wherever it was raised."""

from __future__ import annotations

import errno
import os

from .errors import DoesNotFit, MlxzoError, SystemFailure
from .files import disk_full, is_disk_full

_FIXES = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close other programs: the system has no open files left",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the links that lead back to themselves",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EIO: "check the disk",
}
_ELSE = "check the path and its permissions"
# As MLX, the loader of shared libraries and Python's threads report that an allocation failed.
_NO_MEMORY = ("[malloc", "Unable to allocate", "std::bad_alloc", "failed to map segment", "Cannot allocate memory")
_NO_THREAD = "can't start new thread"


def as_error(error: BaseException, writing: str = "what is written") -> MlxzoError | None:
    """The error as the user should see it; None for a fault of mlxzo.

    Args:
        writing: the thing that a full disk has no room for.
    """
    if isinstance(error, MlxzoError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(writing)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in text for words in (*_NO_MEMORY, _NO_THREAD))
    ):
        return DoesNotFit(
            f"there is not enough memory{': ' * bool(text)}{text}",
            "use a smaller --batch-size or --max-tokens, a smaller --model, or close other programs; a limit of the "
            "shell (`ulimit -v`, `ulimit -u`) may be too low",
        )
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or os.strerror(error.errno)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return SystemFailure(f"{where}{reason}", _FIXES.get(error.errno, _ELSE))
    return None
