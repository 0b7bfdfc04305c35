"""The experiment of the on-device MeZO paper at the size of one small machine: one cap, one time, whoever fits.

    python -m bench.paper --data-root ../shared/data --out bench/results/paper
    python -m bench.paper --data-root DIR --out DIR --cap 2.9GB --minutes 15 --tasks sst2 trec --seeds 0 1 2

Katti et al. (arXiv 2511.11362) hold the memory fixed: backpropagation then fits a small model and MeZO a larger one,
and given time the larger one is said to win. Here the cap is one under which full backpropagation with Adam fits
SmolLM2-135M and not Gemma-3-270M, which forward passes tune. Backpropagation gets its memory savers as well (LoRA,
gradient checkpointing), so that what the cap keeps out is no straw man. Each task is one `mlxzo compare`: what is done
is skipped when the command is given again, and reports, figures and rows land in OUT/TASK. `--print` shows the
comparisons and runs none.
"""

from __future__ import annotations

import argparse
import sys

from bench.comparisons import parser_of, run, shared_values
from mlxzo.experiments.comparison import Comparison

# All settings are mlxzo's defaults for method and scope; nothing was tuned on these tasks for either method.
CONTESTANTS = (
    "name='135M BP full' smollm2-135m bp full",
    "name='135M BP LoRA' smollm2-135m bp lora checkpointing=on",
    "name='135M RSGN final norm' smollm2-135m mezo norms/last-0",
    "name='270M BP full' gemma-3-270m bp full",
    "name='270M BP LoRA' gemma-3-270m bp lora checkpointing=on",
    "name='270M RSGN final norm' gemma-3-270m mezo norms/last-0",
    "name='270M MeZO full' gemma-3-270m mezo full estimator=spsa",
)


def comparison(task: str, arguments: argparse.Namespace) -> Comparison:
    """The comparison of one task.

    Raises:
        ConfigError: an option is wrong.
    """
    return Comparison.from_mapping(
        shared_values(arguments, CONTESTANTS)
        | {
            "name": f"paper-{task}",
            "task": task,
            "data": str(arguments.data_root / task),
            "memory_cap": arguments.cap,
            "max_tokens": 128,
            "eval_every": arguments.eval_every,
        }
    )


def main() -> int:
    parser = parser_of(
        __doc__, CONTESTANTS, minutes=15.0, tasks=["sst2", "trec"], validation_examples=200, test_examples=500
    )
    parser.add_argument("--cap", default="2.9GB", help="memory cap (default: %(default)s)")
    parser.add_argument("--eval-every", type=int, default=25, help="steps between evaluations (default: %(default)s)")
    return run(parser.parse_args(), comparison)


if __name__ == "__main__":
    sys.exit(main())
