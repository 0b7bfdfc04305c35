"""Fitting a run to a cap: the largest micro-batch that is predicted to stay under it, or what would fit instead."""

import dataclasses
import re

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import DoesNotFit
from mlxzo.memory.estimate import Predictor
from mlxzo.memory.plan import alternatives, fit, fit_own_cap, least_cache, needed_bytes, smallest
from mlxzo.memory.plan_table import WAYS, PlanRow, largest, largest_probe, recommend, table
from mlxzo.memory.sizes import Data, Settings, uncapped_cache_bytes
from mlxzo.models.registry import find, load_registry
from mlxzo.models.resolve import shape_of_entry

pytestmark = pytest.mark.device

SHAPE = shape_of_entry(find("smollm2-360m"))
DATA = Data.uniform(256)


def config(**options):
    return RunConfig(**{"model": SHAPE.name, "batch_size": 16, **options}).resolved()


def needs(settled):
    """The least cap for the settings of a fit, with the smallest cache of freed buffers."""
    settings = dataclasses.replace(Settings.of(settled, on_cpu=False), cache_limit_bytes=least_cache(on_cpu=False))
    return needed_bytes(Predictor(SHAPE, settled, DATA, on_cpu=False).estimate(settings))


@pytest.mark.parametrize("options", [{"method": "bp", "scope": "lora"}, {"method": "bp", "scope": "full"}])
def test_the_micro_batch_is_the_largest_that_fits(options):
    full = needs(config(**options))
    least = needed_bytes(smallest(Predictor(SHAPE, config(**options), DATA, on_cpu=False)))
    for cap in range(least, full, (full - least) // 7):
        found = fit(config(**options), SHAPE, DATA, cap, on_cpu=False)
        assert needed_bytes(found.estimate) <= cap + 2
        rows = found.config.micro_batch
        if rows is not None:
            assert needs(found.config) <= cap < needs(dataclasses.replace(found.config, micro_batch=rows + 1))


def test_a_larger_cap_never_gives_a_smaller_micro_batch():
    options = {"method": "bp", "scope": "lora", "checkpointing": "off"}
    rows = []
    for cap in range(900_000_000, 12_000_000_000, 300_000_000):
        try:
            rows.append(fit(config(**options), SHAPE, DATA, cap, on_cpu=False).estimate.micro_batch_rows)
        except DoesNotFit:
            rows.append(0)
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (0, 16)


def test_checkpointing_comes_before_tiny_micro_batches():
    auto = config(method="bp", scope="lora")
    room = needs(dataclasses.replace(auto, checkpointing="off"))
    assert fit(auto, SHAPE, DATA, room, on_cpu=False).config.checkpointing == "off"
    tight = needs(dataclasses.replace(auto, checkpointing="off", micro_batch=1))
    found = fit(auto, SHAPE, DATA, tight, on_cpu=False)
    assert found.config.checkpointing == "on"
    assert found.estimate.micro_batch_rows > 1
    assert "gradient checkpointing" in found.notes


def test_the_activation_cache_gives_way():
    scope = config(scope="norms/last-6", steps=1000)
    with_cache = fit(scope, SHAPE, DATA, 16_000_000_000, on_cpu=False)
    assert with_cache.config.activation_cache == "ram"
    cache = with_cache.estimate.bytes_of("activation cache")
    assert cache == 2 * SHAPE.hidden * 1200 * 256
    tight = needed_bytes(with_cache.estimate) - with_cache.estimate.cache_limit_bytes - cache // 2
    without = fit(scope, SHAPE, DATA, tight, on_cpu=False).config
    assert (without.activation_cache, without.micro_batch) == ("off", None)


def test_a_ridge_probe_takes_the_memory_of_a_forward_pass():
    run = config(estimator="spsa", scope="full")
    predictor = Predictor(SHAPE, run, DATA, on_cpu=False)
    training, probe = predictor.estimate(Settings.of(run, on_cpu=False)), predictor.evaluation()
    assert SHAPE.weight_bytes("auto") < probe.peak_bytes <= training.peak_bytes
    small = shape_of_entry(find("smollm2-135m"))
    rooms = (probe.footprint_bytes, probe.footprint_bytes - 1, small.weight_bytes("auto"))
    found = [largest_probe([small, SHAPE], run, DATA, room, on_cpu=False) for room in rooms]
    assert [each and each.model for each in found] == [SHAPE.name, small.name, None]


def test_what_the_user_chose_stays():
    chosen = config(method="bp", scope="lora", checkpointing="off", micro_batch=2, activation_cache="off")
    assert fit(chosen, SHAPE, DATA, 64_000_000_000, on_cpu=False).config == chosen


def test_only_the_micro_batch_of_a_mezo_run_depends_on_the_cap():
    run = config(scope="full")
    wide = fit(run, SHAPE, DATA, 8_000_000_000, on_cpu=False)
    narrow = fit(run, SHAPE, DATA, needs(run) - 50_000_000, on_cpu=False)
    assert narrow.config.micro_batch is not None
    assert dataclasses.replace(narrow.config, micro_batch=wide.config.micro_batch) == wide.config


def test_a_run_without_a_cap_is_left_as_it_is():
    run = config(method="bp", scope="lora")
    found = fit_own_cap(run, SHAPE, DATA)
    assert found.config == dataclasses.replace(run, checkpointing="off")
    assert (found.cap_bytes, found.cache_limit_bytes) == (None, None)
    assert fit_own_cap(config(memory_cap="8GB"), SHAPE, DATA).cap_bytes == 8_000_000_000


def test_what_does_not_fit_is_told_with_its_components_and_what_would():
    run = config(method="bp", scope="full")
    with pytest.raises(DoesNotFit) as caught:
        fit(run, SHAPE, DATA, 1_500_000_000, on_cpu=False)
    error = caught.value
    assert error.exit_code == 3
    assert "smollm2-360m with backpropagation on full needs a cap of" in error.message
    table = "\n".join(error.details)
    for name in ("weights", "optimiser state", "gradients", "runtime", "margin"):
        assert name in table
    assert "--scope lora" in error.fix
    # Each of the ways does fit.
    cap = float(re.search(r"--memory-cap ([0-9.]+)GB", error.fix)[1]) * 1e9
    assert fit(run, SHAPE, DATA, int(cap), on_cpu=False)
    assert fit(config(method="bp", scope="lora"), SHAPE, DATA, 1_500_000_000, on_cpu=False)
    assert fit(config(method="mezo", scope="full"), SHAPE, DATA, 1_500_000_000, on_cpu=False)


def test_a_smaller_model_is_named_where_only_that_helps():
    large = shape_of_entry(find("qwen3-8b"))
    ways = alternatives(Predictor(large, config(scope="full"), DATA, on_cpu=False), 4_000_000_000)
    assert next(iter(ways)) == "model"
    smaller = shape_of_entry(find(ways["model"]))
    assert smaller.parameters < large.parameters
    assert fit(config(scope="full"), smaller, DATA, 4_000_000_000, on_cpu=False)


def test_a_cap_below_the_process_itself_is_said_to_be_so():
    with pytest.raises(DoesNotFit, match="below what Python, MLX and the tokenizer alone take"):
        fit(config(), SHAPE, DATA, 50_000_000, on_cpu=False)


def rows_under(cap):
    shapes = [shape_of_entry(entry) for entry in load_registry().values()]
    return table(shapes, RunConfig(batch_size=16), Data.uniform(512), cap, on_cpu=False)


def test_the_largest_model_of_each_way_fits_and_the_next_does_not():
    rows = rows_under(8_000_000_000)
    for name, row in largest(rows).items():
        assert row.footprint_bytes < 8_000_000_000
        assert not any(r.fits for r in rows if r.way.name == name and r.parameters > row.parameters)
    assert {row.way for row in rows} == set(WAYS)


def row(model, parameters, way, fits):
    way = next(w for w in WAYS if w.name == way)
    return PlanRow(model, parameters, "bfloat16", False, way, fits, 10**9, 10**9, 1, None, ())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", 1, "MeZO full", True), ("a", 1, "BP LoRA, checkpointing", True)], "a with BP LoRA, checkpointing"),
        ([("a", 1, "BP LoRA, checkpointing", True), ("a", 1, "BP LoRA", True)], "a with BP LoRA (1.0 GB)"),
        ([("b", 2, "MeZO full", True), ("a", 1, "BP LoRA", True)], "b with MeZO full (1.0 GB), which is larger"),
        ([("b", 2, "MeZO full", True), ("b", 2, "BP LoRA", True), ("a", 1, "BP full", True)], "MeZO fits b, and"),
        ([("a", 1, "MeZO full", True), ("a", 1, "BP LoRA", False)], "backpropagation fits no model"),
        ([("a", 1, "MeZO full", False), ("b", 2, "BP LoRA", False)], "Nothing fits under 1.0 GB"),
    ],
)
def test_backpropagation_is_recommended_wherever_it_is_the_better_choice(rows, said):
    assert said in recommend([row(*r) for r in rows], 10**9)


def test_the_cache_of_freed_buffers_is_bounded_on_a_gpu_with_and_without_a_cap(mac):
    mac.set_memory(16 << 30)
    assert uncapped_cache_bytes(on_cpu=False) == (16 << 30) // 20
    assert uncapped_cache_bytes(on_cpu=True) == 32 << 20
    free = fit_own_cap(config(scope="full"), SHAPE, DATA, on_cpu=False)
    assert free.estimate.bytes_of("buffer cache") == uncapped_cache_bytes(on_cpu=False)
    tight = needs(config(scope="full"))
    assert (
        fit(config(scope="full"), SHAPE, DATA, tight, on_cpu=False).cache_limit_bytes >= least_cache(on_cpu=False) > 0
    )
    # On a CPU it may go, as before.
    assert least_cache(on_cpu=True) == 0


def test_a_cap_above_what_the_gpu_of_a_mac_can_hold_is_told(mac):
    run = config(scope="full", micro_batch=1)
    assert "lets the GPU hold" not in str(fit(run, SHAPE, DATA, 10 << 30, on_cpu=False).notes)
    assert "above the 11.5 GB that macOS lets the GPU hold" in str(fit(run, SHAPE, DATA, 12 << 30, on_cpu=False).notes)
    mac.sysctl["iogpu.wired_limit_mb"] = 13 << 10
    assert "lets the GPU hold" not in str(fit(run, SHAPE, DATA, 12 << 30, on_cpu=False).notes)
