"""Training by a reward alone, beside best-of-n of the base model and backpropagation on right answers.

    python -m bench.rewards orders --seeds 0 1 2
    python -m bench.rewards sums --seeds 0 1 2
    python -m bench.rewards speed

`orders` has SmolLM2-135M-Instruct turn short orders into JSON of a schema (bench/rewards/orders.yaml), `sums` has it
add two numbers (bench/rewards/sums.yaml). Rows are made by a program from a fixed seed; no row is in two splits. Each
run is one `mlxzo train`, whose best state by the validation rows is measured on 200 test rows. Best-of-n draws answers
of the base model at a temperature of 0.8, and counts a prompt if one of them is right. `speed` writes the answers of 16
members to 16 orders in one batch and one member after the other. Other options go to the training by reward.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.report import emit, machine, result_of, spread, table
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.mlx_startup import prepare_mlx

_TASKS = Path(__file__).parent / "rewards"
_ROWS = {"train": 300, "validation": 100, "test": 200}
_ITEMS = ("coffee", "tea", "pizza", "burger", "salad", "bagel", "muffin", "lemonade", "sandwich", "cookie", "donut")
_ITEMS += ("taco", "juice", "soup", "waffle", "pancake", "smoothie", "wrap", "brownie", "pie")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIZES = ("small", "medium", "large")
_FORMS = (
    "{}, please.",
    "I would like {}.",
    "Can I get {} to go?",
    "Hi, {} for me.",
    "We need {} by noon.",
    "Please send {} to my desk.",
    "Could you make {}?",
    "{}, and that is all.",
    "Give me {}, thanks.",
    "My order is {}.",
)


def orders(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Messages such as `Can I get two small coffees to go?`, with the order as JSON."""
    while True:
        count, item, size = draw.randint(1, 9), draw.choice(_ITEMS), draw.choice(_SIZES)
        number = _NUMBERS[count - 1] if draw.random() < 0.7 else str(count)
        plural = item if count == 1 else item + ("es" if item.endswith("ch") else "s")
        text = draw.choice(_FORMS).format(f"{number} {size} {plural}")
        yield {
            "message": text[0].upper() + text[1:],
            "order": json.dumps({"item": item, "quantity": count, "size": size}),
        }


def sums(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Sums of a number of two digits and one of one digit."""
    while True:
        first, second = draw.randint(10, 99), draw.randint(2, 9)
        yield {"first": str(first), "second": str(second), "sum": str(first + second)}


MAKERS: dict[str, Callable[[random.Random], Iterator[dict[str, Any]]]] = {"orders": orders, "sums": sums}
OPTIONS = {
    "orders": ["--prompt-style", "chat", "--scope", "norms/last-6"],
    "sums": ["--scope", "norms/last-6"],
}
_COMMON = ["--model", "smollm2-135m"]
_BY_REWARD = ["--objective", "reward", "--max-seconds", "1740", "--eval-every", "5"]
_BY_GRADIENT = ["--method", "bp", "--steps", "60", "--eval-every", "10"]


def write_rows(name: str, folder: Path) -> None:
    """Writes the rows of a task, all different, as JSON lines: those of each split after one another."""
    made, seen = [], set()
    for row in MAKERS[name](random.Random(0)):
        if (key := json.dumps(row)) not in seen:
            seen.add(key)
            made.append(key)
        if len(made) == sum(_ROWS.values()):
            break
    start = 0
    for split, count in _ROWS.items():
        (folder / f"{split}.jsonl").write_text("\n".join(made[start : start + count]) + "\n")
        start += count


def task_of(name: str, folder: Path) -> list[str]:
    return ["--task", str(_TASKS / f"{name}.yaml"), "--data", str(folder), *_COMMON, *OPTIONS[name]]


def config_of(arguments: list[str]) -> RunConfig:
    """The configuration of some flags with values."""
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    return RunConfig.from_mapping({flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs})


def best_of(name: str, folder: Path, counts: list[int]) -> dict[int, float]:
    """Share of the test prompts to which one of n answers of the base model has the full reward, by n."""
    prepare_mlx()
    from mlxzo.engine.evaluation import Evaluator
    from mlxzo.engine.sampling import Sampling
    from mlxzo.engine.session import open_session
    from mlxzo.tasks.registry import get_task

    session = open_session(config_of([*task_of(name, folder), "--objective", "reward"]), events.ignore)
    evaluator, reward = Evaluator(session), get_task(str(_TASKS / f"{name}.yaml")).reward
    assert reward is not None, "the task file names judges"
    examples = session.data.test
    solved, found = [False] * len(examples), {}
    for number in range(1, max(counts) + 1):
        answers = evaluator.write("test", examples, sampling=Sampling(0.8, 1.0, (0, number)))
        scores = [reward(answer, example.gold) for answer, example in zip(answers, examples, strict=True)]
        solved = [before or score == 1.0 for before, score in zip(solved, scores, strict=True)]
        if number in counts:
            found[number] = sum(solved) / len(examples)
            emit("best of n", task=name, n=number, share=found[number])
    return found


def compare(name: str, seeds: list[int], further: list[str], skip: list[str]) -> None:
    """Prints what a task gains by its reward, and by the other ways."""
    rows = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write_rows(name, folder)
        for label, options in (
            ("es, reward alone", [*_BY_REWARD, *further]),
            ("backpropagation, right answers", _BY_GRADIENT),
        ):
            if label.split(",")[0] in skip:
                continue
            results = []
            for seed in seeds:
                results.append(result_of("train", *task_of(name, folder), *options, "--seed", str(seed)))
                emit("rewards", what=label, **results[-1])
            pairs = [(r["zero_shot"]["test"], r["test"]) for r in results]
            rewards = [spread([100 * pair[side]["value"] for pair in pairs]) for side in (0, 1)]
            right = [spread([100 * pair[side]["more"]["exact_match"] for pair in pairs]) for side in (0, 1)]
            seconds = [r["train_seconds"] + r["validation_seconds"] for r in results]
            peaks = [r["memory"]["mlx_peak_bytes"] / 1e6 for r in results]
            rows.append([label, *rewards, *right, spread(seconds, 0), spread(peaks, 0)])
        if "best" not in skip:
            counts = [1, 4, 16]
            for count, share in best_of(name, folder, counts).items():
                rows.append([f"base, best of {count} drawn", "", f"{100 * share:.1f}", "", "", "", ""])
    print()
    header = ["test reward before, %", "after, %", "the right answer before, %", "after, %"]
    table([name, *header, "training and validation, s", "peak, MB"], rows)


def speed(members: int = 16, prompts: int = 16) -> None:
    """Prints answers a second of a population in one batch and one member after the other, and how many agree."""
    prepare_mlx()
    from mlxzo.engine.distributed.communicator import members_at_once
    from mlxzo.engine.evaluation import Evaluator
    from mlxzo.engine.reward import open_judge
    from mlxzo.engine.session import open_session
    from mlxzo.zo.perturb import Direction

    with tempfile.TemporaryDirectory() as path:
        write_rows("orders", Path(path))
        options = [*task_of("orders", Path(path)), "--objective", "reward", "--batch-size", str(prompts)]
        config = config_of([*options, "--queries", str(members // 2)])
        # Nothing is judged here.
        with open_judge(config, False, events.ignore) as judge:
            session = replace(open_session(config, events.ignore), judge=judge)
    evaluator, examples = Evaluator(session), session.data.train[:prompts]
    scales = {name: session.trainable.scales.get(name, 1.0) for name in session.trainable.names}
    pairs = [Direction(0, 0, index, "sign", scales) for index in range(members // 2)]
    views = [session.causal.view(pair, eps) for pair in pairs for eps in (0.1, -0.1)]
    objective, size = evaluator.of_answers(), members_at_once(session.config)
    assert objective is not None, "the objective is a reward"
    objective.write(examples[:2], views[:2])
    began = time.perf_counter()
    together = [
        own for first in range(0, members, size) for own in objective.write(examples, views[first : first + size])
    ]
    middle = time.perf_counter()
    # As many answers in flight as without a population.
    session.shapes = replace(session.shapes, population=1)
    alone = [evaluator.write("train", examples, view=view) for view in views]
    end = time.perf_counter()
    count = members * prompts
    pairs_of_answers = [pair for own in zip(together, alone, strict=True) for pair in zip(*own, strict=True)]
    agree = sum(a == b for a, b in pairs_of_answers)
    emit("speed", members=members, prompts=prompts, together=count / (middle - began), alone=count / (end - middle))
    print()
    table(
        [f"{members} members, {prompts} prompts", "answers a second"],
        [
            [f"in batches of {size} members", f"{count / (middle - began):.1f}"],
            ["one member after the other", f"{count / (end - middle):.1f}"],
            ["the same answers", f"{agree} of {count}"],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*MAKERS, "speed"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--skip", nargs="+", default=[], choices=["es", "backpropagation", "best"])
    arguments, further = parser.parse_known_args()
    emit("machine", **machine())
    if arguments.what == "speed":
        speed()
    else:
        compare(arguments.what, arguments.seeds, further, arguments.skip)


if __name__ == "__main__":
    sys.exit(main())
