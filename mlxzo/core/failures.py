"""What the system refuses (space, memory, the GPU, files, names) as an error that a user can act on."""

from __future__ import annotations

import errno
import os

from .errors import DoesNotFit, GpuFailure, MlxzoError, SystemFailure
from .files import disk_full, is_disk_full
from .formatting import shown

_FIXES = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close other programs: the system has no open files left",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the links that lead back to themselves",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EIO: "check the disk",
}
_ELSE = "check the path and its permissions"
# As MLX on Metal and CUDA, C++, the loader of shared libraries and Python's threads report that there is no memory.
_NO_MEMORY = (
    *("malloc]", "Unable to allocate", "Insufficient Memory", "failed: out of memory"),
    *("std::bad_alloc", "failed to map segment", "Cannot allocate memory", "can't start new thread"),
    "Memory allocation still failed",  # OpenBLAS, which then ends the process
)
# What MLX raises where it evaluates if Metal has ended its work (mlx/backend/metal/device.cpp), the system's own words
# behind it. Parts of these words, and the reason that they stand for.
_METAL = "[METAL] Command buffer execution failed"
_METAL_REASONS = {
    "Interactivity": "it kept the display waiting",
    "Timeout": "it took too long",
    "Hang": "it took too long",
    "SubmissionsIgnored": "earlier work of this process had failed",
    "InnocentVictim": "other work had failed",
}


# mlx-lm raises the limit of open files as it is imported, which a lower hard limit forbids.
_FEW_FILES = ("not allowed to raise maximum limit", "Too many open files")
# Of the C++ library that MLX asks for the folder.
_NO_TEMPORARY = "temp_directory_path"


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
        or any(words in text for words in _NO_MEMORY)
    ):
        return DoesNotFit(
            f"there is not enough memory{': ' * bool(text)}{text}",
            "use a smaller --batch-size, --micro-batch or --max-tokens, a smaller --model, or close other programs; a "
            "limit of the shell (`ulimit -v`, `ulimit -u`) may be too low",
        )
    if _NO_TEMPORARY in text:
        return SystemFailure(
            "MLX, which compiles its functions there, finds no folder for temporary files: TMPDIR is "
            f"{shown(os.environ.get('TMPDIR', ''))}",
            "set TMPDIR to a folder that exists and can be written",
        )
    if not isinstance(error, OSError) and any(words in text for words in _FEW_FILES):
        return SystemFailure(
            f"the limit of open files is too low: {text}",
            "raise it to 4,096 (`ulimit -n 4096`); where the hard limit is lower, the administrator of the machine can",
        )
    if _METAL in text:
        reason = next((f", since {why}" for word, why in _METAL_REASONS.items() if word in text), "")
        return GpuFailure(
            f"macOS ended the work on the GPU{reason}",
            "use a smaller --micro-batch or --max-tokens, let the display sleep, and close other programs that use the "
            "GPU; a run goes on with `mlxzo train --resume RUN`",
            [text],
        )
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or os.strerror(error.errno)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return SystemFailure(f"{where}{reason}", _FIXES.get(error.errno, _ELSE))
    return None


def raise_shortage(error: BaseException) -> None:
    """Raises the error of a machine that lacks memory, space or time on its GPU, if `error` stands for one.

    For handlers that would otherwise tell of a fault in a file.

    Raises:
        DoesNotFit: it does; GpuFailure is one.
    """
    if isinstance(found := as_error(error), DoesNotFit):
        raise found from error
