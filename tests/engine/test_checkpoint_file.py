"""Saved states: what is damaged is never taken for what was saved."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxzo.core.errors import ModelError
from mlxzo.engine.checkpoint_file import load_state, save_state
from mlxzo.models.slots import Slot


def slots(parameters):
    holder = dict(parameters)
    return {name: Slot(holder, name) for name in holder}


PARAMETERS = {"a": mx.arange(12, dtype=mx.float32).reshape(3, 4), "b": mx.ones((5,), mx.bfloat16)}


def test_a_state_brings_back_its_parameters_and_its_step(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, PARAMETERS, step=17)
    places = slots({name: mx.zeros_like(value) for name, value in PARAMETERS.items()})
    assert load_state(path, places, ("a", "b")) == 17
    assert all(mx.array_equal(places[name].get(), value).item() for name, value in PARAMETERS.items())


def test_a_changed_bit_in_any_byte_is_detected(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, PARAMETERS, step=17)
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        places = slots(PARAMETERS)
        with pytest.raises(ModelError, match=r"state\.safetensors"):
            load_state(path, places, ("a", "b"))
        assert all(places[name].get() is value for name, value in PARAMETERS.items())


def test_no_parameter_is_held_twice_while_a_state_is_loaded(tmp_path):
    path, big = tmp_path / "state.safetensors", {str(i): mx.full((500_000,), float(i)) for i in range(10)}
    mx.eval(list(big.values()))
    save_state(path, big)
    places = slots({name: mx.zeros((500_000,)) for name in big})
    mx.eval([slot.get() for slot in places.values()])
    del big
    mx.clear_cache()
    resting = mx.get_active_memory()
    mx.reset_peak_memory()
    load_state(path, places, tuple(places))
    assert mx.get_peak_memory() - resting <= 2_100_000
    assert all(mx.all(places[str(i)].get() == i).item() for i in range(10))
