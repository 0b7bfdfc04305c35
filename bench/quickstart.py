"""The quickstart's result over several seeds: held-out accuracy before and after, time and memory.

    python -m bench.quickstart
    python -m bench.quickstart --seeds 0 1 2

Runs `mlxzo quickstart --json` once a seed, exactly as a user would.
"""

from __future__ import annotations

import argparse

from bench.report import emit, machine, result_of, spread, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    emit("machine", **machine())
    results = []
    for seed in arguments.seeds:
        result = result_of("quickstart", "--seed", str(seed))
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
        ["training, s", spread([r["train_seconds"] for r in results], 0)],
        ["all in all, s", spread([r["total_seconds"] for r in results], 0)],
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
