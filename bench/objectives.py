"""What has no gradient, optimised all the same: accuracy itself, and a reward that a program of one's own gives.

    python -m bench.objectives accuracy
    python -m bench.objectives reward --seeds 0 1 2

`accuracy` trains the embedded task by each objective that looks at the candidates' scores, everything else alike.
`reward` has the model answer the same customers in its own words, of which bench/rewards/ten_words.py likes ten. What
trains is the final norm of SmolLM2-135M, 576 numbers. Each run is one `mlxzo train`: its best state by the validation
split is measured on the test split, by which nothing was chosen: rates and steps were set by the validation results of
seed 0. Other options, such as `--steps 10`, go to `mlxzo train`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import mlxzo
from bench.report import emit, machine, result_of, spread, table

_REWARDS = Path(__file__).parent / "rewards"
_ROWS = Path(mlxzo.__file__).parent / "tasks" / "data" / "reviews"
_COMMON = ["--model", "smollm2-135m", "--scope", "match:model.norm.weight", "--eps", "0.05"]
_SCORES = [*_COMMON, "--task", "reviews", "--lr", "0.05", "--batch-size", "128", "--queries", "8"]
_SCORES += ["--steps", "400", "--eval-every", "50"]
_JUDGE = ["--reward-command", shlex.join([sys.executable, str(_REWARDS / "ten_words.py")]), "--allow-code"]
_WRITTEN = [*_COMMON, "--task", str(_REWARDS / "shop.yaml"), "--data", str(_ROWS), "--objective", "reward", *_JUDGE]
_WRITTEN += ["--estimator", "spsa", "--lr", "0.05", "--batch-size", "16", "--steps", "60", "--eval-every", "20"]
_WRITTEN += ["--validation-examples", "50"]

RUNS = {
    "accuracy": {name: [*_SCORES, "--objective", name] for name in ("accuracy", "soft-accuracy", "loss")},
    "reward": {"ten words": _WRITTEN},
}


def row(label: str, results: list[dict[str, Any]], scale: float) -> list[str]:
    """The seeds of one kind of run as a row of the table.

    Args:
        scale: that metrics are multiplied with.
    """
    before = [scale * r["zero_shot"]["test"]["value"] for r in results]
    after = [scale * r["test"]["value"] for r in results]
    gain = [b - a for a, b in zip(before, after, strict=True)]
    ties = [100 * r["tie_share"] for r in results]
    seconds = [r["train_seconds"] for r in results]
    digits = 1 if scale == 100 else 3
    return [label, *(spread(v, digits) for v in (before, after, gain)), spread(ties), spread(seconds, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(RUNS))
    parser.add_argument("--only", nargs="+", help="labels of the runs to make")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments, further = parser.parse_known_args()
    emit("machine", **machine())
    rows = []
    for label, options in RUNS[arguments.what].items():
        if arguments.only and label not in arguments.only:
            continue
        results = []
        for seed in arguments.seeds:
            result = result_of("train", *options, *further, "--seed", str(seed))
            emit("objectives", what=label, **result)
            results.append(result)
        rows.append(row(label, results, 100 if arguments.what == "accuracy" else 1))
    metric = "test accuracy" if arguments.what == "accuracy" else "test reward"
    print()
    told = f"{metric}, zero-shot"
    table(["objective", told, "tuned", "gain", "directions that tell nothing, %", "training, s"], rows)


if __name__ == "__main__":
    main()
