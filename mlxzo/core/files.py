"""Files: regular ones, atomic writes, a lock between processes, hashes, free space, progress, errors of the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import ConfigError, DoesNotFit, MlxzoError
from .formatting import format_bytes

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileProgress:
    """Progress of a download or a conversion; `total_bytes` is None where it is not known."""

    label: str
    done_bytes: int = 0
    total_bytes: int | None = None


Report = Callable[[FileProgress], None]


def ignore_progress(_: FileProgress) -> None:
    """Discards progress: a `Report` for a caller without a display."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Checks that a path leads to a file that can be read to its end: a pipe could block for ever, and a device has
    no end. A name in /dev, which only a user gives, is not looked at: `/dev/stdin` and the shell's `<(command)`.

    Raises:
        OSError: it does not, or there is nothing at the path.
    """
    if not str(path).startswith("/dev/"):
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            # The system has no error for all kinds of them.
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            reason = os.strerror(number) if stat.S_ISDIR(mode) else "it is no regular file"
            raise OSError(number, reason, str(path))


def irregular_entries(folder: Path) -> Iterator[OSError]:
    """The error of each entry of a folder that is neither a file nor a folder, or cannot be looked at; it names the
    entry. Libraries open by name what lies in a folder, and a pipe would never end.

    Raises:
        OSError: the folder cannot be listed.
    """
    for path in folder.iterdir():
        try:
            check_regular(path)
        except (FileNotFoundError, IsADirectoryError):
            continue
        except OSError as error:
            yield error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read its bytes; see `check_regular`.

    Raises:
        OSError: it cannot be opened.
    """
    check_regular(path)
    return Path(path).open("rb")


def sync_to_disk(descriptor: int) -> None:
    """Flushes a file or folder to the disk, the disk's own cache included, which on macOS `os.fsync` leaves out.

    Raises:
        OSError: the disk fails, or it is no file.
    """
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        # Some file systems, of a network say, do not have it.
        with suppress(OSError):
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def fsync_folder(folder: Path) -> None:
    """Makes the names inside `folder` durable; a no-op where folders cannot be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync_to_disk(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step: `path` holds the old content or the whole new one, even after a crash.

    The bytes go to a temporary file beside it, are flushed to the disk and take the name.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    fresh = Path(temporary)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            sync_to_disk(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    fsync_folder(path.parent)


def append(descriptor: int, data: bytes) -> None:
    """Writes all bytes to a file that was opened to append.

    Raises:
        OSError: the disk is full or failing; the file ends as before.
    """
    before = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def publish_folder(temporary: Path, final: Path) -> None:
    """Gives a finished folder its name in one step, after its files have reached the disk.

    `final` must not exist, or be an empty folder; the caller holds a `lock` on it.
    """
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                sync_to_disk(file.fileno())
    fsync_folder(temporary)
    temporary.replace(final)
    fsync_folder(final.parent)


@contextmanager
def lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock file `path` against other processes; calls `waiting` once if it has to wait.

    The operating system releases the lock when the process ends, for whatever reason.
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
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def last_lines(path: Path, length: int | None) -> list[str]:
    """The lines in the last `length` bytes of a UTF-8 file (None: all of it); the first may lack its beginning."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length) if length else 0)
        return file.read().decode("utf-8", errors="replace").splitlines()


class FolderContents(NamedTuple):
    """Size and number of files."""

    bytes: int
    files: int


def folder_contents(folder: Path) -> FolderContents:
    """Total size and number of the files anywhere in `folder`, without links; zero where there is no such folder.

    Files that another process removes meanwhile are skipped.
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
    """Raises DoesNotFit unless the disk of `folder` has `needed_bytes` free."""
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
        what: the thing written, such as "the run".
        option: the option that chooses another place.
        refused: the type of the error, unless the disk is full.

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
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # no fault of this folder
        raise refused(
            f"{what} cannot be written to {path}: {error.strerror or error}", f"choose another folder with {option}"
        ) from None


def is_disk_full(error: BaseException) -> bool:
    """True if an error, or its cause, is a full disk, a used-up quota or the limit of a file's size."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in full:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def user_path(text: str | Path) -> Path:
    """The path that a user gave; `~` is the home folder, if there is one.

    Terminals write the path of a file that is dropped on them with escapes or quotes, and a space behind it. They are
    taken away where that gives a path that exists, and the text as it is does not.
    """
    text = str(text)
    path = _expanded(text)
    for reading in (text, text.strip(), _unquoted(text)):
        with suppress(OSError, ValueError):  # too long, or with a character that no path has
            if (found := _expanded(reading)).exists():
                return found
    return path


def _unquoted(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, or one without a home folder
        return Path(text)


def mlxzo_home() -> Path:
    """The cache folder, absolute; it need not exist yet.

    Raises:
        ConfigError: the user has no home folder, as in some containers.
    """
    if chosen := os.environ.get("MLXZO_HOME"):
        return _expanded(chosen).absolute()
    try:
        return Path("~/.cache/mlxzo").expanduser().absolute()
    except RuntimeError:
        raise ConfigError(
            "there is no home folder for the cache of mlxzo: neither HOME nor the system names one",
            "set HOME, or MLXZO_HOME (and HF_HOME for hub models), to a folder that you can write to",
        ) from None
