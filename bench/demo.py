"""The recording that `mlxzo tui --demo` plays: a run's own events, thinned and rounded, nothing invented.

mlxzo train --task support_desk --memory-cap 900MB
python -m bench.demo runs/RUN tui/data/demo.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory

# Of the samples of memory one in so many is kept.
_MEMORY_EVERY = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    lines, samples = [], 0
    told = list(RunDirectory.open(arguments.run).events())
    for number, (event, time) in enumerate(told):
        if isinstance(event, events.Memory):
            samples += 1
            if samples % _MEMORY_EVERY:
                continue
        if isinstance(event, events.Samples) and _found_nothing_better(told[number:]):
            continue
        record = json.loads(events.to_json(event, round(time, 3)))
        lines.append(json.dumps(rounded(record), ensure_ascii=False, separators=(",", ":")))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _found_nothing_better(rest: Sequence[tuple[events.Event, float]]) -> bool:
    """True if the evaluation that answers belong to is one of the many whose state was not kept."""
    evaluated = next(event for event, _ in rest if isinstance(event, events.Evaluated))
    return evaluated.kind == "validation" and not evaluated.best


def rounded(value: Any) -> Any:
    """The value with its fractions to five significant digits; times keep their milliseconds."""
    if isinstance(value, dict):
        return {key: item if key == "time" else rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
