"""Run directories: create, open, list, and read what is in them. Everything a run leaves behind is in one folder.

runs/<id>/ holds config.yaml (resolved), events.jsonl, worker.log, the saved states and result.json. Whoever begins,
runs, changes or removes a run holds its lock. Nothing here imports MLX.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from . import events, run_migrations
from .config import RunConfig
from .errors import ConfigError, DoesNotFit, Interrupted, WorkerDied
from .files import explained, write_atomic
from .yaml_file import read_yaml

Status = Literal["running", "finished", "interrupted", "failed", "died"]

# The state of a run that did best on the validation split.
BEST_STATE = Path("checkpoints") / "best.safetensors"
# The state of the last snapshot, from which an interrupted run goes on.
LAST_STATE = Path("checkpoints") / "last.safetensors"
# Every step of a MeZO run (see zo.journal).
JOURNAL = Path("journal.bin")
# What a worker writes before there is work to keep.
_BEFORE_WORK = ("events.jsonl", "environment.json", "probe.json")
_LONGEST_ID = 100
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Cheap to make: files are read when asked for."""

    path: Path

    @staticmethod
    def create(config: RunConfig) -> RunDirectory:
        """Makes a new directory under `config.out` and writes the resolved configuration to it.

        Its name is `config.name`, or <model>-<task>-<method>-<scope>-s<seed>-<date>-<time>.

        Raises:
            ConfigError: the name is taken, or the folder cannot be written.
            DoesNotFit: the disk is full.
        """
        root = Path(config.out).expanduser().absolute()
        names = iter((config.name,)) if config.name else _automatic_names(config)
        with explained(root, "the run"):
            root.mkdir(parents=True, exist_ok=True)
            for name in names:
                try:
                    (root / name).mkdir()
                except FileExistsError:
                    continue
                run = RunDirectory(root / name)
                run.begin(config)
                return run
        raise ConfigError(
            f"a run named {config.name} exists already in {root}",
            "choose another --name, or another --out folder",
        )

    @staticmethod
    def open(path_or_id: str | Path, root: str | Path = "runs") -> RunDirectory:
        """The run at a path, or the one with this id under `root`.

        Raises:
            ConfigError: there is no such run (names the nearest id), or it is of a newer version of mlxzo.
        """
        text = str(path_or_id)
        root = Path(root).expanduser()
        under_root = root / text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) else None
        for path in (under_root, Path(text).expanduser()):
            if path is not None and is_run(path):
                run = RunDirectory(path.absolute())
                run.migrate()
                return run
        ids = [run.id for run in list_runs(root)]
        near = difflib.get_close_matches(text, ids, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{text} is no run directory, and {root} has no run of that id{hint}",
            "`mlxzo runs ls` lists the runs; --out names the folder they are in",
        )

    @staticmethod
    def inside(path_or_id: str | Path, root: str | Path = "runs") -> RunDirectory:
        """The run of this id or path, if it lies in `root` itself: what may be removed. It may be damaged.

        Raises:
            ConfigError: there is no such run in that folder, or it is a link to somewhere else.
        """
        root = Path(root).expanduser()
        given = Path(path_or_id).expanduser()
        path = root / given if len(given.parts) == 1 else given
        if path.is_symlink():
            raise ConfigError(f"{path} is a link, and no run directory", "remove the link itself, if it is yours")
        if not is_run(path):
            raise ConfigError(f"{root} has no run {path_or_id}", "`mlxzo runs ls` lists the runs")
        if path.parent.resolve() != root.resolve() or path.name in ("", ".."):
            raise ConfigError(f"{path} does not lie in {root}", "name the folder that it lies in with --out")
        return RunDirectory(path.absolute())

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "worker.log"

    @property
    def commands_path(self) -> Path:
        """What the worker was asked to do while it runs (see `control`)."""
        return self.path / "commands.jsonl"

    @property
    def lock_path(self) -> Path:
        """Locked (flock) for as long as the run's worker lives, and holding its process id."""
        return self.path / "worker.lock"

    @cached_property
    def config(self) -> RunConfig:
        """The run's resolved configuration.

        Raises:
            ConfigError: config.yaml is missing or wrong, or the run is of a newer version of mlxzo.
        """
        self.migrate()
        path = self.path / "config.yaml"
        return RunConfig.from_mapping(read_yaml(path), source=str(path))

    def events(self) -> Iterator[tuple[events.Event, float]]:
        """Every event so far with its time (seconds since the epoch); torn and unknown lines are skipped."""
        try:
            with self.events_path.open(encoding="utf-8", errors="replace") as lines:
                yield from events.read(lines)
        except FileNotFoundError:
            return

    def result(self) -> dict[str, Any] | None:
        """What result.json holds; None where the run has none yet, or it cannot be read."""
        found = self._read_json("result.json")
        return None if found is None else events.renamed(found)

    def environment(self) -> dict[str, Any] | None:
        """What environment.json holds; None where it is missing or cannot be read."""
        return self._read_json("environment.json")

    @property
    def status(self) -> Status:
        """How the run stands: `died` means that its worker is gone and left no word."""
        return "running" if self.worker_is_alive() else self.last_status

    @property
    def last_status(self) -> Status:
        """How the last worker left the run; for whoever holds its lock, or knows that nobody does."""
        last = self.outcome[0] if self.outcome else None
        if isinstance(last, events.Finished):
            return "finished"
        if last is None or last.kind == WorkerDied.kind:
            return "died"
        return "interrupted" if last.kind == Interrupted.kind else "failed"

    @property
    def outcome(self) -> tuple[events.Finished | events.Failed, float] | None:
        """The event that the last worker ended with, and its time; None where it left no word."""
        found = self._last(events.Finished, events.Failed, events.Step, events.Phase)
        return found if found is not None and isinstance(found[0], events.Finished | events.Failed) else None

    @property
    def is_foreign(self) -> bool:
        """Whether there is something by this name that no run has left."""
        if not self.path.is_dir():
            return os.path.lexists(self.path)
        return not is_run(self.path) and any(path.name != self.lock_path.name for path in self.path.iterdir())

    @property
    def has_work(self) -> bool:
        """Whether there is work that can go on: a journal or a saved state."""
        return any((self.path / name).exists() for name in (JOURNAL, LAST_STATE, BEST_STATE))

    def last_event(self, *kinds: type[events.Event]) -> events.Event | None:
        """The last event of one of these kinds; only the end of the file is read, so that a thousand runs list fast."""
        found = self._last(*kinds)
        return None if found is None else found[0]

    def _last(self, *kinds: type[events.Event]) -> tuple[events.Event, float] | None:
        for length in (_TAIL_BYTES, None):
            try:
                lines = _tail(self.events_path, length)
            except OSError:
                return None
            for line in reversed(lines):
                found = events.from_json(line)
                if found is not None and isinstance(found[0], kinds):
                    return found
        return None

    def kept(self) -> str:
        """Which of the run's work is on disk, in words."""
        saved = [e for e, _ in self.events() if isinstance(e, events.Saved) and e.path == str(BEST_STATE)]
        if not saved:
            return "no state had been saved"
        return (
            f"the best state, of step {saved[-1].step}, is in {self.path / BEST_STATE}; "
            f"`mlxzo train --resume {self.path}` goes on where the run stopped"
        )

    def worker_is_alive(self) -> bool:
        """Whether a worker holds the run's lock, whoever started it."""
        try:
            with self.lock_path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def claim(self) -> int | None:
        """Takes the run's lock: a descriptor that holds it until it is closed, by whoever inherited it as well.

        None: somebody else holds it. The system drops it with the last process that has the descriptor.

        Raises:
            ConfigError: the folder is gone or cannot be written. DoesNotFit: the disk is full.
        """
        for attempt in range(10):
            with explained(self.path, "the run"):
                descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody may have removed the run in between: a lock on a file without a name keeps nobody out.
                if os.path.samestat(os.fstat(descriptor), self.lock_path.stat()):
                    return descriptor
            os.close(descriptor)
            # Somebody who looks whether the run is alive holds the lock for an instant.
            time.sleep(0.01 * attempt)
        return None

    @contextlib.contextmanager
    def held(self, *, make: bool = False) -> Iterator[int | None]:
        """Holds the run's lock, as `claim` does; gives None where somebody else holds it.

        Args:
            make: make the directory, where there is none.

        Raises:
            ConfigError, DoesNotFit: as `claim`.
        """
        if make:
            with explained(self.path, "the run"):
                self.path.mkdir(parents=True, exist_ok=True)
        lock = None if self.worker_is_alive() else self.claim()
        try:
            yield lock
        finally:
            if lock is not None:
                os.close(lock)

    def begin(self, config: RunConfig) -> None:
        """Writes what a new run begins with, in place of what a worker left that had done no work.

        Raises:
            ConfigError: the folder cannot be written. DoesNotFit: the disk is full.
        """
        with explained(self.path, "the run"):
            for name in _BEFORE_WORK:
                (self.path / name).unlink(missing_ok=True)
            run_migrations.write_version(self.path)
        self.write_text("config.yaml", config.resolved().to_yaml())
        self.__dict__.pop("config", None)

    def migrate(self) -> None:
        """Brings files that an older version of mlxzo wrote up to date.

        Raises:
            ConfigError: the run is of a newer version, or an older mlxzo is running it now.
        """
        if run_migrations.version_of(self.path) == run_migrations.VERSION:
            return
        with self.held() as lock, explained(self.path, "the run"):
            if lock is None:
                raise ConfigError(f"an older mlxzo is running {self.id}", "wait for it to end")
            run_migrations.migrate(self.path)

    def remove(self) -> None:
        """Removes the run and everything in its directory; where that holds links, not what they lead to.

        Raises:
            ConfigError: it is running, or cannot be removed.
        """
        with self.held() as lock, explained(self.path, "the run"):
            if lock is None:
                raise ConfigError(f"the run {self.id} is running", f"stop it first: `mlxzo runs stop {self.id}`")
            shutil.rmtree(self.path)

    def started(self) -> float:
        """When the run was created, in seconds since the epoch."""
        with contextlib.suppress(OSError):
            return (self.path / "config.yaml").stat().st_mtime
        return self.path.stat().st_mtime

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the run so that a reader finds the old content or the new, never a part.

        Raises:
            DoesNotFit: the disk is full; ConfigError: the folder cannot be written.
        """
        with explained(self.path, "the run"):
            write_atomic(self.path / name, text)

    def settle(self, config: RunConfig) -> None:
        """Writes the configuration again, with what was measured filled in; `started` stays as it was."""
        began = self.started()
        self.write_text("config.yaml", config.to_yaml())
        os.utime(self.path / "config.yaml", (began, began))
        self.__dict__.pop("config", None)

    def write_json(self, name: str, value: Any) -> None:
        """As `write_text`, for a value that JSON can carry."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def list_runs(root: str | Path = "runs") -> list[RunDirectory]:
    """The runs under a folder, oldest first, damaged ones included; none where the folder is missing.

    Raises:
        ConfigError: the folder cannot be read.
    """
    root = Path(root).expanduser()
    try:
        found = [RunDirectory(path.absolute()) for path in root.iterdir() if is_run(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{root} cannot be read: {error.strerror}", "name a folder of runs with --out") from None
    for run in found:
        # What cannot be brought up to date is told by whoever reads its configuration.
        with contextlib.suppress(ConfigError, DoesNotFit):
            run.migrate()
    return sorted(found, key=lambda run: (run.started(), run.id))


def _tail(path: Path, length: int | None) -> list[str]:
    """The lines in the last `length` bytes of a file (None: all of it); the first may lack its beginning."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length) if length else 0)
        return file.read().decode("utf-8", errors="replace").splitlines()


def is_run(path: Path) -> bool:
    """Whether a path is a run directory, damaged or not."""
    try:
        return path.is_dir() and any((path / name).exists() for name in ("config.yaml", "events.jsonl"))
    except OSError:
        return False


def _automatic_names(config: RunConfig) -> Iterator[str]:
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    model, task = (Path(text.rstrip("/")).name for text in (config.model, config.task))
    scope = "auto" if config.probe == "scope" else config.scope
    words = f"{model}-{Path(task).stem}-{config.method}-{scope}-s{config.seed}"
    words = re.sub(r"[^A-Za-z0-9._]+", "-", words).lstrip("._-")[: _LONGEST_ID - len(moment) - 5]
    yield f"{words}-{moment}"
    # Runs of the same configuration begun in the same second.
    for number in range(2, 1000):
        yield f"{words}-{moment}-{number}"
