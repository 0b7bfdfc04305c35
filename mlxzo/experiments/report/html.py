"""A comparison as one HTML page: no script, nothing fetched from anywhere, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ...core.formatting import printable
from . import figures
from .summary import ComparisonReport
from .tables import runs_table, summary_table

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --soft: #5a5f66; --faint: #c4c4c4; --paper: #ffffff; --shade: #f4f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a4a9b0; --faint: #4a4a4a; --paper: #16181c; --shade: #22252b }
}
@media print { :root { --ink: #000; --soft: #333; --faint: #bbb; --paper: #fff; --shade: #f4f5f7 } }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.verdict { font-size: 1.1rem; margin: 0 0 1rem }
figure { margin: 0; overflow-x: auto }
figure svg { width: 100%; min-width: 44rem; height: auto; display: block }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--faint); white-space: nowrap;
  vertical-align: top }
small { color: var(--soft) }
th { font-weight: 600; color: var(--soft) }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0 }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
pre { background: var(--shade); padding: .8rem 1rem; border-radius: 6px; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere }
"""


def page(report: ComparisonReport, drawn: figures.Drawn, configuration: str) -> str:
    """The whole page.

    Args:
        drawn: the report's figure.
        configuration: YAML text that makes the comparison again; empty where it was put together from other runs.
    """
    parts = [
        f"<h1>{_text(report.name)}</h1>",
        f'<p class="verdict">{_text(report.verdict())}</p>',
        f"<figure>{drawn.svg(figures.PAGE)}</figure>",
        "<h2>Contestants</h2>",
        _table(*summary_table(report)),
        "<p>Figures are means over finished runs, with their range over seeds in brackets; memory is the highest of "
        "all runs. Zero-shot is the model before training.</p>",
        "<h2>What to know</h2>",
        "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in report.remarks()) + "</ul>",
        _failures(report),
        "<h2>Conditions</h2>",
        _pairs(report.conditions()),
        "<h2>Runs</h2>",
        _table(*runs_table(report)),
    ]
    if configuration:
        parts += ["<h2>Run it again</h2>", f"<pre>{_text(configuration)}</pre>"]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def _failures(report: ComparisonReport) -> str:
    """What those said that did not finish, with the details, such as a table of memory by component."""
    found = []
    for each in report.contenders:
        if each.failed is not None:
            lines = [each.failed.message, *each.failed.details, *([each.failed.fix] if each.failed.fix else [])]
            found.append(f"<p><strong>{_text(each.name)}</strong> ({_text(each.status)})</p>")
            found.append(f"<pre>{_text(chr(10).join(lines))}</pre>")
    return "\n".join(["<h2>What did not run</h2>", *found]) if found else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    body = "\n".join(
        f"<tr><td>{_text(row[0])}</td>" + "".join(f"<td>{_figure(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figure(cell: str) -> str:
    """A cell, with what stands in brackets or behind a comma below the rest: narrow columns fit a page."""
    for sign in (" (", ", "):
        head, found, rest = cell.partition(sign)
        if found:
            return f"{_text(head)}<br><small>{_text(found.strip(' ,') + rest)}</small>"
    return _text(cell)


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>" for label, value in rows) + "</dl>"


def _text(text: str) -> str:
    return escape(printable(text))
