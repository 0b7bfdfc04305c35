"""The quickstart's result over several seeds: held-out accuracy before and after, time and memory.

    python -m bench.quickstart
    python -m bench.quickstart --seeds 0 1 2 --empty-cache

Runs `mlxzo quickstart --json` once a seed, exactly as a user would; with --empty-cache, the first one downloads the
model into a new folder. `--task reviews` measures `mlxzo train` with its defaults on the other embedded task.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from bench.report import emit, machine, result_of, spread, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--empty-cache", action="store_true", help="begin without a downloaded model")
    parser.add_argument("--task", help="an embedded task other than the quickstart's")
    arguments = parser.parse_args()
    emit("machine", **machine())
    command = ["train", "--task", arguments.task] if arguments.task else ["quickstart"]
    results = []
    with tempfile.TemporaryDirectory() as home:
        if arguments.empty_cache:
            os.environ.update(MLXZO_HOME=home, HF_HOME=home)
        for seed in arguments.seeds:
            began = time.perf_counter()
            result = result_of(*command, "--seed", str(seed))
            result["command_seconds"] = time.perf_counter() - began
            emit("quickstart", **result)
            results.append(result)

    def percent(values: list[float]) -> str:
        return spread([100 * value for value in values])

    before = [r["zero_shot"]["test"]["value"] for r in results]
    after = [r["test"]["value"] for r in results]
    rows = [
        ["majority class", percent([r["test"]["majority"] for r in results])],
        ["zero-shot", percent(before)],
        ["tuned", percent(after)],
        ["gain, points", percent([b - a for a, b in zip(before, after, strict=True)])],
        ["tuned, validation rows", percent([r["best"]["validation"]["value"] for r in results])],
        ["training, s", spread([r["train_seconds"] for r in results], 0)],
        ["from the command to the table, s", spread([r["command_seconds"] for r in results], 0)],
        ["peak, MB", spread([r["memory"]["mlx_peak_bytes"] / 1e6 for r in results], 0)],
    ]
    first = results[0]
    print(
        f"\n{first['model']}, {first['task']}, {first['method']} {first['scope']}, {first['steps']} steps, "
        f"{first['test']['examples']} test examples, seeds {arguments.seeds}"
    )
    table(["test accuracy, %", "mean (lowest - highest)"], rows)


if __name__ == "__main__":
    main()
