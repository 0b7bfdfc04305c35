"""Model cards of exported models: base, task, results and usage."""

from __future__ import annotations

import shlex
from typing import Any

from .. import __version__
from ..core.config import RunConfig
from ..core.formatting import format_metric

_USE = {
    "adapter": 'mlx_lm.generate --model {model} --adapter-path . --prompt "..."',
    "fused": 'mlx_lm.generate --model . --prompt "..."',
    "journal": "mlxzo replay FILE --out DIR",
}


def card(config: RunConfig, form: str, step: int, result: dict[str, Any] | None, base_sha256: str) -> str:
    """A model card in Markdown, with the metadata block that the Hugging Face hub reads.

    Args:
        form: `adapter`, `fused` or `journal`.
        step: the step of the exported state.
        result: the run's result.json, if it finished.
    """
    lines = [
        "---",
        f"base_model: {config.model}",
        "library_name: mlx",
        "tags: [mlx, mlxzo, zeroth-order]" if config.method == "mezo" else "tags: [mlx, mlxzo]",
        "---",
        f"# {config.model}, fine-tuned on {config.task}",
        "",
        f"By mlxzo {__version__}: method `{config.method}`, scope `{config.scope}`, seed {config.seed}, "
        f"state of step {step}.",
        "",
        *_figures(result),
        f"Base weights: SHA-256 `{base_sha256}`.",
        "",
        f"Use: `{_USE[form].format(model=shlex.quote(config.model))}`",
    ]
    return "\n".join(lines) + "\n"


def _figures(result: dict[str, Any] | None) -> list[str]:
    """A table of the results; empty if the run did not finish."""
    if result is None:
        return []
    metric = result["metric"]
    rows = [f"| {metric} | zero-shot | tuned | majority class | examples |", "|---|---|---|---|---|"]
    tuned = {"validation": result["best"]["validation"], "test": result["test"]}
    for split, before in result["zero_shot"].items():
        after = tuned[split]
        values = (before["value"], after["value"], before["majority"])
        rows.append(
            f"| {split} | " + " | ".join(format_metric(metric, v) for v in values) + f" | {before['examples']} |"
        )
    return [*rows, ""]
