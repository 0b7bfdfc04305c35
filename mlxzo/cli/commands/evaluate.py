"""Measure a model, or a tuned run, on a task.

  mlxzo eval --model smollm2-135m --task reviews
  mlxzo eval --run runs/RUN --split validation
  mlxzo eval --adapter DIR --task sst2
  mlxzo eval --journal RUN-ID.mlxzo
  mlxzo eval --task sst2 --shots 4
  mlxzo eval --task sst2 --baselines
  mlxzo eval --run runs/RUN --allow-code

Answers are scored by the judges that a task YAML names; by a program or function of yours, of the run or of
--reward-command, with --allow-code alone.
Model and task come from the run or journal, the model from the adapter; flags override them. Demonstrations are
training examples, drawn by --seed; those that do not fit into --max-tokens are left out. Calibration divides the
probabilities of the labels by those that they have after inputs without content (Zhao et al. 2021). The ridge probe is
a linear map from the hidden state at the end of the prompt to the labels; its layer and strength are chosen by the
leave-one-out error on the training rows.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...core.config import DATA_OPTIONS
from ...core.errors import EXIT_DONE, ConfigError
from ...core.formatting import counted, format_loss, format_metric, format_seconds, has_loss, more_metrics_text, shown
from ...memory.mlx_limits import start_mlx
from ..options import add_allow_code, add_config_options, add_json, add_source, config_values, source_of
from ..printing import print_json

if TYPE_CHECKING:
    from ...engine.tuned_source import Source
    from ...tasks.base import Task

_JUDGE = ("reward_command", "reward_function", "reward_seconds")
_OPTIONS = ("model", "dtype", *DATA_OPTIONS, "prompt_style", "max_tokens", "batch_size", *_JUDGE, "seed", "out")
_SHOTS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="the examples to use (default: test)"
    )
    parser.add_argument(
        "--shots",
        metavar="K",
        help="put K training examples of each label before every prompt, or K in total where the candidates differ "
        f"between rows (default: 0; with --baselines {_SHOTS})",
    )
    parser.add_argument("--calibrate", action="store_true", help="correct for the model's preference among the labels")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="print a table: majority class, zero-shot and in-context; where the task has labels, both calibrated, "
        "and a ridge probe of the hidden states fitted to the training rows",
    )
    add_allow_code(parser)
    add_json(parser)
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    from .train import read_tuned_config

    shots = _shots(arguments.shots)
    source = source_of(arguments)
    config = read_tuned_config(config_values(arguments), source)
    start_mlx()
    from ...engine.baselines import Baseline, evaluate_job, suitable_baselines
    from ..console import RunView, key_values, listing, output

    def ways(task: Task) -> list[Baseline]:
        if arguments.baselines:
            return suitable_baselines(task, shots or _SHOTS)
        return [Baseline(shots or 0, arguments.calibrate)]

    with RunView() as view:
        results = evaluate_job(
            config,
            source=source,
            split=arguments.split,
            on_event=view.show,
            ways=ways,
            probe=arguments.baselines,
            allow_code=arguments.allow_code,
        )
    if arguments.json:
        print_json(results if arguments.baselines else results[0])
    elif arguments.baselines:
        output().print(listing(["", results[0]["metric"], "loss", "time"], _table(results), right=("loss", "time")))
        output().print(_remark(results))
    else:
        output().print(key_values(rows(results[0], config.model, source)))
    return EXIT_DONE


def _shots(text: str | None) -> int | None:
    """The value of --shots; None if it was not given.

    Raises:
        ConfigError: the text is not a whole number from 0 to 9999.
    """
    if text is None:
        return None
    if not (text.isdecimal() and text.isascii() and len(text) <= 4):
        raise ConfigError(f"--shots: expected a whole number from 0 to 9999, not {shown(text)}", "try --shots 4")
    return int(text)


def rows(result: dict, model: str, source: Source | None) -> list[tuple[str, str]]:
    """One evaluation as (label, text) pairs."""
    metric = result["metric"]
    lines = [("model", model if source is None else f"{model}, tuned by {source.path}"), ("task", result["task"])]
    if result["shots"] or result["calibrate"]:
        lines.append(("asked", result["asked"]))
    if result.get("majority") is not None:
        lines.append(("majority class", format_metric(metric, result["majority"])))
    lines.append(
        (
            metric,
            f"{format_metric(metric, result['value'])} on {counted(result['examples'], result['split'] + ' example')}",
        )
    )
    if result["before_training"] is not None:
        lines.append(("before training", format_metric(metric, result["before_training"])))
    lines += [(name, format_metric(name, value)) for name, value in result["more"].items()]
    if has_loss(metric, result["value"], result["loss"]):
        lines.append(("loss", format_loss(result["loss"])))
    lines.append(("time", format_seconds(result["seconds"])))
    return lines


def _table(results: list[dict]) -> list[list[str]]:
    """One row per baseline, after the majority class."""
    first, table = results[0], []
    if first["majority"] is not None:
        table.append(["majority class", format_metric(first["metric"], first["majority"]), "-", "-"])
    for result in results:
        value = format_metric(result["metric"], result["value"]) + more_metrics_text(result["more"])
        loss = "-" if _is_probe(result) else format_loss(result["loss"])
        table.append([result["asked"], value, loss, format_seconds(result["seconds"])])
    return table


def _remark(results: list[dict]) -> str:
    """The rows measured, and what the probe chose."""
    *_, last = results
    text = counted(last["examples"], last["split"] + " example")
    if not _is_probe(last):
        return text
    return (
        f"{text}; standard error of the probe {100 * last['standard_error']:.1f} points. The probe reads layer "
        f"{last['layer']} of {last['model_layers']} with ridge strength {last['strength']:.2g} per row, both chosen on "
        f"{counted(last['train_examples'], 'training row')}."
    )


def _is_probe(result: dict) -> bool:
    return "layer" in result
