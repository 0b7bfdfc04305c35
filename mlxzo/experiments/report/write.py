"""A report as files in a folder: page, figure, CSV and JSON."""

from __future__ import annotations

from pathlib import Path

from ...core.files import explained, write_atomic
from ...core.formatting import json_text
from . import figures
from .html import page
from .summary import ComparisonReport
from .tables import csv_text

PAGE, SVG, PNG, CSV, JSON = "report.html", "figure.svg", "figure.png", "runs.csv", "comparison.json"
CONFIGURATION = "comparison.yaml"


def write_report(report: ComparisonReport, folder: Path, configuration: str = "") -> None:
    """Writes the report into a folder, over an earlier one; each file is replaced whole or not at all.

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
        JSON: json_text(report.to_dict(), indent=2) + "\n",
    }
    if configuration:
        content[CONFIGURATION] = configuration
    with explained(folder, "the report", "--report"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            write_atomic(folder / name, text)
