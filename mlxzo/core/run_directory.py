"""Run directories: create, open, list and read them. A run keeps everything in one folder.

runs/<id>/ holds config.yaml (resolved), events.jsonl, worker.log, the checkpoints and result.json. A process that
begins, continues, changes or removes a run holds its lock. Nothing here imports MLX.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from . import events, run_lock, run_migrations
from .config import RunConfig
from .defaults import step_limit
from .errors import ConfigError, DataError, DoesNotFit, Interrupted, MlxzoError, WorkerDied
from .files import explained, fsync_folder, irregular_entries, open_regular, user_path, write_atomic
from .formatting import json_text
from .parsing import CONTENT_ERRORS, read_json
from .yaml_file import read_yaml

Status = Literal["running", "finished", "interrupted", "failed", "died"]

# The checkpoint that did best on the validation split.
BEST_STATE = Path("checkpoints") / "best.safetensors"
# The latest checkpoint, from which an interrupted run continues.
LAST_STATE = Path("checkpoints") / "last.safetensors"
# Every step of a MeZO run (see zo.journal).
JOURNAL = Path("journal.bin")
# The content of `events.Finished`, once the run is complete.
RESULT = "result.json"
# Files that a worker writes before its first step.
_BEFORE_WORK = ("events.jsonl", "environment.json")
_LONGEST_ID = 100


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Files are read on demand."""

    path: Path

    @staticmethod
    def create(config: RunConfig) -> RunDirectory:
        """Creates a directory under `config.out` and writes the resolved configuration to it.

        Its name is `config.name`, or <model>-<task>-<method>-<scope>-s<seed>-<date>-<time>.

        Raises:
            ConfigError: the name is taken, or the folder cannot be written.
            DoesNotFit: the disk is full.
        """
        root = user_path(config.out).absolute()
        names = iter((config.name,)) if config.name else _automatic_names(config)
        with explained(root, "the run"):
            root.mkdir(parents=True, exist_ok=True)
            for name in names:
                try:
                    (root / name).mkdir()
                except FileExistsError:
                    continue
                run = RunDirectory(root / name)
                try:
                    fsync_folder(root)
                    run.begin(config)
                except BaseException:
                    # It is no run, and must not keep the name.
                    shutil.rmtree(run.path, ignore_errors=True)
                    raise
                return run
        raise ConfigError(
            f"a run named {config.name} exists already in {root}",
            "choose another --name, or another --out folder",
        )

    @staticmethod
    def open(path_or_id: str | Path, root: str | Path = "runs") -> RunDirectory:
        """The run at a path, or the one with this id under `root`.

        Raises:
            ConfigError: there is no such run (names the nearest id), or a newer version of mlxzo wrote it.
        """
        text = str(path_or_id)
        root = user_path(root)
        under_root = root / text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) else None
        for path in (under_root, user_path(text)):
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
        """The run of this id or path, damaged or not, if it lies directly in `root`, so that it may be removed.

        Raises:
            ConfigError: there is no such run in that folder, or it is a link to somewhere else.
        """
        root = user_path(root)
        given = user_path(path_or_id)
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
        """Requests to the worker while it runs (see `runtime.control`)."""
        return self.path / "commands.jsonl"

    @property
    def lock_path(self) -> Path:
        """Locked (flock) while the run's worker lives; holds its process id."""
        return self.path / "worker.lock"

    @cached_property
    def config(self) -> RunConfig:
        """The run's resolved configuration.

        Raises:
            ConfigError: config.yaml is missing or wrong, a newer version of mlxzo wrote the run, or something in it is
                neither a file nor a folder.
        """
        self.migrate()
        self._check_kinds()
        path = self.path / "config.yaml"
        return RunConfig.from_mapping(read_yaml(path), source=str(path))

    def events(self) -> Iterator[tuple[events.Event, float]]:
        """Every event so far with its time (seconds since the epoch); torn and unknown lines are skipped, and a file
        that cannot be read."""
        try:
            with io.TextIOWrapper(open_regular(self.events_path), encoding="utf-8", errors="replace") as lines:
                yield from events.read(lines)
        except OSError:
            return

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None where it is missing or cannot be read."""
        found = self._read_json(RESULT)
        return None if found is None else run_migrations.with_current_keys(found)

    def environment(self) -> dict[str, Any] | None:
        """The content of environment.json; None where it is missing or cannot be read."""
        return self._read_json("environment.json")

    @property
    def status(self) -> Status:
        """The state of the run; `died`: its worker ended without a message."""
        return "running" if self.worker_is_alive() else self.last_status

    @property
    def last_status(self) -> Status:
        """The status that the last worker left behind, where no worker is running."""
        match self.outcome:
            case events.Finished(), _:
                return "finished"
            case None | (events.Failed(kind=WorkerDied.kind), _):
                return "died"
            case events.Failed(kind=Interrupted.kind), _:
                return "interrupted"
        return "failed"

    @property
    def outcome(self) -> tuple[events.Finished | events.Failed, float] | None:
        """The end of the run and its time; None where the last worker ended without a message.

        A result is the end, whatever the last event is: it is written before that, and removed when the run goes on.
        """
        if (result := self.result()) is not None:
            with contextlib.suppress(OSError):
                return events.Finished(result), (self.path / RESULT).stat().st_mtime
        ends = (events.Finished, events.Failed, events.Step, events.Phase)
        event, time = events.last_in(self.events_path, *ends) or (None, 0.0)
        return (event, time) if isinstance(event, events.Finished | events.Failed) else None

    @property
    def is_foreign(self) -> bool:
        """True where something else than a run has this path."""
        if not self.path.is_dir():
            return os.path.lexists(self.path)
        # What a run may leave that could not begin.
        unbegun = (self.lock_path.name, run_migrations.FILE)
        return not is_run(self.path) and any(path.name not in unbegun for path in self.path.iterdir())

    @property
    def has_work(self) -> bool:
        """True if the run can be continued: it has a journal or a checkpoint."""
        return any((self.path / name).exists() for name in (JOURNAL, LAST_STATE, BEST_STATE))

    def last_event(self, *kinds: type[events.AnEvent]) -> events.AnEvent | None:
        """The last event of one of these kinds."""
        found = events.last_in(self.events_path, *kinds)
        return None if found is None else found[0]

    def add_event(self, event: events.Event) -> None:
        """Appends an event in the place of the worker, which has ended or is stopped, perhaps in the middle of a line.

        A disk that is full must not hide what the caller has to say, and is passed over.
        """
        with contextlib.suppress(OSError), self.events_path.open("ab") as file:
            file.write(b"\n" + events.to_json(event, time.time()).encode() + b"\n")

    def step_counts(self) -> tuple[int, int | None]:
        """The steps done, and those of the whole run; None for these where only time or a plateau ends it.

        Of a finished run both are the steps that it made, which may be fewer than its configuration names.
        """
        made = (self.result() or {}).get("steps")
        if isinstance(made, int) and not self.worker_is_alive():
            return made, made
        last = self.last_event(events.Step)
        total = None
        with contextlib.suppress(MlxzoError):
            total = step_limit(self.config)
        return (last.step if isinstance(last, events.Step) else 0), total

    def kept(self) -> str:
        """A sentence on the work that is on disk."""
        saved = [e for e, _ in self.events() if isinstance(e, events.Saved) and e.path == str(BEST_STATE)]
        if not saved:
            return "no state had been saved"
        return (
            f"the best state, of step {saved[-1].step}, is in {self.path / BEST_STATE}; "
            f"`mlxzo train --resume {shlex.quote(str(self.path))}` continues the run"
        )

    def worker_is_alive(self) -> bool:
        """True if a worker holds the run's lock, whatever process started it."""
        return run_lock.is_locked(self.lock_path)

    def claim(self) -> int | None:
        """Takes the run's lock (see `run_lock.claim`); None: another process holds it.

        Raises:
            ConfigError: the folder is gone or cannot be written. DoesNotFit: the disk is full.
        """
        with explained(self.path, "the run"):
            return run_lock.claim(self.lock_path)

    @contextlib.contextmanager
    def held(self, *, make: bool = False) -> Iterator[int | None]:
        """Holds the run's lock within a `with` block; yields what `claim` returns, and raises as it does.

        Args:
            make: create a missing directory.
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
        """Writes the files of a new run, in place of those of a worker that ended before its first step.

        Raises:
            ConfigError: the folder cannot be written. DoesNotFit: the disk is full.
        """
        with explained(self.path, "the run"):
            for name in _BEFORE_WORK:
                (self.path / name).unlink(missing_ok=True)
            run_migrations.write_version(self.path)
        self._write_config(config.resolved())

    def migrate(self) -> None:
        """Brings files of an older version of mlxzo up to date.

        Raises:
            ConfigError: a newer version wrote the run, or an older mlxzo is running it now.
        """
        if run_migrations.version_of(self.path) == run_migrations.VERSION:
            return
        with self.held() as lock, explained(self.path, "the run"):
            if lock is None:
                raise ConfigError(f"an older mlxzo is running {self.id}", "wait for it to end")
            run_migrations.migrate(self.path)

    def _check_kinds(self) -> None:
        """Raises ConfigError if something in the directory is neither a file nor a folder."""
        for folder in (self.path, self.path / BEST_STATE.parent):
            # Other files come and go, or are reported by their readers.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                for error in irregular_entries(folder):
                    raise ConfigError(
                        f"{error.filename} cannot be read: {error.strerror}", "remove it, or restore it from a backup"
                    )

    def check_in_place(self) -> None:
        """Checks that the directory is still the one that the first call found: files of a run that go on in another
        would make up no run.

        Raises:
            DataError: it was removed, renamed or replaced.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(self._first_found, self.path.stat()):
                return
        raise DataError(
            f"the run directory {self.path} was removed or renamed while the run was going on",
            "move it back, or resume it where it is now; if it is gone, start a new run",
        )

    @cached_property
    def _first_found(self) -> os.stat_result:
        return self.path.stat()

    def remove(self) -> None:
        """Removes the directory with everything in it; links, but not their targets.

        Raises:
            ConfigError: it is running, or cannot be removed.
        """
        with self.held() as lock, explained(self.path, "the run"):
            if lock is None:
                raise ConfigError(f"the run {self.id} is running", f"stop it first: `mlxzo runs stop {self.id}`")
            shutil.rmtree(self.path)

    def started(self) -> float:
        """Time of the run's creation, in seconds since the epoch."""
        with contextlib.suppress(OSError):
            return (self.path / "config.yaml").stat().st_mtime
        return self.path.stat().st_mtime

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            found = read_json(self.path / name)
        except (OSError, *CONTENT_ERRORS):
            return None
        return found if isinstance(found, dict) else None

    def write_text(self, name: str, text: str) -> None:
        """Replaces a file of the run in one step: a reader finds the old content or the new one whole.

        Raises:
            DoesNotFit: the disk is full; ConfigError: the folder cannot be written.
        """
        with explained(self.path, "the run"):
            write_atomic(self.path / name, text)

    def update_config(self, config: RunConfig) -> None:
        """Replaces the configuration, with measured values filled in; `started` stays as it was."""
        began = self.started()
        self._write_config(config)
        os.utime(self.path / "config.yaml", (began, began))

    def _write_config(self, config: RunConfig) -> None:
        self.write_text("config.yaml", config.to_yaml())
        self.__dict__.pop("config", None)

    def write_json(self, name: str, value: Any) -> None:
        """As `write_text`, for a value that JSON can represent."""
        self.write_text(name, json_text(value, indent=2) + "\n")


def list_runs(root: str | Path = "runs") -> list[RunDirectory]:
    """The runs under a folder, oldest first, damaged ones included; none where the folder is missing.

    Raises:
        ConfigError: the folder cannot be read.
    """
    root = user_path(root)
    try:
        found = [RunDirectory(path.absolute()) for path in root.iterdir() if is_run(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{root} cannot be read: {error.strerror}", "name a folder of runs with --out") from None
    for run in found:
        # Reading the configuration of such a run raises the same error.
        with contextlib.suppress(ConfigError, DoesNotFit):
            run.migrate()
    return sorted(found, key=lambda run: (run.started(), run.id))


def is_run(path: Path) -> bool:
    """True if a path is a run directory, damaged or not."""
    try:
        return path.is_dir() and any((path / name).exists() for name in ("config.yaml", "events.jsonl"))
    except OSError:
        return False


def _automatic_names(config: RunConfig) -> Iterator[str]:
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    model, task = (Path(text.rstrip("/")).name for text in (config.model, config.task))
    words = f"{model}-{Path(task).stem}-{config.method}-{config.scope}-s{config.seed}"
    words = re.sub(r"[^A-Za-z0-9._]+", "-", words).lstrip("._-")[: _LONGEST_ID - len(moment) - 5]
    yield f"{words}-{moment}"
    # For runs of one configuration created within a second.
    for number in range(2, 1000):
        yield f"{words}-{moment}-{number}"
