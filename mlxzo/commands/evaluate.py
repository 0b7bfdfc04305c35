"""Measure a model, or a tuned run, on a task.

  mlxzo eval --model smollm2-135m --task reviews
  mlxzo eval --run runs/RUN --split validation
  mlxzo eval --adapter DIR --task sst2
  mlxzo eval --journal RUN-ID.mlxzo

A run and a journal know model and task, an adapter the model; flags change them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import EXIT_DONE
from .options import add_config_options, add_json, add_source, config_values, print_json, source_of

if TYPE_CHECKING:
    from ..tuned import Source

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
    add_source(parser)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="the examples to use (default: test)"
    )
    add_json(parser)
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    from .train import read_tuned_config

    source = source_of(arguments)
    config = read_tuned_config(config_values(arguments), source)
    from ..blas import load_fast_blas

    load_fast_blas()
    from ..console import RunView, key_values, output
    from ..jobs import evaluate_job

    with RunView() as view:
        result = evaluate_job(config, source=source, split=arguments.split, on_event=view.show)
    if arguments.json:
        print_json(result)
    else:
        output().print(key_values(rows(result, config.model, source)))
    return EXIT_DONE


def rows(result: dict, model: str, source: Source | None) -> list[tuple[str, str]]:
    """The lines of the table of one evaluation."""
    from ..formatting import format_loss, format_metric, format_seconds

    metric = result["metric"]
    lines = [("model", model if source is None else f"{model}, tuned by {source.path}"), ("task", result["task"])]
    if result.get("majority") is not None:
        lines.append(("majority class", format_metric(metric, result["majority"])))
    lines.append(
        (metric, f"{format_metric(metric, result['value'])} on {result['examples']} {result['split']} examples")
    )
    if metric != "loss":
        lines.append(("loss", format_loss(result["loss"])))
    lines.append(("time", format_seconds(result["seconds"])))
    return lines
