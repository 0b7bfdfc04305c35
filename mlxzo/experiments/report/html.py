"""A comparison as one HTML page, from the template page.html and page.css beside this file."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...core import events
from ...core.formatting import printable
from . import figures
from .summary import ComparisonReport
from .tables import runs_table, summary_table


def page(report: ComparisonReport, drawn: figures.Drawn, configuration: str) -> str:
    """The whole page. Texts of users, such as names and messages, are escaped.

    Args:
        drawn: the report's figure.
        configuration: YAML text that makes the comparison again; empty where it was put together from other runs.
    """
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            svg=drawn.svg(figures.PAGE),
            summary=summary_table(report),
            failures=[(each, _sentences(each.failed)) for each in report.contenders if each.failed],
            runs=runs_table(report),
            configuration=configuration,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mlxzo.experiments", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_without_control_characters,
    )
    environment.filters["split_note"] = _split_note
    return environment


def _without_control_characters(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _sentences(failed: events.Failed) -> str:
    """The message, the details, such as a table of memory by component, and the fix; a line each."""
    return "\n".join([failed.message, *failed.details, *([failed.fix] if failed.fix else [])])


def _split_note(cell: str) -> tuple[str, str]:
    """The value of a cell, and the note in brackets or after a comma, which goes below it to keep columns narrow."""
    for sign in (" (", ", "):
        value, found, note = cell.partition(sign)
        if found:
            return value, found.strip(" ,") + note
    return cell, ""
