"""Deals the rows of an embedded task into training, validation and test, at random with every label in each.

python -m bench.split_rows TASK TRAIN VALIDATION TEST [FILE ...]

The pool is the rows of the files, or where none is named those that the task has now. Where a row goes depends on the
pool, not on the order of its rows: the same pool is dealt alike each time.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain, zip_longest
from pathlib import Path

import mlxzo.tasks
from mlxzo.tasks.sampling import sample

DATA = Path(mlxzo.tasks.__file__).parent / "data"
SPLITS = ("train", "validation", "test")

Row = dict[str, str]


def read(*files: Path) -> list[Row]:
    """The rows of JSON-lines files."""
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def stored(task: str) -> dict[str, list[Row]]:
    """The rows of an embedded task by split, as the package has them."""
    return {split: read(DATA / task / f"{split}.jsonl") for split in SPLITS}


def deal(rows: list[Row], sizes: tuple[int, ...], task: str) -> dict[str, list[Row]]:
    """Rows by split, those of each label in the order of a fixed permutation, labels by turns.

    Raises:
        ValueError: the sizes are not those of a partition of the rows.
    """
    if sum(sizes) != len(rows):
        raise ValueError(f"{len(rows)} rows cannot be dealt into {sizes}")
    pool = sorted(rows, key=lambda row: row["text"])
    labels = sorted({row["label"] for row in pool})
    of_label = [sample([row for row in pool if row["label"] == label], None, task, label) for label in labels]
    turns = iter([row for row in chain(*zip_longest(*of_label)) if row is not None])
    return {split: [next(turns) for _ in range(size)] for split, size in zip(SPLITS, sizes, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("sizes", type=int, nargs=3, metavar="SIZE", help="of training, validation and test")
    parser.add_argument("files", type=Path, nargs="*")
    arguments = parser.parse_args()
    folder = DATA / arguments.task
    rows = (
        read(*arguments.files) if arguments.files else [row for part in stored(arguments.task).values() for row in part]
    )
    folder.mkdir(exist_ok=True)
    for split, dealt in deal(rows, tuple(arguments.sizes), arguments.task).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in dealt]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
