"""What is in place before MLX is imported, in every process that computes."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import mlx.core as mx
import pytest

import mlxzo
from mlxzo.core.child_process import worker_environment
from mlxzo.core.mlx_startup import VARIABLES, prepare_mlx, variables
from mlxzo.memory.mlx_limits import start_mlx
from mlxzo.memory.sizes import uncapped_cache_bytes

ROOT = Path(mlxzo.__file__).parent


@pytest.fixture
def fresh_process(monkeypatch):
    """The variables of a process that has not prepared MLX."""
    for name in VARIABLES:
        # So that they are as before after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_full_precision_and_no_watchdog_unless_the_user_says_otherwise(fresh_process, monkeypatch):
    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "0")
    prepare_mlx()
    assert variables() == {"MLX_ENABLE_TF32": "0", "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "0"}


def test_a_process_without_mlx_passes_the_variables_on(fresh_process):
    assert worker_environment().items() >= VARIABLES.items()
    assert "MLX_ENABLE_TF32" not in os.environ


def imported(file: Path) -> set[Path]:
    """The modules of the package that a file imports, anywhere in it, as files; `mlx` as its own name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "mlx" for alias in node.names):
            found.add(Path("mlx"))
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [folder / f"{alias.name}.py" for alias in node.names]
            found |= {path for path in (folder.with_suffix(".py"), folder / "__init__.py", *names) if path.is_file()}
    return found


def test_every_program_that_computes_prepares_mlx():
    computes = {file for folder in ("engine", "models", "zo") for file in (ROOT / folder).rglob("*.py")}
    computes = {file for file in computes if "\nimport mlx" in file.read_text(encoding="utf-8")} | {Path("mlx")}
    texts = {file: file.read_text(encoding="utf-8") for file in ROOT.rglob("*.py")}
    programs = {file for file, text in texts.items() if file.parent.name == "commands" or "__main__" in text}
    computing = {file for file in programs if imported(file) & computes}
    assert ROOT / "runtime" / "worker.py" in computing
    loading = {file for file in computing if "start_mlx()" in texts[file]}
    preparing = {file.name for file in computing - loading if "prepare_mlx()" in texts[file]}
    assert len(loading) + len(preparing) == len(computing)
    # These load no model; the worker bounds MLX's cache by its memory cap (see `hold_to_cap`).
    assert preparing == {"doctor.py", "step_time.py", "tasks.py", "worker.py"}


def test_a_process_that_loads_a_model_bounds_the_cache_of_freed_buffers():
    # MLX tells its limit when another one is set.
    expected = uncapped_cache_bytes(on_cpu=mx.default_device() == mx.Device(mx.cpu))
    mx.set_cache_limit(1 << 40)
    start_mlx()
    assert mx.set_cache_limit(expected) == expected
