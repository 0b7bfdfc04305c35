"""The experiment of the on-device MeZO paper at the size of one small machine: one cap, one time, whoever fits.

    python -m bench.paper --data-root ../shared/data --out bench/results/paper
    python -m bench.paper --data-root DIR --out DIR --cap 2.2GB --minutes 30 --tasks sst2 boolq --seeds 0 1 2

Katti et al. (arXiv 2511.11362) hold the memory fixed: backpropagation then fits a small model and MeZO a larger one,
and given time the larger one is said to win. Here the cap is one under which full backpropagation is predicted to fit
SmolLM2-135M by SGD with checkpointing and in no other way, and MeZO fits Gemma-3-270M. Backpropagation gets its memory
savers as well (LoRA, gradient checkpointing), so that what the cap keeps out is no straw man. Each task is one
`mlxzo compare`: what is done is skipped when the command is given again, and reports, figures and rows land in
OUT/TASK. `--print` shows the comparisons and runs none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlxzo.cli.commands.compare import compare
from mlxzo.core.errors import EXIT_INTERRUPTED, MlxzoError
from mlxzo.core.formatting import describe
from mlxzo.experiments.comparison import Comparison, parse_contestant

# Learning rates are mlxzo's defaults for scope and method; SGD has none, and gets what its error message names. Nothing
# was tuned on these tasks for either method.
CONTESTANTS = (
    "name='135M BP full, Adam' smollm2-135m bp full",
    "name='135M BP full, SGD, checkpointing' smollm2-135m bp full lr=1e-2 optimizer=sgd checkpointing=on",
    "name='135M BP LoRA, checkpointing' smollm2-135m bp lora checkpointing=on",
    "name='135M MeZO norms' smollm2-135m mezo norms/last-6 estimator=spsa",
    "name='135M RSGN final norm' smollm2-135m mezo norms/last-0",
    "name='270M BP full, SGD, checkpointing' gemma-3-270m bp full lr=1e-2 optimizer=sgd checkpointing=on",
    "name='270M BP LoRA, checkpointing' gemma-3-270m bp lora checkpointing=on",
    "name='270M MeZO full' gemma-3-270m mezo full estimator=spsa",
    "name='270M MeZO norms' gemma-3-270m mezo norms/last-6 estimator=spsa",
    "name='270M RSGN final norm' gemma-3-270m mezo norms/last-0",
)
# BoolQ's passages are long; cut to this many tokens they keep the question, which comes last.
MAX_TOKENS = {"boolq": 256}


def comparison(task: str, arguments: argparse.Namespace) -> Comparison:
    """The comparison of one task.

    Raises:
        ConfigError: an option is wrong.
    """
    return Comparison.from_mapping(
        {
            "name": f"paper-{task}",
            "task": task,
            "data": str(arguments.data_root / task),
            "memory_cap": arguments.cap,
            "minutes": arguments.minutes,
            "seeds": arguments.seeds,
            "max_tokens": MAX_TOKENS.get(task, 128),
            "eval_every": arguments.eval_every,
            "validation_examples": arguments.validation_examples,
            "test_examples": arguments.test_examples,
            "out": str(arguments.runs),
            "contestants": [each for each in CONTESTANTS if arguments.only is None or _name(each) in arguments.only],
        }
    )


def _name(contestant: str) -> str:
    return parse_contestant(contestant)["name"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with a folder of rows for each task")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports, one folder a task")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs (default: runs)")
    parser.add_argument("--cap", default="2.2GB", help="memory cap (default: 2.2GB)")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of each run (default: 30)")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "boolq"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eval-every", type=int, default=50, help="steps between evaluations (default: 50)")
    parser.add_argument("--validation-examples", type=int, default=200, help="at each evaluation (default: 200)")
    parser.add_argument("--test-examples", type=int, default=500, help="before and after training (default: 500)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*map(_name, CONTESTANTS)])
    parser.add_argument("--print", action="store_true", help="show the comparisons as YAML, and run nothing")
    arguments = parser.parse_args()
    worst = 0
    try:
        for each in [comparison(task, arguments) for task in arguments.tasks]:
            if arguments.print:
                print(each.to_yaml())
                continue
            print(f"\n{each.name}", flush=True)
            code = compare(each, arguments.out / each.shared_config.task)
            if code == EXIT_INTERRUPTED:
                return code
            worst = worst or code
    except MlxzoError as error:
        print(describe(error), file=sys.stderr)
        return error.exit_code
    return worst


if __name__ == "__main__":
    sys.exit(main())
