"""Files of older versions: the version of a run directory, its migrations, and names that changed since 0.1.0.

`schema.json` in a run directory names the version, and the mlxzo that wrote it. A directory without it is of version 1.
A change of format that this program could not read adds one to `VERSION` and a function to `MIGRATIONS`. What it can
still read by another name stays as it was written, and is renamed here as it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__
from .errors import ConfigError
from .files import write_atomic
from .formatting import brief
from .parsing import ContentError, parsing, read_json

VERSION = 1
FILE = "schema.json"
# From each older version to the next. A function is given the run directory. It may be killed in the middle and is then
# called again, so it must leave alone what it finds done.
MIGRATIONS: dict[int, Callable[[Path], None]] = {}
# Keys of version 0.1.0, in events and results, and their present names.
_RENAMED = {"alike": "ties", "alike_share": "tie_share"}


def with_current_keys(record: dict[str, Any]) -> dict[str, Any]:
    """An event or a result with the keys of an older version under their present names."""
    return {_RENAMED.get(key, key): value for key, value in record.items()}


def error_kind(title: str) -> str:
    """The kind of an error (see `errors`) from its title, as version 0.1.0 wrote it: `Worker died` is `worker-died`."""
    return title.lower().replace(" ", "-")


def version_of(run: Path) -> int:
    """The version of the files in a run directory, from 1.

    Raises:
        ConfigError: it is newer than `VERSION`, or schema.json cannot be read.
    """
    path = run / FILE
    with parsing(path, ConfigError, "restore it from a backup, or remove the run"):
        try:
            found = read_json(path)
        except FileNotFoundError:
            return 1
        version, writer = int(found["version"]), brief(found.get("mlxzo", ""))
        if version < 1:
            raise ContentError(f"names version {version}, and the first is 1")
    if version > VERSION:
        raise ConfigError(
            f"the run {run.name} has files of version {version}, and this mlxzo ({__version__}) reads up to {VERSION}",
            f"upgrade mlxzo{f' to {writer} or later' if writer else ''}",
        )
    return version


def write_version(run: Path, version: int = VERSION) -> None:
    """Writes schema.json.

    Raises:
        OSError: it cannot be written.
    """
    write_atomic(run / FILE, json.dumps({"version": version, "mlxzo": __version__}) + "\n")


def migrate(run: Path) -> None:
    """Brings a run directory up to `VERSION`, one version after the other; the caller holds the run's lock.

    Raises:
        ConfigError: see `version_of`. OSError: it cannot be written.
    """
    for version in range(version_of(run), VERSION):
        MIGRATIONS[version](run)
        write_version(run, version + 1)
