"""A report as files in a folder: page, figure, one row a run, and all figures as JSON."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ...core.errors import ConfigError
from ...core.files import disk_full, is_disk_full, write_atomic
from . import figures
from .html import page
from .summary import ComparisonReport
from .tables import csv_text

PAGE, SVG, PNG, CSV, JSON = "report.html", "figure.svg", "figure.png", "runs.csv", "comparison.json"
CONFIGURATION = "comparison.yaml"


def write_report(report: ComparisonReport, folder: Path, configuration: str = "") -> None:
    """Writes the report into a folder, over an earlier one; each file is there whole or not at all.

    Args:
        configuration: YAML text that makes the comparison again; empty where it was put together from other runs.

    Raises:
        DoesNotFit: the disk is full. ConfigError: the folder cannot be written.
    """
    drawn = figures.draw(report)
    content: dict[str, str | bytes] = {
        PAGE: page(report, drawn, configuration),
        SVG: drawn.svg(),
        PNG: drawn.png,
        CSV: csv_text(report),
        JSON: json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n",
    }
    if configuration:
        content[CONFIGURATION] = configuration
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            write_atomic(folder / name, text)


@contextlib.contextmanager
def _explained(folder: Path):
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(f"the report in {folder}") from None
        raise ConfigError(
            f"the report cannot be written to {folder}: {error.strerror or error}", "name another folder with --report"
        ) from None
