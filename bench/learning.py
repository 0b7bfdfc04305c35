"""How well each method learns a task in a given time: accuracy and loss against seconds, over several seeds.

    python -m bench.learning --data-root ../shared/data --out bench/results/learning
    python -m bench.learning --data-root DIR --out DIR --tasks trec --minutes 15 --only "RSGN, final norm" "BP LoRA"

One `mlxzo compare` a task: the default of `mlxzo train` (RSGN on the final norm) beside RSGN on larger scopes, MeZO as
published and in the recipe that was the default of 0.1 (adaptive, norms of the last 6 layers), and backpropagation.
What is done is skipped when the command is given again, so it can run overnight in pieces. Reports, figures and rows
land in OUT/TASK. Nothing was tuned on these tasks but SST-2. `mlxzo eval --baselines` gives majority class, zero-shot,
in-context and the ridge probe of the same rows.
"""

from __future__ import annotations

import argparse
import sys

from bench.comparisons import parser_of, run, shared_values
from mlxzo.experiments.comparison import Comparison

CONTESTANTS = (
    "name='RSGN, final norm' {model} mezo norms/last-0",
    "name='RSGN, norms of the last 2 layers' {model} mezo norms/last-2",
    "name='RSGN, norms of the last 6 layers' {model} mezo norms/last-6",
    "name='RSGN, LoRA' {model} mezo lora",
    "name='MeZO, adaptive, norms of the last 6 layers' {model} mezo norms/last-6 estimator=spsa",
    "name='MeZO as published, LoRA' {model} mezo lora estimator=spsa update=sgd",
    "name='BP, final norm' {model} bp norms/last-0",
    "name='BP LoRA' {model} bp lora",
)
# Long passages are cut to this many tokens; the question comes last and stays.
MAX_TOKENS = {"boolq": 128, "cb": 256}
# Prompts other than the task's own: a task YAML beside this file, and the folder of its rows.
PROMPTS = {"sst2-review": ("bench/sst2_review.yaml", "sst2")}


def comparison(task: str, arguments: argparse.Namespace) -> Comparison:
    """The comparison of one task.

    Raises:
        ConfigError: an option is wrong.
    """
    prompt, folder = PROMPTS.get(task, (task, task))
    contestants = [each.format(model=arguments.model) for each in CONTESTANTS]
    return Comparison.from_mapping(
        shared_values(arguments, contestants)
        | {
            "name": f"learning-{task}-{arguments.model}-{arguments.minutes:g}",
            "task": prompt,
            "data": str(arguments.data_root / folder),
            "max_tokens": MAX_TOKENS.get(task, 512),
        }
    )


def main() -> int:
    tasks = ["sst2", "sst2-review", "trec", "sms_spam", "boolq", "cb"]
    parser = parser_of(__doc__, CONTESTANTS, minutes=5.0, tasks=tasks, validation_examples=872, test_examples=1000)
    parser.add_argument("--model", default="smollm2-135m")
    return run(parser.parse_args(), comparison)


if __name__ == "__main__":
    sys.exit(main())
