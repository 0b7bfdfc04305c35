"""The version of a run directory's files, and how those of an older version are brought up to date.

`schema.json` in a run directory names the version, and the mlxzo that wrote it. A directory without it is of version 1.
A change of format that this program could not read adds one to `VERSION` and a function to `MIGRATIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from .errors import ConfigError
from .files import write_atomic

VERSION = 1
FILE = "schema.json"
# From each older version to the next. A function is given the run directory. It may be killed in the middle and is then
# called again, so it must leave alone what it finds done.
MIGRATIONS: dict[int, Callable[[Path], None]] = {}


def version_of(run: Path) -> int:
    """The version of the files in a run directory.

    Raises:
        ConfigError: it is newer than this program knows, or schema.json cannot be read.
    """
    path = run / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, writer = int(found["version"]), str(found.get("mlxzo", ""))
    except FileNotFoundError:
        return 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not name the version of the run: {error}", "restore it from a backup, or remove the run"
        ) from None
    if version > VERSION:
        raise ConfigError(
            f"the run {run.name} has files of version {version}, and this mlxzo ({__version__}) reads up to {VERSION}",
            f"upgrade mlxzo{f' to {writer} or later' if writer else ''}",
        )
    return version


def write_version(run: Path, version: int = VERSION) -> None:
    """Marks a run directory as of a version.

    Raises:
        OSError: it cannot be written.
    """
    write_atomic(run / FILE, json.dumps({"version": version, "mlxzo": __version__}) + "\n")


def migrate(run: Path) -> None:
    """Brings a run directory up to `VERSION`, one version after the other; for whoever holds the run's lock.

    Raises:
        ConfigError: see `version_of`. OSError: it cannot be written.
    """
    for version in range(version_of(run), VERSION):
        MIGRATIONS[version](run)
        write_version(run, version + 1)
