"""What each scope trains: its names, and that MeZO on it is exact, touches nothing else and learns."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.engine.checkpoint_file import load_state, save_state
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.models.causal import CausalLM
from mlxzo.models.slots import parameter_slots, slot_of
from mlxzo.models.trainable import Trainable, prepare
from mlxzo.zo.perturb import Direction
from tests.engine.examples import BATCHES, parameters
from tests.engine.test_mezo import both_sides, direction, exact_derivative, loss, mezo, weights
from tests.tiny import tiny_config, tiny_model
from tests.variants import mostly_slow, slow

CASES = [
    ("llama", {}, "biases/last-2"),
    slow("llama", {}, "gains"),
    slow("llama", {"bits": 4}, "scales"),
    slow("llama", {"bits": 4, "tied": False}, "scales"),
    ("llama", {"bits": 4}, "scales/last-2"),
    slow("llama", {"bits": 4}, "biases+gains/last-1"),
    slow("llama", {"bits": 4}, "norms+lora+scales/last-2"),
    ("llama", {}, "match:*.mlp.down_proj.weight/last-2"),
    ("llama", {}, "lora+gains+norms/last-2"),
    slow("llama", {}, "biases+gains+match:*.v_proj.weight,model.norm.weight"),
    ("qwen3", {}, "norms+biases+gains"),
    ("gemma3", {}, "biases+gains/last-1"),
]
case = pytest.mark.parametrize(("kind", "options", "scope"), CASES)


def mezo_of(kind: str, options: dict, scope: str, **config) -> MeZO:
    """As `mezo`, with the quantised products computed as on the CPU, where MLX's own are slow."""
    return mezo(kind, options, scope=scope, compute_dtype=mx.float32 if "bits" in options else None, **config)


@cache
def untouched(kind: str, scope: str, **options) -> MeZO:
    """One method for all tests that leave its weights as they are."""
    return mezo_of(kind, options, scope)


def loss_of(method: MeZO, batch: str = "several") -> float:
    """The loss at the stored weights."""
    return loss(method, BATCHES[batch]())


def trained(method: MeZO) -> dict[str, mx.array]:
    return {name: method.causal.slots[name].get() for name in method.trainable.names}


def prepared(scope: str, kind: str = "llama", *, model: dict | None = None, **options) -> Trainable:
    return prepare(tiny_model(kind, **(model or {})), RunConfig(scope=scope, **options).resolved())


# Names


def test_scopes_name_what_they_say():
    def names(scope, **options):
        return set(prepared(scope, model=options).names)

    everything = {name for name, _ in tree_flatten(tiny_model().parameters())}
    assert names("full") == everything
    assert names("last-1") == {n for n in everything if n.startswith("model.layers.2.")}
    assert names("norms/last-1") == {
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.post_attention_layernorm.weight",
        "model.norm.weight",
    }
    adapters = names("lora/last-1")
    assert {n.split(".")[-1] for n in adapters} == {"lora_a", "lora_b"}
    assert {n.split(".")[4] for n in adapters} == {"q_proj", "v_proj"}
    assert len(names("lora")) == 3 * 4
    assert names("match:*.input_layernorm.*,*embed*") == {n for n in everything if "input_l" in n or "embed" in n}


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_small_scopes_have_the_same_names_in_every_architecture_quantised_or_not(kind, bits):
    model = {"bits": bits}
    assert prepared("biases", kind, model=model).names == tuple(
        f"model.layers.{i}.mlp.down_proj.bias" for i in range(3)
    )
    assert prepared("gains/last-1", kind, model=model).names == (
        "model.layers.2.mlp.gate_proj.gain",
        "model.layers.2.self_attn.v_proj.gain",
    )
    norms = {"llama": 2, "qwen3": 4, "gemma3": 6}[kind]
    assert len(prepared("norms/last-2", kind, model=model).names) == 2 * norms + 1
    if bits is None:
        assert len(prepared("match:*_proj.weight/last-2", kind, model=model).names) == 2 * 7


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_scales_are_those_of_all_quantised_weights_and_of_the_embedding_only_in_the_whole_model(kind):
    whole = prepared("scales", kind, model={"bits": 4}).names
    assert {n.split(".")[-1] for n in whole} == {"scales", "biases"}
    assert len(whole) == 2 * (3 * 7 + 1)
    last = prepared("scales/last-1", kind, model={"bits": 4}).names
    assert set(last) == {n for n in whole if n.startswith("model.layers.2.")}
    assert len(prepared("scales", kind, model={"bits": 4, "tied": False}).names) == 2 * (3 * 7 + 2)


def test_kinds_that_meet_on_one_layer_each_keep_their_parameters():
    names = prepared("lora+gains+biases+match:*.v_proj.weight,*layernorm.weight+norms/last-1", lora_targets="all").names
    layer = "model.layers.2."
    assert layer + "self_attn.v_proj.lora_a" in names
    assert layer + "self_attn.v_proj.linear.gain" in names
    assert layer + "self_attn.v_proj.linear.linear.weight" in names
    assert layer + "mlp.down_proj.linear.bias" in names
    # A norm that two kinds ask for trains once.
    assert sum("input_layernorm" in name for name in names) == 1
    assert len(names) == len(set(names)) == 7 * 2 + 2 + 1 + 1 + 3


def test_a_norm_that_is_matched_and_promoted_trains_as_the_promoted_one():
    method = mezo(options={"dtype": mx.bfloat16}, scope="match:*norm.weight+norms/last-1")
    assert {w.dtype for w in trained(method).values()} == {mx.float32}
    assert len(method.trainable.names) == 3


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("auto", {"q_proj", "v_proj"}),
        ("o_proj", {"o_proj"}),
        ("q_proj, v_proj,mlp.down_proj", {"q_proj", "v_proj", "down_proj"}),
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
@pytest.mark.parametrize("bits", [None, 4])
def test_lora_goes_where_its_targets_say(targets, layers, bits):
    names = prepared("lora/last-2", model={"bits": bits}, lora_targets=targets).names
    assert {name.split(".")[4] for name in names} == layers
    assert len(names) == 2 * 2 * len(layers)


# What is refused


@pytest.mark.parametrize(
    ("scope", "options", "words"),
    [
        ("last-4", {}, "the model has 3"),
        ("biases/last-4", {}, "the model has 3"),
        ("full", {"bits": 4}, "quantised"),
        ("last-1", {"bits": 4}, "quantised"),
        ("scales", {}, "this model is not quantised"),
        ("norms+scales/last-1", {}, "this model is not quantised"),
        ("match:*.down_prj.weight", {}, "fits no parameter"),
        ("match:*.mlp.down_proj.weight", {"bits": 4}, "those it fits are quantised"),
        ("match:model.layers.0.*/last-1", {}, "outside the layers of the scope"),
        ("match:*.weight,*.nothing", {}, "nothing fits no parameter"),
    ],
)
def test_scopes_that_do_not_suit_the_model_are_refused(scope, options, words):
    with pytest.raises(ConfigError, match=words):
        prepare(tiny_model(**options), dataclasses.replace(RunConfig(), scope=scope))


def test_a_pattern_that_fits_nothing_is_answered_with_names_near_to_it():
    with pytest.raises(ConfigError) as caught:
        prepared("match:model.layers.1.mlp.down_prj.weight")
    assert "model.layers.1.mlp.down_proj.weight" in caught.value.fix


@pytest.mark.parametrize("targets", ["query", "q_proj,nothing", "roj", ",", "q_proj,,v_proj"])
def test_lora_targets_that_are_not_there_are_refused_with_those_that_are(targets):
    with pytest.raises(ConfigError, match="no linear layer named") as caught:
        prepared("lora/last-2", lora_targets=targets)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in caught.value.fix


def test_experts_that_get_no_adapters_are_named():
    found = prepared("lora/last-1", "qwen3_moe", lora_targets="all")
    experts = "mlp.switch_mlp.down_proj, mlp.switch_mlp.gate_proj, mlp.switch_mlp.up_proj"
    assert found.remarks == (f"experts get no adapters: LoRA leaves out {experts}",)
    assert "model.layers.2.mlp.gate.lora_a" in found.names and not [name for name in found.names if "switch" in name]
    with pytest.raises(ConfigError, match=f"named 'up_proj' .the experts' {experts} take no adapters"):
        prepared("lora", "qwen3_moe", lora_targets="up_proj")
    assert prepared("lora", lora_targets="all").remarks == prepared("norms", "qwen3_moe").remarks == ()


def test_a_model_with_fused_projections_has_biases_and_adapters_but_no_gains():
    from mlx_lm.utils import _get_classes

    def phi3():
        config = tiny_config("llama") | {"model_type": "phi3"}
        model_class, arguments = _get_classes(config)
        return model_class(arguments.from_dict(config))

    with pytest.raises(ConfigError, match="no separate v_proj or gate_proj"):
        prepare(phi3(), RunConfig(scope="gains").resolved())
    assert len(prepare(phi3(), RunConfig(scope="biases").resolved()).names) == 3
    names = prepare(phi3(), RunConfig(scope="lora/last-1").resolved()).names
    assert {name.split(".")[4] for name in names} == {"qkv_proj"}


# Where training starts


@case
def test_every_scope_starts_exactly_where_the_base_model_is(kind, options, scope):
    method = untouched(kind, scope, **options)
    for batch, expected in base_losses(kind, **options).items():
        assert loss_of(method, batch) == pytest.approx(expected, abs=1e-6)


@cache
def base_losses(kind: str, **options) -> dict[str, float]:
    base = untouched(kind, "norms", **options)
    return {batch: loss_of(base, batch) for batch in BATCHES}


@pytest.mark.parametrize(
    ("bits", "compute_dtype"), [(None, None), slow(None, mx.float32), slow(4, None), (4, mx.float32)]
)
def test_half_precision_models_get_float32_parameters_and_keep_the_dtype_of_their_activations(bits, compute_dtype):
    options = {"dtype": mx.bfloat16, "bits": bits}
    method = mezo(options=options, scope="norms+lora+biases+gains/last-2", compute_dtype=compute_dtype)
    base = mezo(options=options, scope="lora/last-2", compute_dtype=compute_dtype)
    assert {w.dtype for w in trained(method).values()} == {mx.float32}
    logits = method.causal.logits(mx.array([[1, 2, 3]]), method.causal.view())
    assert logits.dtype == (compute_dtype or mx.bfloat16)
    assert loss_of(method) == pytest.approx(loss_of(base), abs=1e-6 if compute_dtype else 5e-2)
    plus, minus = both_sides(method, BATCHES["several"](), direction(method), method.config.eps)
    assert plus != minus


def test_scales_of_a_half_precision_model_stay_in_half_precision():
    method = mezo(options={"dtype": mx.bfloat16, "bits": 4}, scope="scales", compute_dtype=mx.float32)
    before = {name: w.astype(mx.float32) for name, w in trained(method).items()}
    for step in range(3):
        method.step(step, BATCHES["several"]())
    after = trained(method)
    assert {w.dtype for w in after.values()} == {mx.bfloat16}
    # Steps are below the resolution of bfloat16: stochastic rounding moves some of the scales.
    moved = [mx.mean(after[name] != before[name]).item() for name in before]
    assert 0.0 < np.mean(moved) < 0.9


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_bias_that_is_there_already_is_trained_from_its_value_in_float32(dtype):
    from mlx_lm.utils import _get_classes

    config = tiny_config("llama") | {"mlp_bias": True}
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    model.set_dtype(dtype)
    expected = [layer.mlp.down_proj.bias.astype(mx.float32) for layer in model.model.layers]
    x = mx.random.normal((1, 4, 128), key=mx.random.key(0)).astype(dtype)
    before = model.model.layers[2].mlp.down_proj(x)
    trainable = prepare(model, RunConfig(scope="biases").resolved())
    now = dict(tree_flatten(model.parameters()))
    assert len(trainable.names) == 3
    assert all(mx.array_equal(now[name], bias) for name, bias in zip(trainable.names, expected, strict=True))
    assert {now[name].dtype for name in trainable.names} == {mx.float32}
    after = model.model.layers[2].mlp.down_proj(x)
    assert after.dtype == dtype
    assert mx.allclose(after, before, rtol=2e-2, atol=1e-2 if dtype == mx.bfloat16 else 1e-5).item()


# Exactness


@case
@pytest.mark.parametrize("batch", [slow("single"), "several"])
def test_the_two_sided_difference_is_the_directional_derivative(kind, options, scope, batch):
    method, data = mezo_of(kind, options, scope, lr=1e-2 if "lora" in scope else None), BATCHES[batch]()
    if "lora" in scope:
        # At its start B is zero, so half of the derivative would vanish: move away from there.
        for step in range(3):
            method.step(step, data)
    z, eps = direction(method, 7), 0.3 * method.config.eps

    def difference(eps: float) -> float:
        plus, minus = both_sides(method, data, z, eps)
        return (plus - minus) / (2 * eps)

    # Richardson's extrapolation removes the error of order eps^2 that third derivatives cause.
    measured = (4 * difference(eps / 2) - difference(eps)) / 3
    exact = exact_derivative_dequantised if "scales" in scope else exact_derivative
    assert measured == pytest.approx(exact(method, data, z), rel=0.02, abs=2e-6 / eps)


def exact_derivative_dequantised(method: MeZO, batch, z: Direction) -> float:
    """As `exact_derivative`, for directions with scales in them, on the same model with its weights dequantised.

    MLX does not differentiate quantised products forwards. A dequantised weight is linear in its scales and offsets.
    """
    model = method.causal.model
    tangents = {name: z.scaled(name, weight.shape, 1.0) for name, weight in trained(method).items()}
    for path, module in [(path, m) for path, m in model.named_modules() if "scales" in m]:
        settings = {"group_size": module.group_size, "bits": module.bits}
        if f"{path}.scales" in tangents:
            along = tangents.pop(f"{path}.scales"), tangents.pop(f"{path}.biases")
            tangents[f"{path}.weight"] = mx.dequantize(module["weight"], *along, **settings)
        floating = nn.Embedding(1, 1) if isinstance(module, nn.QuantizedEmbedding) else nn.Linear(1, 1, bias=False)
        floating.weight = mx.dequantize(module["weight"], module["scales"], module["biases"], **settings)
        slot_of(model, path).set(floating)
    dequantised = SimpleNamespace(causal=SimpleNamespace(model=model, slots=parameter_slots(model)))
    along = SimpleNamespace(scales=tangents, scaled=lambda name, shape, factor: tangents[name])
    return exact_derivative(dequantised, batch, along)


@case
def test_evaluating_the_loss_leaves_every_weight_bit_as_it_was(kind, options, scope):
    method = untouched(kind, scope, **options)
    before = weights(method)
    arrays = {name: id(w) for name, w in parameters(method.causal).items()}
    for batch in BATCHES.values():
        both_sides(method, batch(), direction(method), 1e-2)
    after = weights(method)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    assert {name: id(w) for name, w in parameters(method.causal).items()} == arrays


@case
def test_a_step_moves_what_trains_along_z_and_nothing_else(kind, options, scope):
    method = mezo_of(kind, options, scope)
    before = {n: mx.array(w) for n, w in parameters(method.causal).items()}
    z = direction(method)
    method.step(0, BATCHES["several"]())
    factors = []
    for name, weight in parameters(method.causal).items():
        if name not in z.scales:
            assert mx.array_equal(weight, before[name]).item()
            continue
        along = z.scaled(name, weight.shape, 1.0)
        moved = weight - before[name]
        factors.append(((moved * along).sum() / (along * along).sum()).item())
        resolution = 1e-6 * (1.0 + mx.abs(before[name]).max().item())
        assert mx.abs(moved - factors[-1] * along).max().item() < resolution
    # One and the same number of z's in every tensor.
    assert np.ptp(factors) < 1e-2 * abs(np.mean(factors))
    assert np.mean(factors) != 0.0


@pytest.mark.parametrize("compute_dtype", [slow(None), mx.float32])
@pytest.mark.parametrize("scope", mostly_slow(["scales", "norms+lora+biases+gains+scales/last-2"], ["scales"]))
def test_quantised_models_give_the_same_losses_however_their_products_are_computed(scope, compute_dtype):
    method, native = (mezo(options={"bits": 4}, scope=scope, compute_dtype=d) for d in (compute_dtype, None))
    for batch in BATCHES.values():
        ours, theirs = (both_sides(m, batch(), direction(m), m.config.eps) for m in (method, native))
        assert ours == pytest.approx(theirs, abs=1e-5)


# Frozen layers, states, repetition, learning


@pytest.mark.parametrize(
    ("scope", "model", "frozen"),
    [
        ("full", {}, 0),
        ("last-1", {}, 2),
        ("norms/last-2", {}, 1),
        ("biases/last-1", {}, 2),
        ("gains", {}, 0),
        ("scales/last-2", {"bits": 4}, 1),
        ("scales", {"bits": 4}, 0),
        ("match:model.layers.1.*", {}, 1),
        ("match:model.layers.[12].*.v_proj.weight,model.norm.weight", {}, 1),
        ("match:model.norm.weight", {}, 3),
        ("norms/last-0", {}, 3),
        ("match:lm_head.weight", {"tied": False}, 3),
        ("match:model.embed_tokens.weight", {}, 0),
        ("norms+match:*.down_proj.weight/last-2", {}, 1),
    ],
)
def test_layers_before_everything_that_trains_are_frozen_and_their_output_does_not_change(scope, model, frozen):
    method = mezo_of("llama", model, scope)
    assert method.trainable.frozen_layers == frozen
    assert method.causal.splits
    batch = BATCHES["several"]()
    method.step(0, batch)
    tokens, view = mx.array([[5, 6, 7, 8]], mx.int32), method.causal.view()
    base = untouched("llama", scope, **model).causal
    if frozen:
        assert mx.array_equal(*[hidden_before(causal, tokens, frozen) for causal in (method.causal, base)]).item()
    assert not mx.array_equal(method.causal.logits(tokens, view), base.logits(tokens, view)).item()


@case
def test_a_saved_state_brings_every_trained_parameter_back(kind, options, scope, tmp_path):
    method = mezo_of(kind, options, scope)
    for step in range(2):
        method.step(step, BATCHES["several"]())
    save_state(tmp_path / "state.safetensors", trained(method))
    fresh = mezo_of(kind, options, scope)
    assert loss_of(fresh) != loss_of(method)
    load_state(tmp_path / "state.safetensors", fresh.causal.slots, fresh.trainable.names)
    assert loss_of(fresh) == loss_of(method)
    ours, theirs = weights(fresh), weights(method)
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs)


@case
def test_training_is_the_same_to_the_bit_when_repeated_and_whatever_the_global_seed(kind, options, scope):
    outcomes = []
    for global_seed in (1, 2):
        mx.random.seed(global_seed)
        method = mezo_of(kind, options, scope)
        for step in range(2):
            method.step(step, BATCHES["several"]())
        outcomes.append((method.scales, weights(method)))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(np.array_equal(outcomes[0][1][n], w) for n, w in outcomes[1][1].items())


def test_adapters_start_where_the_base_model_is_and_do_not_depend_on_global_random_state():
    values = []
    for global_seed in (5, 6):
        mx.random.seed(global_seed)
        method = mezo(scope="lora", seed=3, lora_targets="all")
        assert loss_of(method) == pytest.approx(loss_of(mezo(scope="full")), abs=1e-6)
        values.append({n: np.array(w) for n, w in trained(method).items()})
    assert all(np.array_equal(values[0][n], values[1][n]) for n in values[0])


@pytest.mark.parametrize(
    ("scope", "options", "lr", "steps"),
    [
        ("biases", {}, 0.3, 15),
        slow("gains", {}, 0.5, 60),
        slow("scales/last-2", {"bits": 4}, 1e-2, 60),
        slow("match:*.mlp.down_proj.weight", {}, 1e-3, 60),
        slow("norms+biases+gains", {}, 0.3, 60),
    ],
)
def test_training_lowers_the_loss(scope, options, lr, steps):
    method = mezo_of("llama", options, scope, lr=lr)
    batch = BATCHES["single"]()
    before = loss_of(method, "single")
    for step in range(steps):
        method.step(step, batch)
    assert loss_of(method, "single") < 0.9 * before


def hidden_before(causal: CausalLM, tokens: mx.array, layer: int) -> mx.array:
    """Input of a decoder layer, or after the last one its output, from the model's own forward pass."""
    seen = []

    class Recorder:
        def __getattr__(self, name):
            return getattr(kept, name)

        def __call__(self, x, *arguments, **named):
            out = kept(x, *arguments, **named)
            seen.append(out if layer == len(causal.layers) else x)
            return out

    number = min(layer, len(causal.layers) - 1)
    kept = causal.layers[number]
    causal.layers[number] = Recorder()
    causal.model(tokens)
    causal.layers[number] = kept
    return seen[0]


# Lengths of direction entries


def test_the_length_of_direction_entries_is_that_of_the_kind():
    scales = prepared("norms+biases+gains/last-1").scales
    assert {name.split(".")[-2]: length for name, length in scales.items()} == {
        "input_layernorm": 0.01,
        "post_attention_layernorm": 0.01,
        "norm": 0.05,
        "down_proj": 0.3,
        "v_proj": 0.05,
        "gate_proj": 0.05,
    }
    assert set(prepared("full").scales.values()) == set(prepared("lora").scales.values()) == {1.0}


def test_lengths_of_scales_are_the_rms_of_each_tensor_and_of_zeros_the_mean():
    model = tiny_model("llama", bits=4)
    symmetric = dict(model.named_modules())["model.layers.0.mlp.down_proj"]
    symmetric.biases = mx.zeros_like(symmetric.biases)
    found = prepare(model, RunConfig(scope="scales", estimator="spsa")).scales
    zeros, parameters = "model.layers.0.mlp.down_proj.biases", dict(tree_flatten(model.parameters()))
    squares = {name: np.square(np.array(parameters[name].astype(mx.float32), np.float64)) for name in found}
    rms = {name: np.sqrt(square.mean()) for name, square in squares.items() if name != zeros}
    assert found == pytest.approx({**rms, zeros: np.mean(list(rms.values()))}, rel=1e-5)


def test_in_a_sum_of_kinds_each_moves_as_fast_as_it_would_alone():
    for scope in ("norms+lora", "lora+norms"):
        run = RunConfig(scope=scope, estimator="spsa").resolved()
        lengths = prepared(scope).scales
        norms, lora = (
            lengths["model.layers.0.input_layernorm.weight"],
            lengths["model.layers.0.self_attn.q_proj.lora_a"],
        )
        assert run.lr * norms == pytest.approx(0.01 * RunConfig(scope="norms", estimator="spsa").resolved().lr)
        assert run.lr * lora == pytest.approx(RunConfig(scope="lora", estimator="spsa").resolved().lr)
