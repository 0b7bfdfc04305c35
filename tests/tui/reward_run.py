"""The events of a run of `--objective reward`, written by hand: noisy rewards that rise, and answers of its members."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mlxzo.core import events

MEMBERS, GIGABYTE = 16, 10**9
ORDERS = ("Can I get two small coffees to go?", "One large tea, please, with milk and\nno sugar, and a slice of cake.")
VALID = '{"item": "coffee", "size": "small", "count": 2, "to_go": true}'
INVALID = (
    'Sure! Here is your order as JSON: {"item": "coffee", "size": "small", "count": "two", "comment": "to go", '
    '"thanks": "for choosing us, and have a very nice day"}\x1b[31m'
)


def reward_events(steps: int, *, changed: float = 0.34, eps: float = 0.0123) -> Iterator[events.Event]:
    """The events of a run that goes on after so many steps; of the answers, a share of `changed` differs."""
    yield events.Phase("load")
    yield events.Loaded("tiny", "here", 134_515_008, 35_136, 61, "ab", "orders", 400, 50, 200, GIGABYTE, "reward")
    yield events.Phase("baseline")
    yield _samples(INVALID)
    yield events.Evaluated("zero-shot", "validation", 0, "reward", 0.2, 0.8, 50, None, 4.0, True)
    yield events.Phase("train")
    for step in range(1, steps + 1):
        mean = 0.8 - 0.6 * math.exp(-step / 60) + 0.08 * math.sin(2.4 * step)
        rewards = [mean + 0.1 * math.cos(7.1 * step + 3.3 * member) for member in range(MEMBERS)]
        answers = [{"prompt": text, "best": VALID, "median": INVALID} for text in ORDERS] if step % 5 == 1 else []
        yield events.Population(step, rewards, eps, changed + 0.02 * math.sin(step), answers)
        loss = 1.0 - mean
        yield events.Step(step, 300, loss, loss, 1.0, 0.3, 4.0, 9000, 0.25, 2250.0, 900.0, GIGABYTE, GIGABYTE, 0)
        if step % 10 == 0:
            yield _samples(VALID)
            value = 0.78 - 0.58 * math.exp(-step / 60)
            yield events.Evaluated("validation", "validation", step, "reward", value, 1.0 - value, 50, None, 4.0, True)


def _samples(answer: str) -> events.Samples:
    return events.Samples(
        "validation", [{"prompt": text, "answer": answer, "right": None, "share": None} for text in ORDERS]
    )
