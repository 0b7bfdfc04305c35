"""The closed form of the largest models beside a search over the estimate's own components."""

import pytest

from bench.theory import Family, Setting, backpropagation, largest_ratio, mezo
from mlxzo.core.config import RunConfig
from mlxzo.memory.estimate import Predictor
from mlxzo.memory.sizes import Data, Settings
from mlxzo.models.architecture import ModelShape

FAMILY = Family(aspect=64, mlp_ratio=3.0, head_dim=64)


def member(layers):
    width = 64 * layers
    return ModelShape("", "llama", layers, width, 3 * width, layers, layers, 64, 1, True, dtype="bfloat16")


def search(cap, setting, method):
    """Parameters of the largest member of the family under `cap`, by its components as `mlxzo plan` has them."""
    options = {"optimizer": setting.optimizer, "lr": 1e-3, "checkpointing": "on" if setting.checkpointing else "off"}
    config = RunConfig(method=method, scope="full", batch_size=setting.tokens // setting.context, **options)
    data = Data.uniform(setting.context, config.batch_size, 0)

    def taken(layers):
        shape = member(layers)
        predicted = Predictor(shape, config, data, on_cpu=False).estimate(Settings.of(config, on_cpu=False))
        return predicted.peak_bytes - predicted.bytes_of("transient")

    low, high = 1, 2
    while taken(high) <= cap:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) <= cap else (low, middle)
    # Between two whole numbers of layers, where the cap is met.
    below, above = taken(low), taken(low + 1)
    layers = low + (cap - below) / (above - below)
    return FAMILY.parameters_a_width * layers * (64 * layers) ** 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("tokens", "context"), [(1024, 512), (8192, 2048)])
def test_the_closed_form_is_what_a_search_finds(tokens, context, optimizer, checkpointing):
    setting = Setting(tokens, context, "bfloat16", optimizer, checkpointing)
    cap = 4e12
    searched = search(cap, setting, "mezo") / search(cap, setting, "bp")
    assert largest_ratio(cap, setting, FAMILY) == pytest.approx(searched, rel=0.02)


def test_cardano_inverts_the_cubic():
    for law in (mezo(Setting(8192, 2048)), *backpropagation(Setting(8192, 2048))):
        for cap in (1e8, 1e10, 1e13):
            assert law.bytes(law.largest(cap)) == pytest.approx(cap, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "optimizer", "limit"), [("bfloat16", "adam", 6), ("float32", "adam", 4), ("bfloat16", "sgd", 2)]
)
def test_with_a_large_cap_only_bytes_a_weight_count(dtype, optimizer, limit):
    assert largest_ratio(1e16, Setting(512, 512, dtype, optimizer)) == pytest.approx(limit, rel=0.01)


def test_long_context_favours_mezo_and_checkpointing_and_adapters_do_not():
    cap = 16e9
    short, long = Setting(512, 512, checkpointing=True), Setting(8192, 8192, checkpointing=True)
    assert largest_ratio(cap, long) > 1.5 * largest_ratio(cap, short)
    assert largest_ratio(cap, Setting(8192, 2048)) > largest_ratio(cap, Setting(8192, 2048, checkpointing=True))
    assert 1 < largest_ratio(cap, Setting(512, 512, checkpointing=True, adapters=True)) < 1.1
