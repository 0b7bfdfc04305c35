"""The figure of a plan: memory of training against model size, one line for each way of training, and the cap.

matplotlib is imported when the figure is drawn: that takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.formatting import format_bytes, format_count

if TYPE_CHECKING:
    from .plan_table import PlanRow

# Colour-blind safe (Okabe and Ito): blue is MeZO, orange and red backpropagation, dashes are checkpointing.
_STYLES = {
    "MeZO full": ("#0072B2", "o", "-"),
    "MeZO LoRA": ("#56B4E9", "s", "-"),
    "MeZO scales": ("#009E73", "^", ":"),
    "BP full": ("#D55E00", "o", "-"),
    "BP full, checkpointing": ("#D55E00", "o", "--"),
    "BP LoRA": ("#E69F00", "s", "-"),
    "BP LoRA, checkpointing": ("#E69F00", "s", "--"),
    "BP QLoRA": ("#E69F00", "s", "-"),
    "BP QLoRA, checkpointing": ("#E69F00", "s", "--"),
}
_GB = 1e9
_MEMORY_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SIZE_TICKS = (1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11)


def draw(rows: Sequence[PlanRow], cap_bytes: int, source: str, path: Path) -> None:
    """Draws a plan to `path`, in the format of its suffix: floating models and quantised ones side by side.

    Args:
        source: the examples, in words.

    Raises:
        ConfigError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {
        title: [row for row in rows if row.quantised is quantised]
        for title, quantised in (("floating weights", False), ("quantised weights", True))
    }
    groups = {title: group for title, group in groups.items() if group}
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(1.5 + 5 * len(groups), 5.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (title, group) in zip(panels[0], groups.items(), strict=True):
        _panel(axes, group, cap_bytes)
        axes.set_title(title, fontsize=10)
    panels[0][0].set_ylabel("predicted footprint, GB")
    figure.suptitle(
        f"What fits under {format_bytes(cap_bytes)}: {source}\n"
        "filled: fits, with the largest micro-batch that does; hollow: the least it would take",
        fontsize=10,
    )
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}", "choose another --figure") from None
    finally:
        pyplot.close(figure)


def _panel(axes: Any, rows: Sequence[PlanRow], cap_bytes: int) -> None:
    for way, (colour, marker, line) in _STYLES.items():
        points = sorted((r.parameters, r.footprint_bytes / _GB, r.fits) for r in rows if r.way.name == way)
        if not points:
            continue
        axes.plot([p[0] for p in points], [p[1] for p in points], line, color=colour, linewidth=1.2)
        for fits in (True, False):
            chosen = [p for p in points if p[2] is fits]
            face = colour if fits else "white"
            axes.plot([p[0] for p in chosen], [p[1] for p in chosen], marker, color=colour, ms=5, mfc=face)
        axes.plot([], [], line, marker=marker, color=colour, label=way)
    axes.axhline(cap_bytes / _GB, color="black", linewidth=1.5, label="cap")
    axes.set(xscale="log", yscale="log", xlabel="parameters")
    _ticks(axes.xaxis, _SIZE_TICKS, axes.get_xlim(), lambda size: format_count(size).replace(".0", ""))
    _ticks(axes.yaxis, _MEMORY_TICKS, axes.get_ylim(), "{:g}".format)
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=8, loc="upper left", frameon=False)


def _ticks(axis: Any, values: Sequence[float], limits: tuple[float, float], text: Any) -> None:
    shown = [value for value in values if limits[0] <= value <= limits[1]]
    axis.set_ticks(shown, [text(value) for value in shown])
    axis.set_ticks([], minor=True)
