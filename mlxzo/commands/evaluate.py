"""Measure a model, or a tuned run, on a task.

  mlxzo eval --model smollm2-135m --task reviews
  mlxzo eval --run runs/RUN --split validation

With --run, model, task and data are those of the run, and flags change them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import EXIT_DONE
from .options import add_config_options, add_json, add_run, config_values, print_json

_OPTIONS = (
    "model",
    "dtype",
    "task",
    "data",
    "validation_examples",
    "test_examples",
    "max_tokens",
    "batch_size",
    "out",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="the examples to use (default: test)"
    )
    add_json(parser)
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    from .train import read_run_config

    config, path = read_run_config(config_values(arguments), arguments.run)
    from ..blas import load_fast_blas

    load_fast_blas()
    from ..console import RunView, key_values, output
    from ..jobs import evaluate_job

    with RunView() as view:
        result = evaluate_job(config, run=path, split=arguments.split, on_event=view.show)
    if arguments.json:
        print_json(result)
    else:
        output().print(key_values(rows(result, config.model, path)))
    return EXIT_DONE


def rows(result: dict, model: str, run: Path | None) -> list[tuple[str, str]]:
    """The lines of the table of one evaluation."""
    from ..formatting import format_loss, format_metric, format_seconds

    metric = result["metric"]
    lines = [("model", model if run is None else f"{model}, tuned in {run}"), ("task", result["task"])]
    if result.get("majority") is not None:
        lines.append(("majority class", format_metric(metric, result["majority"])))
    lines.append(
        (metric, f"{format_metric(metric, result['value'])} on {result['examples']} {result['split']} examples")
    )
    if metric != "loss":
        lines.append(("loss", format_loss(result["loss"])))
    lines.append(("time", format_seconds(result["seconds"])))
    return lines
