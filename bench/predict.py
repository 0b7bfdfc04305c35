"""`mlxzo predict` on a long table: rows per second beside a plain loop of forward passes, and memory by length.

    python -m bench.predict --rows 1000
    python -m bench.predict --model FOLDER --rows 10000

The rows are the messages of support_desk, over and over. The plain loop reads one row at a time with mlx-lm and
compares the logits of the label words; loading is in neither time. Peaks are those of whole processes, at a tenth of
the rows and at all of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

import mlx.core as mx
import mlx_lm
import numpy as np

from bench.report import emit, machine, table
from mlxzo.core.formatting import format_bytes
from mlxzo.models.resolve import resolve
from mlxzo.tasks.topics import SupportDesk

_DATA = Path(__file__).parents[1] / "mlxzo" / "tasks" / "data" / "support_desk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--plain-rows", type=int, default=300, help="rows of the plain loop")
    arguments = parser.parse_args()
    emit("machine", **machine())
    lines = [line for path in sorted(_DATA.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = list(islice(cycle(json.loads(line)["text"] for line in lines), arguments.rows))
    with tempfile.TemporaryDirectory() as folder:
        few = predicted(arguments.model, texts[: arguments.rows // 10], Path(folder) / "few.csv")
        many = predicted(arguments.model, texts, Path(folder) / "many.csv")
    plain, labels = plain_loop(arguments.model, texts[: arguments.plain_rows])
    same = np.mean([a == b for a, b in zip(labels, many["labels"], strict=False)])
    figures = {name: value for name, value in many.items() if name != "labels"}
    emit("predict", model=arguments.model, rows=arguments.rows, plain_rows_per_second=plain, same=same, **figures)
    print(f"\n{arguments.model}, {arguments.rows:,} rows; {100 * same:.1f} % of the plain loop's labels are the same")
    table(
        ["", "rows/s", "peak"],
        [
            [
                f"mlxzo predict, {arguments.rows // 10:,} rows",
                f"{few['rows_per_second']:.1f}",
                format_bytes(few["peak"]),
            ],
            [f"mlxzo predict, {arguments.rows:,} rows", f"{many['rows_per_second']:.1f}", format_bytes(many["peak"])],
            ["plain loop", f"{plain:.1f}", "not measured"],
        ],
    )


def predicted(model: str, texts: list[str], path: Path) -> dict:
    """Labels, rows per second and the peak of the process in bytes, of `mlxzo predict` on a table of these texts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    out = path.with_suffix(".out.csv")
    command = [sys.executable, "-m", "mlxzo", "predict", "--model", model, "--task", "support_desk", str(path)]
    with subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said)
    with out.open(newline="", encoding="utf-8") as file:
        labels = [row["predicted_label"] for row in csv.DictReader(file)]
    assert len(labels) == len(texts)
    # `1,000 rows labelled in 12.3 s (81.3 rows/s)`
    rate = float(said.rpartition(" rows/s)")[0].rpartition("(")[2].replace(",", ""))
    return {
        "labels": labels,
        "rows_per_second": rate,
        "peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def plain_loop(model: str, texts: list[str]) -> tuple[float, list[str]]:
    """Rows per second and labels of one forward pass a row."""
    loaded, tokenizer = mlx_lm.load(str(resolve(model).path))[:2]
    task = SupportDesk()
    words = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in task.labels]
    found, began = [], time.perf_counter()
    for text in texts:
        logits = loaded(mx.array([tokenizer.encode(task.prompt({"text": text}))]))[0, -1]
        found.append(task.classes[int(mx.argmax(logits[mx.array(words)]).item())].text)
    return len(texts) / (time.perf_counter() - began), found


if __name__ == "__main__":
    main()
