"""Measure which scope and learning rate suit a model and a task, with forward passes alone.

  mlxzo probe --model smollm2-135m --task reviews
  mlxzo probe --task sst2 --data my_data --scope last-8 --by layers
  mlxzo probe --task sst2 --data my_data --scope auto --json

A step along a random direction lowers the loss by about lr |grad|^2 - lr^2/2 E[g^2 h], where g is the derivative along
the direction on one batch and h the curvature. The table shows, with standard errors, |grad|^2, the trace tr(H) of the
curvature and their ratio, in units of the scope's directions, and the lr and eps that follow from them.
`mlxzo train --lr auto` and `--scope auto` measure the same and train with the result.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...core.blas import load_fast_blas
from ...core.config import RunConfig
from ...core.errors import EXIT_DONE, ConfigError
from ...core.formatting import format_count, format_seconds
from ..options import add_config_options, add_json, config_values, print_json

if TYPE_CHECKING:
    from ...engine.lr_finder import Probed, ProbeReport

_OPTIONS = (
    *("model", "dtype", "task", "data", "prompt_style", "train_examples", "train_per_label", "max_tokens"),
    *("scope", "steps", "batch_size", "micro_batch", "schedule", "seed", "eps", "directions", "estimator", "queries"),
    *("update", "direction_scale", "lora_rank", "lora_scale", "lora_targets", "activation_cache"),
)
_MOST = 10_000
_BY = {
    "scope": "everything that trains as one group",
    "layers": "groups of decoder layers",
    "kinds": "norms, attention, MLP and the rest",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by",
        choices=tuple(_BY),
        default="scope",
        help="rows of the table: " + "; ".join(f"{name}: {text}" for name, text in _BY.items()) + " (default: scope)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help=f"random directions per row; errors fall with their root (2 to {_MOST}; default: 24, or 16 for scopes)",
    )
    add_json(parser)
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    if arguments.samples is not None and not 2 <= arguments.samples <= _MOST:
        raise ConfigError(f"--samples must be 2 to {_MOST}, not {arguments.samples}")
    from .train import read_config

    config = read_config({"lr": "auto", **config_values(arguments)}, None)
    if config.probe == "scope" and arguments.by != "scope":
        raise ConfigError(f"--by {arguments.by} looks inside one scope, and --scope auto compares several", "name one")
    load_fast_blas()
    from ...engine.lr_finder import SAMPLES, SCOPE_SAMPLES, probe_scope, probe_scopes
    from ..console import RunView, output

    with RunView() as view:
        if config.probe == "scope":
            report = probe_scopes(config, view.show, arguments.samples or SCOPE_SAMPLES)
        else:
            report = probe_scope(config, view.show, by=arguments.by, samples=arguments.samples or SAMPLES)
    if arguments.json:
        print_json({"model": config.model, "task": config.task, **report.to_dict()})
        return EXIT_DONE
    console = output()
    console.print(table(report, config))
    for line in remarks(report):
        console.print(line, markup=False)
    return EXIT_DONE


def table(report: ProbeReport, config: RunConfig):
    """The rows of a probe as a table."""
    from ..console import listing

    columns = ["scope", "parameters", "|grad|^2", "tr(H)", "|grad|^2/tr(H)", "eps", f"lr ({config.update})", "gain"]
    rows = [
        [
            _label(row),
            format_count(row.parameters),
            *map(format_value, (row.measured.gradient, row.measured.trace, row.measured.ratio)),
            "-" if row.eps is None else f"{row.eps:.2g}",
            format_value(row.best) + (" ?" if row.lr is None else ""),
            "-" if row.decrease is None else f"{row.decrease:.2g}",
        ]
        for row in report.rows
    ]
    return listing(columns, rows, right=tuple(columns[1:]))


def remarks(report: ProbeReport) -> list[str]:
    """Lines that explain the table: legend, cost, and rows without a result."""
    lines = [
        "",
        "gain: expected decrease of the loss in the first step; ±: one standard error; ?: not above noise.",
        f"{report.forward_passes} forward passes in {format_seconds(report.seconds)}.",
    ]
    if report.bias:
        lines.insert(
            2, f"The model's preference among the labels was removed first; it adds {report.bias:.2g} to the loss."
        )
    lines += [f"{_label(row)}: {row.measured.problem()}" for row in report.rows if not row.measured.known]
    return lines + [f"{scope} left out: {why}" for scope, why in report.skipped.items()]


def format_value(value) -> str:
    """`0.31 ± 0.08`."""
    return f"{value.value:.2g} ± {value.error:.1g}"


def _label(row: Probed) -> str:
    return row.scope if row.measured.group == "all" else f"{row.scope}: {row.measured.group}"
