"""The figure of a comparison: accuracy against seconds, and peak memory against the cap.

Colours are Okabe and Ito's, which colour-blind people can distinguish, and never the only sign: every contestant has a
marker and a number, and lines of backpropagation are dashed. The same runs give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from ...core.formatting import format_bytes, format_metric, printable
from ...core.metrics import metric_named
from .summary import ComparisonReport
from .tables import numbered, status_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.typing import RcKeyType

# Without the yellow, too faint on white, and the black, which is invisible on a dark page.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_ZERO_SHOT_DASHES = ((0, (1, 2)), (0, (4, 2, 1, 2)), (0, (6, 3)), (0, (1, 4)))
_PROBE_DASHES = (0, (8, 2, 1, 2, 1, 2))
_METHODS = {"mezo": "-", "bp": (0, (5, 2))}
# Inches: the figure without its legend, a contestant's bar with its name, a row of the legend.
_WIDTH, _HEIGHT, _BAR, _LEGEND_ROW = 11.0, 4.2, 0.48, 0.2
_FONT_SIZE = 9.0
_PNG_DPI = 150
# Characters that fit in a row of the legend, and above a bar.
_LEGEND_CHARACTERS, _BAR_CHARACTERS = 160, 62


@dataclass(frozen=True)
class Theme:
    """Colours of text and lines, of the grid, and of the background, as SVG writes them."""

    ink: str
    faint: str
    paper: str


# Matplotlib draws with these colours, which no contestant has; those of another theme replace them in the SVG.
LIGHT = Theme("#1a1a1b", "#c4c4c5", "#fffffe")
# Variables of the style sheet of the page around the figure.
PAGE = Theme("var(--ink)", "var(--faint)", "var(--paper)")


@dataclass(frozen=True)
class Drawn:
    """The figure of a report: `png`, at 150 dots an inch, and SVG in any theme."""

    png: bytes
    light_svg: str

    def svg(self, theme: Theme = LIGHT) -> str:
        """SVG for a file of its own or for a page. Its text stays text, and it refers to nothing outside."""
        text = self.light_svg
        for before, after in zip(astuple(LIGHT), astuple(theme), strict=True):
            text = text.replace(before, after)
        return text


def draw(report: ComparisonReport) -> Drawn:
    """Draws a report; takes a second or two."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    inked: tuple[RcKeyType, ...] = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
    )
    papered: tuple[RcKeyType, ...] = ("figure.facecolor", "axes.facecolor")
    settings: dict[RcKeyType, Any] = {
        "font.family": "sans-serif",
        # Verdana is as wide as the font that the figure is laid out with, and there where that one is missing.
        "font.sans-serif": ["DejaVu Sans", "Verdana"],
        "font.size": _FONT_SIZE,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "mlxzo",
        **dict.fromkeys(inked, LIGHT.ink),
        **dict.fromkeys(papered, LIGHT.paper),
        "grid.color": LIGHT.faint,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Characters that the font lacks are boxes in the PNG, and ordinary text in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = _figure(report)
        png, svg = io.BytesIO(), io.BytesIO()
        # Not `savefig`, which lays out and draws twice for each file.
        figure.dpi = _PNG_DPI
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return Drawn(png.getvalue(), _embeddable(svg.getvalue().decode(), report))


def _embeddable(text: str, report: ComparisonReport) -> str:
    """SVG for a page: without document type and metadata, and with a title for screen readers."""
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL).strip()
    title = escape(printable(f"{report.metric} against seconds and peak memory of {report.name}"))
    return re.sub(r"(<svg [^>]*)>", rf'\1 role="img"><title>{title}</title>', text, count=1) + "\n"


def _figure(report: ComparisonReport) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    race, memory = figure.subplots(1, 2, width_ratios=(3, 2))
    lines = _race(race, report)
    _memory(memory, report)
    names = [_short(str(line.get_label()), _LEGEND_CHARACTERS // 2) for line in lines]
    columns = max(1, min(4, _LEGEND_CHARACTERS // (max(map(len, names)) + 8)))
    figure.legend(
        lines, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2, columnspacing=1.6
    )
    height = max(_HEIGHT, _BAR * (len(report.contenders) + 1))
    figure.set_size_inches(_WIDTH, height + _LEGEND_ROW * math.ceil(len(names) / columns))
    return figure


def _race(axes: Axes, report: ComparisonReport) -> list[Line2D]:
    """Validation metric against time; lines of zero-shot, probes and majority. Returns what the legend names."""
    metric = metric_named(report.metric)
    factor = metric.scale
    bands = [each.band() for each in report.contenders]
    longest = max([point[0] for band in bands for point in band], default=0.0)
    unit, name = (60.0, "minutes") if longest >= 600 else (1.0, "seconds")
    lines = []
    for number, (each, band) in enumerate(zip(report.contenders, bands, strict=True)):
        if len(band) < 2:
            continue
        times = [point[0] / unit for point in band]
        mean, low, high = ([factor * point[i] for point in band] for i in (1, 2, 3))
        (line,) = axes.plot(
            times,
            mean,
            label=printable(numbered(report, each)) + ("" if each.finished else f" ({each.status})"),
            color=_colour(number),
            linestyle=_METHODS.get(each.config.method, "-"),
            linewidth=1.7,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            # Contestants with the same curve show their markers in turn.
            markevery=(number % 3, max(1, len(times) // 10)) if len(times) > 10 else None,
        )
        axes.fill_between(times, low, high, color=_colour(number), alpha=0.16, linewidth=0)
        lines.append(line)
    for number, (model, value) in enumerate(_zero_shot(report).items()):
        dashes = _ZERO_SHOT_DASHES[number % len(_ZERO_SHOT_DASHES)]
        label = f"zero-shot, {model}: {format_metric(report.metric, value)}"
        lines.append(axes.axhline(factor * value, color=LIGHT.ink, linewidth=1.0, linestyle=dashes, label=label))
    for number, each in enumerate(report.probed, len(report.contenders)):
        if each.metric == report.metric:
            measured = "" if each.split == "validation" else f" on {each.split}"
            label = f"{numbered(report, each)}{measured}: {metric.text(each.value.mean)}"
            style = {"color": _colour(number), "linewidth": 1.7, "linestyle": _PROBE_DASHES}
            lines.append(axes.axhline(factor * each.value.mean, label=printable(label), **style))
    if (majority := report.majority("validation")) is not None and metric.is_share:
        label = f"majority class: {format_metric(report.metric, majority)}"
        lines.append(axes.axhline(factor * majority, color=LIGHT.ink, linewidth=0.8, alpha=0.55, label=label))
    axes.set_xlabel(f"{name} of steps and validation")
    axes.set_ylabel(f"validation {report.metric}" + (", %" if metric.is_share else ""))
    axes.set_title("mean over seeds and its range; backpropagation is dashed", fontsize=_FONT_SIZE, loc="left")
    axes.set_xlim(left=0)
    _plain(axes)
    if not bands or longest == 0:
        axes.text(0.5, 0.6, "nothing trained yet", transform=axes.transAxes, ha="center")
    return lines or [axes.plot([], [], label="no runs", color=LIGHT.ink)[0]]


def _memory(axes: Axes, report: ComparisonReport) -> None:
    """A bar a contestant: its peak with MLX's share marked, its name above; and the cap."""
    cap = report.config.memory_cap_bytes
    count = len(report.contenders)
    peaks = [
        max((spread.high for spread in (each.footprint_bytes, each.peak_bytes) if spread), default=0.0)
        for each in report.contenders
    ]
    # The bar of one that needs many times the cap leaves the picture, so that the others have room.
    limit = 1.3 * max([*peaks, cap or 0.0, 1.0]) / 1e9
    for number, (each, peak) in enumerate(zip(report.contenders, peaks, strict=True)):
        place = count - number
        name = _short(printable(numbered(report, each)), _BAR_CHARACTERS)
        # Texts hide the line of the cap, which would strike them through.
        over = {"facecolor": LIGHT.paper, "edgecolor": "none", "pad": 1.0}
        axes.text(0.0, place + 0.3, name, va="center", fontsize=8, bbox=over)
        axes.barh(place - 0.14, peak / 1e9, height=0.4, color=_colour(number), alpha=0.85)
        if each.peak_bytes:
            axes.vlines(each.peak_bytes.high / 1e9, place - 0.34, place + 0.06, color=LIGHT.ink, linewidth=1.4)
        words = [format_bytes(int(peak))] if peak else []
        if each.status != "finished":
            words.append(status_text(each))
        if each.needed_bytes is not None:
            # An outline, since no run has used that memory.
            needed = min(each.needed_bytes / 1e9, 2 * limit)
            axes.barh(place - 0.14, needed, height=0.4, fill=False, edgecolor=_colour(number), linestyle=":")
        axes.text(peak / 1e9 + 0.015 * limit, place - 0.14, ", ".join(words), va="center", fontsize=8, bbox=over)
    axes.set_xlim(0, limit)
    axes.set_ylim(0.45, count + 0.75)
    axes.set_yticks([])
    axes.set_xlabel("GB")
    title = "peak footprint, MLX's arrays marked |"
    if cap is not None:
        axes.axvline(cap / 1e9, color=LIGHT.ink, linewidth=1.4, linestyle=(0, (6, 3)))
        title += f"; cap {format_bytes(cap)} (dashed)"
    axes.set_title(title, fontsize=_FONT_SIZE, loc="left")
    _plain(axes, across=False)


def _plain(axes: Axes, across: bool = True) -> None:
    """Removes the box of the axes and draws a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    if not across:
        axes.spines["left"].set_visible(False)
    axes.grid(axis="both" if across else "x", linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def _zero_shot(report: ComparisonReport) -> dict[str, float]:
    """The validation metric of each model before training; it depends on neither seed nor method."""
    found: dict[str, float] = {}
    for run in report.runs:
        if "validation" in run.history.zero_shot:
            found.setdefault(run.model_name, run.history.zero_shot["validation"].value)
    return found


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
