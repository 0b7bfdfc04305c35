"""The wheel carries the files that a run and a type checker need beside the code."""

import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_of_a_report_is_data_of_its_package():
    files = {path.name for path in resources.files("mlxzo.experiments.report").iterdir()}
    assert {"page.html", "page.css"} <= files


@pytest.mark.slow
@pytest.mark.variant
def test_models_and_the_embedded_task_travel_in_the_wheel(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("mlxzo-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"mlxzo/models.yaml", "mlxzo/py.typed", "tui/py.typed"} <= set(names)
    data = ROOT / "mlxzo" / "tasks" / "data"
    expected = {f"mlxzo/tasks/data/{path.relative_to(data)}" for path in data.rglob("*") if path.is_file()}
    assert expected and expected <= set(names)
    assert {"mlxzo/experiments/report/page.html", "mlxzo/experiments/report/page.css"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "bench"))]
