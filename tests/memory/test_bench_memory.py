"""The memory benchmark measures a cell in a process of its own, near what is predicted for it."""

import pytest

from bench.memory import Cell, measure_in_child
from tests.tiny import tiny_folder
from tests.variants import mostly_slow


@pytest.mark.parametrize("method", mostly_slow(["mezo", "bp"], ["mezo"]))
def test_a_cell_is_measured_near_its_prediction(tmp_path, method):
    cell = Cell(str(tiny_folder(tmp_path / "tiny")), method, "full", batch_size=2, tokens=16)
    figures = measure_in_child(cell)
    assert 0 < figures["active_bytes"] <= figures["peak_bytes"] < figures["footprint_bytes"]
    # Of a model this small, nearly all is the runtime's.
    assert figures["footprint_bytes"] == pytest.approx(cell.predict().footprint_bytes, rel=0.3)
