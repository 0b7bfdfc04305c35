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
from pathlib import Path

from mlxzo.cli.commands.compare import compare
from mlxzo.core.errors import EXIT_INTERRUPTED, MlxzoError
from mlxzo.core.formatting import describe
from mlxzo.experiments.comparison import Comparison, parse_contestant

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
        {
            "name": f"learning-{task}-{arguments.model}-{arguments.minutes:g}",
            "task": prompt,
            "data": str(arguments.data_root / folder),
            "minutes": arguments.minutes,
            "seeds": arguments.seeds,
            "max_tokens": MAX_TOKENS.get(task, 512),
            "validation_examples": arguments.validation_examples,
            "test_examples": arguments.test_examples,
            "out": str(arguments.runs),
            "contestants": [each for each in contestants if arguments.only is None or _name(each) in arguments.only],
        }
    )


def _name(contestant: str) -> str:
    return parse_contestant(contestant)["name"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with a folder of rows for each task")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports, one folder a task")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs (default: runs)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=5.0, help="time of each run (default: 5)")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "sst2-review", "trec", "sms_spam", "boolq", "cb"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation-examples", type=int, default=872, help="at each evaluation (default: 872)")
    parser.add_argument("--test-examples", type=int, default=1000, help="before and after training (default: 1000)")
    names = [_name(each.format(model="m")) for each in CONTESTANTS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names)
    parser.add_argument("--print", action="store_true", help="show the comparisons as YAML, and run nothing")
    arguments = parser.parse_args()
    worst = 0
    try:
        for task in arguments.tasks:
            each = comparison(task, arguments)
            if arguments.print:
                print(each.to_yaml())
                continue
            print(f"\n{each.name}", flush=True)
            code = compare(each, arguments.out / task)
            if code == EXIT_INTERRUPTED:
                return code
            worst = worst or code
    except MlxzoError as error:
        print(describe(error), file=sys.stderr)
        return error.exit_code
    return worst


if __name__ == "__main__":
    sys.exit(main())
