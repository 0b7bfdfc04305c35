"""Files that survive a kill: atomic writes, a lock between processes, hashes, free space, progress."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import ConfigError, DoesNotFit, MlxzoError
from .formatting import format_bytes

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileProgress:
    """One moment of a long wait, as the command line and the UI show it."""

    label: str
    done_bytes: int = 0
    total_bytes: int | None = None


Report = Callable[[FileProgress], None]


def ignore_progress(_: FileProgress) -> None:
    """The report of somebody who does not want to know."""


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable; a no-op where folders cannot be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds either the old content or the whole new one.

    The bytes go to a temporary file beside it, are flushed to the disk and take the name in one step.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    fresh = Path(temporary)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    fsync_folder(path.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a finished folder its name in one step, after its files have reached the disk.

    `final` must not exist (or be an empty folder); hold a `lock` on it.
    """
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    fsync_folder(temporary)
    temporary.replace(final)
    fsync_folder(final.parent)


@contextmanager
def lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the inter-process lock file `path`; calls `waiting` once if another process holds it.

    The operating system drops the lock with the process that held it, however that process ended.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(str(path))
    try:
        held.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        held.acquire()
    try:
        yield
    finally:
        held.release()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class FolderContents(NamedTuple):
    bytes: int
    files: int


def folder_contents(folder: Path) -> FolderContents:
    """The size of the files anywhere in `folder`, links not counted; nothing if there is no such folder.

    Others may add and remove files and folders meanwhile: what is gone is passed over.
    """
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                status = Path(parent, name).lstat()
                if stat.S_ISREG(status.st_mode):
                    sizes.append(status.st_size)
    return FolderContents(sum(sizes), len(sizes))


def need_free_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DoesNotFit unless the disk that holds `folder` has `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise disk_full(purpose, needed_bytes, free)


def disk_full(purpose: str, needed_bytes: int | None = None, free_bytes: int | None = None) -> DoesNotFit:
    """The error for a disk that is full, or would be."""
    figures = ""
    if needed_bytes is not None and free_bytes is not None:
        figures = f": it takes {format_bytes(needed_bytes)} and {format_bytes(free_bytes)} are free"
    return DoesNotFit(
        f"the disk has no room for {purpose}{figures}",
        "free some space, or set MLXZO_HOME (and HF_HOME for hub models) to a folder on a larger disk",
    )


@contextmanager
def explained(path: Path, what: str, option: str = "--out", refused: type[MlxzoError] = ConfigError) -> Iterator[None]:
    """Turns an OSError while `path` is written into an error that a user can act on.

    Args:
        what: is written there, such as "the run".
        option: chooses another place.
        refused: the error for any reason but a full disk.

    Raises:
        DoesNotFit: the disk is full. `refused`: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DoesNotFit(
                f"the disk that holds {path} has no room for {what}",
                f"free some space, or choose another disk with {option}",
            ) from None
        raise refused(
            f"{what} cannot be written to {path}: {error.strerror or error}", f"choose another folder with {option}"
        ) from None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk, the quota or the file size limit is reached."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in full:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def mlxzo_home() -> Path:
    """The cache folder, absolute; it need not exist yet."""
    return Path(os.environ.get("MLXZO_HOME") or "~/.cache/mlxzo").expanduser().absolute()
