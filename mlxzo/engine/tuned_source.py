"""Sources of tuned weights: a run, an mlx-lm adapter folder, or a journal. Imports no MLX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.config_checks import WITHOUT
from ..core.errors import ConfigError, DataError
from ..core.removed_options import without_removed
from ..core.run_directory import RunDirectory
from ..models.adapter_folder import adapter_config
from ..zo.journal import Journal, JournalError, read
from .task_record import export_options

Kind = Literal["run", "adapter", "journal"]


@dataclass(frozen=True)
class Source:
    """A source of tuned weights: a run directory, an adapter folder, or a journal file."""

    kind: Kind
    path: Path

    def options(self) -> dict[str, Any]:
        """The options it was trained with; for an adapter the base model and what an export records.

        Raises:
            MlxzoError: it is missing or damaged.
        """
        if self.kind == "run":
            return RunDirectory(self.path).config.to_dict()
        if self.kind == "journal":
            return recorded_options(read_journal(self.path))
        model = adapter_config(self.path).get("model")
        return export_options(self.path) | ({"model": model} if isinstance(model, str) else {})


def read_journal(path: Path) -> Journal:
    """Reads a journal.

    Raises:
        ConfigError: the file is missing or unreadable. DataError: it is damaged, or no journal.
    """
    try:
        return read(path)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no journal at {path}", "check the path; only MeZO runs have one (journal.bin)"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder", f"the journal of a run is {path / 'journal.bin'}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    except JournalError as error:
        raise DataError(str(error), error.fix or "copy it again from where it came from") from None


def recorded_options(journal: Journal) -> dict[str, Any]:
    """The options of a journal's run that there still are; replaying its factors depends on no other."""
    config = without_removed(journal.header.config)
    # A run's own journal holds a resolved configuration.
    unused = WITHOUT.get(config.get("estimator", ""), ())
    return {name: value for name, value in config.items() if name not in unused}
