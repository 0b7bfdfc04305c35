"""A comparison as rows of text, for the console and for a page, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from ...core.formatting import format_bytes, format_seconds, spreadsheet_cell
from ...core.metrics import metric_named
from .probed_model import ProbedModel
from .spread import Spread
from .summary import ComparisonReport, Contender


def summary_table(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """Header and one row a contestant; values are means over seeds with their range."""
    header = ["contestant", "runs", "zero-shot", f"{report.split} {report.metric}"]
    header += ["steps", "steps/s", "time to best", "peak footprint", "of it MLX"]
    rows = [
        [
            numbered(report, each),
            f"{len(each.finished)} of {len(each.runs)}"
            + ("" if each.status == "finished" else f", {status_text(each)}"),
            *_results(report, each, spread_text),
            _most(each.footprint_bytes),
            _most(each.peak_bytes),
        ]
        for each in report.contenders
    ]
    probes = [[numbered(report, each), _seeds(each), *_probe_results(report, each), "-", "-"] for each in report.probed]
    return header, rows + probes


def short_table(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """As `summary_table`, for 80 columns: numbers in place of names, and no range but that of the metric."""
    header = ["", "runs", "zero-\nshot", f"{report.split} {report.metric}", "steps", "steps/s", "to best", "peak"]
    rows = [
        [
            str(number),
            f"{len(each.finished)}/{len(each.runs)}",
            *_results(report, each, _mean_text),
            _most(each.footprint_bytes),
        ]
        for number, each in enumerate(report.contenders, 1)
    ]
    for number, each in enumerate(report.probed, len(rows) + 1):
        rows.append([str(number), str(len(each.results)), *_probe_results(report, each), "-"])
    return header, rows


def _seeds(each: ProbedModel) -> str:
    return "1 seed" if len(each.results) == 1 else f"{len(each.results)} seeds"


def _probe_results(report: ComparisonReport, each: ProbedModel) -> list[str]:
    """As `_results`: a probe takes no steps, and its time is that of all its passes."""
    value = spread_text(each.value, metric_named(each.metric).text)
    if each.split != report.split:
        value += f", on {each.split}"
    return ["-", value, "-", "-", format_seconds(each.seconds.mean)]


def _results(
    report: ComparisonReport, each: Contender, form: Callable[[Spread | None, Callable[[float], str]], str]
) -> list[str]:
    """Zero-shot, tuned metric, steps, steps a second and time to best; `form` writes the last three."""
    metric = metric_named(report.metric).text
    return [
        _mean_text(each.zero_shot, metric),
        spread_text(each.tuned, metric),
        form(each.steps, "{:,.0f}".format),
        form(each.steps_per_second, "{:.2f}".format),
        form(each.seconds_to_best, format_seconds),
    ]


def _mean_text(spread: Spread | None, form: Callable[[float], str]) -> str:
    return form(spread.mean) if spread else "-"


def numbered(report: ComparisonReport, each: Contender | ProbedModel) -> str:
    """`2  NAME`: a contestant or a probe has the same number in the figure and in every table."""
    return f"{[*report.contenders, *report.probed].index(each) + 1}  {each.name}"


def runs_table(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """Header and one row a run."""
    header = ["run", "status", "seed", "best validation", "at step", report.split, "steps", "time", "peak footprint"]
    metric = metric_named(report.metric).text
    rows = []
    for run in report.runs:
        best, last = run.history.best, run.history.test
        rows.append(
            [
                run.run.id,
                run.status,
                str(run.config.seed),
                metric(best.value) if best else "-",
                str(best.step) if best else "-",
                metric(last.value) if last else "-",
                f"{run.steps:,}",
                format_seconds(run.history.seconds),
                format_bytes(run.history.footprint_bytes) if run.history.footprint_bytes else "-",
            ]
        )
    return header, rows


def status_text(each: Contender) -> str:
    """A contestant's status; if it does not fit, with the memory that it needs."""
    if each.needed_bytes is None:
        return each.status
    return f"{each.status}: needs {format_bytes(each.needed_bytes)}"


def _most(memory: Spread | None) -> str:
    """The highest value of all runs, since a cap holds for each."""
    return format_bytes(int(memory.high)) if memory else "-"


def problems(report: ComparisonReport) -> list[tuple[str, str]]:
    """Contestants that did not finish all runs, each with the message of its failure."""
    return [(each.name, each.failed.message) for each in report.contenders if each.status != "finished" and each.failed]


def csv_text(report: ComparisonReport) -> str:
    """One row a run, in plain numbers: shares, seconds and bytes."""
    rows = [
        {key: spreadsheet_cell(value) if isinstance(value, str) else value for key, value in run.to_dict().items()}
        for run in report.runs
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def spread_text(spread: Spread | None, form: Callable[[float], str]) -> str:
    """`69.0 % (67.5 to 70.5)`; without the range where both ends round to the same."""
    if spread is None:
        return "-"
    mean, low, high = form(spread.mean), form(spread.low), form(spread.high)
    if low == high:
        return mean
    unit = " %" if low.endswith(" %") and high.endswith(" %") else ""
    return f"{mean} ({low.removesuffix(unit)} to {high.removesuffix(unit)})"
