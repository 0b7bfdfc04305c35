"""The estimate beside what it predicts: scopes of real models, micro-batches of a run, and MLX's own counters."""

from dataclasses import replace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlxzo.zo.inplace
from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.batching import Shapes, cut, make_batch
from mlxzo.engine.encoding import EncodedExample, Row, encode
from mlxzo.engine.methods import make_method
from mlxzo.engine.scoring import Scorer
from mlxzo.memory.estimate import CHUNK_BYTES, HALF_PRECISION_CHUNK_BYTES, Predictor, estimate
from mlxzo.memory.plan import fit, needed_bytes, smallest
from mlxzo.memory.sizes import Data, ExampleSize, Settings
from mlxzo.memory.trainable_sizes import trained
from mlxzo.models import streams
from mlxzo.models.architecture import of_config
from mlxzo.models.causal import CausalLM
from mlxzo.models.registry import find
from mlxzo.models.resolve import shape_of_entry
from mlxzo.models.slots import parameter_slots
from mlxzo.models.trainable import prepare
from tests.engine.examples import TOKENIZER, completion_examples, several_token_examples, single_token_examples
from tests.tiny import ARCHITECTURES, tiny_config, tiny_model
from tests.variants import slow

pytestmark = pytest.mark.device

SMALL = shape_of_entry(find("smollm2-360m"))


def test_chunks_are_those_of_the_engine():
    assert CHUNK_BYTES == mlxzo.zo.inplace.CHUNK_BYTES
    assert HALF_PRECISION_CHUNK_BYTES == mlxzo.zo.inplace.HALF_PRECISION_CHUNK_BYTES


SCOPES = ("full", "last-1", "lora", "lora/last-2", "norms", "norms/last-1", "norms/last-0", "biases/last-2", "gains")


@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        *((kind, scope) for kind in ("llama", "gemma3") for scope in SCOPES),
        *((kind, scope) for kind in ("gemma4", "lfm2") for scope in ("full", "lora", "norms/last-1", "norms/last-0")),
        *(slow(kind, scope) for kind in ARCHITECTURES for scope in ("last-1", "lora/last-2", "norms")),
        *(slow(kind, scope) for kind in ("gemma4", "lfm2", "qwen3_5") for scope in ("biases/last-2", "gains/last-3")),
        *(("llama", scope) for scope in ("norms+lora/last-1", "match:*.q_proj.*,model.norm.*", "match:*.norm.weight")),
    ],
)
def test_what_a_scope_trains_is_what_it_trains_of_the_loaded_model(kind, scope):
    config = RunConfig(scope=scope, lora_rank=4)
    model = tiny_model(kind, dtype=mx.bfloat16)
    before = sum(p.nbytes for _, p in tree_flatten(model.parameters()))
    real = prepare(model, config)
    slots = parameter_slots(model)
    after = sum(slot.get().nbytes for slot in slots.values())

    found = trained(of_config(tiny_config(kind, dtype="bfloat16"), "tiny"), config)
    assert found.numbers == sum(slots[name].get().size for name in real.names)
    assert found.bytes == sum(slots[name].get().nbytes for name in real.names)
    assert found.frozen_layers == real.frozen_layers
    assert found.added_bytes == after - before


@pytest.mark.parametrize(
    ("kind", "scope"), [("llama", "full"), ("llama", "last-1"), ("gemma4", "last-2"), ("gemma4", "norms/last-0")]
)
def test_what_frozen_layers_give_is_predicted_as_it_is_kept(kind, scope):
    config, examples = RunConfig(scope=scope).resolved(), single_token_examples() + completion_examples()
    encoded = tuple(encode(example, TOKENIZER, 64) for example in examples)
    scorer = Scorer(CausalLM(tiny_model(kind)), prepare(tiny_model(kind), config).frozen_layers, ActivationCache())
    scorer.prefix(make_batch(encoded, Shapes()))
    found = Predictor(of_config(tiny_config(kind), "tiny"), config, Data(encoded, ()), on_cpu=True)
    assert found.prefix_bytes == scorer.cache.nbytes


def test_passes_through_frozen_layers_are_predicted_as_a_gpu_makes_them(monkeypatch):
    causal = CausalLM(tiny_model())
    config, gpu = RunConfig(scope="last-1", batch_size=50), Shapes.suited(on_cpu=False)
    rows = [Row(tuple(range(3, 3 + length)), length - 1) for length in (*range(20, 64, 2), 130, 131, 132, 133, 300)]
    encoded = [EncodedExample((row,), ((0, row.first_position),) * 2, ((5,), (6,)), 0, truncated=False) for row in rows]
    scorer = Scorer(causal, 2, shapes=gpu)
    # The trial of a shape is no pass of the step.
    monkeypatch.setattr(scorer.frozen, "_is_place_invariant", lambda rows, length: True)
    passes, prefix = [], causal.prefix
    monkeypatch.setattr(causal, "prefix", lambda tokens, *rest: [passes.extend(tokens), prefix(tokens, *rest)][1])
    scorer.prefix(make_batch(encoded, gpu))
    predictor = Predictor(of_config(tiny_config("llama"), "tiny"), config, Data(tuple(encoded), ()), on_cpu=False)
    settings = Settings.of(config, on_cpu=False)
    found = predictor._frozen(predictor._micro(encoded, settings), settings)
    assert (found.parts, found.tokens) == (len(passes), sum(tokens.size for tokens in passes))
    assert (found.rows, found.length) in {tokens.shape for tokens in passes}


def written(config: RunConfig, on_cpu: bool = True, task_writes: bool = True) -> int:
    """Bytes of keys and values for prompts of 205 tokens, of which an answer of 6 is expected."""
    data = Data.uniform(210, scored=6, written=task_writes)
    return estimate(SMALL, config, data, on_cpu=on_cpu).bytes_of("keys and values")


def test_keys_and_values_of_answers_under_way_are_counted_where_answers_are_written():
    # 32 layers, 5 heads of 64 for keys and as many for values; 255 tokens with an answer of 50.
    a_row = 32 * 2 * 5 * 64 * 255
    norms = {"scope": "norms/last-6", "max_tokens": 512, "batch_size": 16}
    # 16 answers have some 4,096 tokens; one prompt more is what others begin with.
    assert written(RunConfig(**norms)) == 17 * a_row * 4
    # On a GPU in half precision, in some 8,192 tokens.
    assert written(RunConfig(**norms), on_cpu=False) == 33 * a_row * 2
    # Prompts are cut to leave room for the answer.
    assert written(RunConfig(**norms | {"max_tokens": 128})) == 33 * a_row * 4 * 128 // 255
    assert written(RunConfig(**norms | {"max_tokens": 128}, micro_batch=1)) == 17 * a_row * 4 * 128 // 255
    assert written(RunConfig(**norms), task_writes=False) == 0
    judged = RunConfig(**norms, objective="reward", reward_function="a:b", estimator="spsa")
    assert written(judged, task_writes=False) == 17 * a_row * 4
    # A population has four times as many answers in flight, and a beginning for each of 8 members; a cap bounds them.
    # It keeps each of its 16 prompts in the 26 of 32 layers that are frozen.
    population = replace(judged, estimator="es")
    assert written(population, task_writes=False) == (64 + 8 + 13) * a_row * 4
    assert written(replace(population, micro_batch=1), task_writes=False) == (16 + 8 + 13) * a_row * 4


def test_scales_of_a_quantised_model_train():
    model = tiny_model(bits=4)
    real = prepare(model, RunConfig(scope="scales/last-2"))
    slots = parameter_slots(model)
    config = tiny_config("llama") | {"quantization": {"bits": 4, "group_size": 32}}
    found = trained(of_config(config, "tiny"), RunConfig(scope="scales/last-2"))
    assert found.numbers == sum(slots[name].get().size for name in real.names)


def test_sizes_are_cut_as_the_examples_are():
    tasks = [*single_token_examples(), *several_token_examples(), *completion_examples()]
    examples = [encode(example, TOKENIZER, 64) for example in tasks]
    sizes = [ExampleSize(e.length, e.row_count, e.candidates, e.scored, e.shared) for e in examples]
    for shapes in (Shapes(8, 64), Shapes(8, 64, 1), Shapes(4, 16, 3)):
        assert cut(sizes, shapes) == make_batch(examples, shapes).places


def test_a_batch_of_more_examples_than_there_are_has_all_of_them():
    data = Data(tuple(ExampleSize(length) for length in (16, 48, 24, 40)), ())
    lengths = {size: sorted(one.length for one in data.largest_batch(size, 8)) for size in (2, 4, 9)}
    assert lengths == {2: [40, 48], 4: [16, 24, 40, 48], 9: [16, 24, 40, 48]}


def test_the_optimiser_and_the_gradients_of_full_backpropagation_follow_from_the_parameters():
    config = RunConfig(method="bp", scope="full", batch_size=1)
    parts = {c.name: c.bytes for c in estimate(SMALL, config, Data.uniform(64), on_cpu=False).components}
    assert parts["weights"] == parts["gradients"] == 2 * SMALL.parameters
    assert parts["optimiser state"] == 8 * SMALL.parameters
    plain = RunConfig(method="bp", scope="full", batch_size=1, optimizer="sgd", lr=0.1)
    assert "optimiser state" not in {c.name for c in estimate(SMALL, plain, Data.uniform(64)).components}


def test_mezo_takes_the_memory_of_a_forward_pass_and_backpropagation_more():
    data = Data.uniform(256, evaluated=4)
    peaks = {
        (method, checkpointing): estimate(
            SMALL,
            RunConfig(method=method, scope="lora", batch_size=16, checkpointing=checkpointing),
            data,
            on_cpu=False,
        ).peak_bytes
        for method, checkpointing in (("mezo", "off"), ("bp", "on"), ("bp", "off"))
    }
    assert peaks["mezo", "off"] <= peaks["bp", "on"] < peaks["bp", "off"]
    assert peaks["mezo", "off"] < 1.4 * SMALL.weight_bytes()


def test_attention_scores_count_where_they_are_made_whole():
    def scores(shape, on_cpu, method):
        config = RunConfig(method=method, scope="lora", batch_size=1)
        predicted = estimate(shape, config, Data.uniform(2048, 10, 1), on_cpu=on_cpu)
        return predicted.bytes_of("attention")

    gemma = shape_of_entry(find("gemma-3-1b"))
    assert scores(SMALL, True, "mezo") == 4 * SMALL.heads * 2048**2
    assert scores(SMALL, False, "mezo") == 0
    assert scores(gemma, False, "mezo") == 2 * gemma.heads * 2048**2  # heads of 256 have no fused kernel
    assert scores(SMALL, False, "bp") > SMALL.layers * 2 * SMALL.heads * 2048**2


@pytest.mark.parametrize(
    ("kind", "method", "scope"),
    [
        *(("llama", "mezo", "full"), ("llama", "bp", "full"), ("llama", "bp", "lora"), ("gemma4", "bp", "lora")),
        *(slow(kind, *run) for kind in ARCHITECTURES for run in (("mezo", "norms"), ("bp", "full"))),
    ],
)
def test_a_step_peaks_where_it_is_predicted_to(kind, method, scope, monkeypatch):
    """On a tiny model: what is alive beside the weights, within a third (bench/memory.py measures real ones)."""
    size = {"hidden": 256} | ({"layers": 4} if kind == "llama" else {})
    # The peak of a step of RSGN is that of any number of directions.
    few = {"queries": 4} if method == "mezo" else {}
    config = RunConfig(method=method, scope=scope, batch_size=4, checkpointing="off", **few).resolved()
    model = tiny_model(kind, **size)
    trainable = prepare(model, config)
    causal = CausalLM(model, mx.float32)
    stepper = make_method(Scorer(causal, trainable.frozen_layers), trainable, config)
    row = Row(tuple(i % 500 for i in range(128)), 127)
    example = EncodedExample((row,), ((0, row.first_position),) * 2, ((5,), (6,)), 0, truncated=False)
    batch = make_batch([example] * 4, Shapes.suited(True))
    # With two threads, two micro-batches are computed at once. MLX's counters are the same where each product has one,
    # and threads that wait for a core of a busy machine would take most of the time.
    monkeypatch.setattr(streams, "blas_threads", lambda: 2)
    stepper.step(0, batch)
    mx.synchronize()
    resting = mx.get_active_memory()
    mx.reset_peak_memory()
    stepper.step(1, batch)
    measured = mx.get_peak_memory() - resting

    shape = of_config(tiny_config(kind, **size), "tiny")
    predicted = estimate(shape, config, Data.uniform(128, 4, 0), on_cpu=True)
    resident = predicted.bytes_of("weights", "adapters", "optimiser state")
    assert predicted.peak_bytes - resident == pytest.approx(measured, rel=0.33)


def test_the_losses_of_a_mezo_run_do_not_depend_on_its_cap():
    shape = of_config(tiny_config("llama", hidden=128), "tiny")
    run = RunConfig(scope="full", batch_size=8, seed=3, steps=3, lr=1e-4).resolved()
    examples = 2 * [encode(example, TOKENIZER, 64) for example in several_token_examples()[:4]]
    data = Data(tuple(examples) * 3, ())
    predictor = Predictor(shape, run, data, on_cpu=True)
    caps = (8_000_000_000, needed_bytes(smallest(predictor)))
    fits = [fit(run, shape, data, cap, on_cpu=True) for cap in caps]
    batches = [make_batch(examples, Shapes.suited(True, found.config.micro_batch)) for found in fits]
    assert len(batches[0].parts) < len(batches[1].parts)

    def losses(batch, config):
        model = tiny_model(hidden=128)
        trainable = prepare(model, config)
        method = make_method(Scorer(CausalLM(model, mx.float32)), trainable, config)
        return [method.step(step, batch).loss for step in range(3)]

    wide, narrow = (losses(batch, found.config) for batch, found in zip(batches, fits, strict=True))
    assert narrow == pytest.approx(wide, rel=1e-5)
