"""What every benchmark prints: the machine, its figures as JSON lines, and a table for people."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from mlxzo import __version__
from mlxzo.runtime.doctor import package_versions


def machine() -> dict[str, Any]:
    """Where the figures were taken."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "mlxzo": __version__,
        "packages": package_versions(),
    }


def result_of(*arguments: str) -> dict[str, Any]:
    """The result of one `mlxzo ARGUMENTS --json` that makes a run, exactly as a user would; the run is not kept.

    Raises:
        CalledProcessError: the command failed; its progress and its words went to our stderr.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "mlxzo", *arguments, "--out", out, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    result.pop("run")
    return result


def emit(figure: str, **values: Any) -> None:
    """One JSON line."""
    print(json.dumps({"figure": figure, **values}), flush=True)


def table(header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def spread(values: list[float], digits: int = 1) -> str:
    """`mean (lowest - highest)`."""
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"
