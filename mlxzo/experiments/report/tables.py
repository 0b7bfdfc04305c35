"""A comparison as rows of text, for the console and for a page, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from ...core.formatting import format_bytes, format_metric, format_seconds
from .summary import ComparisonReport, Contender, Spread


def summary_table(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """Header and one row a contestant; values are means over seeds with their range."""

    def metric(value: float) -> str:
        return format_metric(report.metric, value)

    header = [
        "contestant",
        "runs",
        "zero-shot",
        f"{report.split} {report.metric}",
        "steps",
        "steps/s",
        "time to best",
        "peak footprint",
        "of it MLX",
    ]
    rows = [
        [
            numbered(report, each),
            f"{len(each.finished)} of {len(each.runs)}"
            + ("" if each.status == "finished" else f", {status_text(each)}"),
            metric(each.zero_shot.mean) if each.zero_shot else "-",
            spread_text(each.tuned, metric),
            spread_text(each.steps, _whole),
            spread_text(each.steps_per_second, _two_digits),
            spread_text(each.seconds_to_best, format_seconds),
            _most(each.footprint_bytes),
            _most(each.peak_bytes),
        ]
        for each in report.contenders
    ]
    return header, rows


def short_table(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """As `summary_table`, for 80 columns: numbers in place of names, and no range but that of the metric."""

    def mean(spread: Spread | None, form: Callable[[float], str]) -> str:
        return form(spread.mean) if spread else "-"

    def metric(value: float) -> str:
        return format_metric(report.metric, value)

    header = ["", "runs", "zero-\nshot", f"{report.split} {report.metric}", "steps", "steps/s", "to best", "peak"]
    rows = [
        [
            str(number),
            f"{len(each.finished)}/{len(each.runs)}",
            mean(each.zero_shot, metric),
            spread_text(each.tuned, metric),
            mean(each.steps, _whole),
            mean(each.steps_per_second, _two_digits),
            mean(each.seconds_to_best, format_seconds),
            _most(each.footprint_bytes),
        ]
        for number, each in enumerate(report.contenders, 1)
    ]
    return header, rows


def numbered(report: ComparisonReport, each: Contender) -> str:
    """`2  NAME`: a contestant has the same number in the figure and in every table."""
    return f"{report.contenders.index(each) + 1}  {each.name}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def runs_table(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """Header and one row a run."""
    header = ["run", "status", "seed", "best validation", "at step", report.split, "steps", "time", "peak footprint"]
    rows = []
    for run in report.runs:
        best, last = run.history.best, run.history.test
        rows.append(
            [
                run.run.id,
                run.status,
                str(run.config.seed),
                format_metric(report.metric, best.value) if best else "-",
                str(best.step) if best else "-",
                format_metric(report.metric, last.value) if last else "-",
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
    rows = [run.to_dict() for run in report.runs]
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
