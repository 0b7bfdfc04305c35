"""The memory a run will take, by component, from the figures of the model, the data and the options. Imports no MLX.

A run has phases: it loads, evaluates, takes steps, saves. Weights, adapters, the optimiser's state and a prefix cache
in memory are there throughout; beside them each phase has its own, and the peak is that of the phase that takes most.
Two figures come out, both in bytes:

    peak        what MLX's own counter (`mx.get_peak_memory`) shows at the end of the run
    footprint   what the operating system charges the process for (phys_footprint on macOS, RSS on Linux), at most:
                the runtime, the tokenizer, the peak, and the cache of freed buffers at its limit

Nearly everything is arithmetic over the model's figures. What is not is in `COEFFICIENTS`, each with its reason.

With B examples cut into micro-batches of R rows of T tokens (n = R T), N tokens in the batch, hidden width D, MLP width
F, query and key widths Q and K, H heads, and c bytes a number that is computed with:

    whole batch     3 N D c: what the embedding gave, what the last layer gave, what this layer gives. All micro-batches
                    of a batch pass one layer before any passes the next, so that its weights are made once.
    one layer       of one micro-batch: the larger of the MLP's c n (4 D + m F), m = 3 (gate, up, product; 4 where the
                    activation is not fused), and of the attention's c n (2 D + 3 Q + 3 K) + c R H T^2 of scores.
    backpropagation without checkpointing keeps all that its backward pass reads of every layer; with it the layers'
                    inputs, c n D each, and everything of one layer (Chen et al. 2016, arXiv 1604.06174).
    for comparison  Korthikanti et al. (arXiv 2205.05198) count n D (34 + 5 H T / D) bytes a layer in half precision,
                    for a GPT with dropout.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import metadata

from ..batching import SCORED_AT_ONCE, Shapes, Size, cut
from ..config import RunConfig
from .shape import DTYPE_BYTES, ModelShape, Tensor, shape_of

__all__ = [
    "COEFFICIENTS",
    "Component",
    "Data",
    "Estimate",
    "ExampleSize",
    "ModelShape",
    "Trained",
    "estimate",
    "runs_on_cpu",
    "shape_of",
    "trained",
]

# As in mlxzo.inplace, which imports MLX; a test holds them equal.
CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Coefficient:
    """A number that does not follow from the architecture, and where it comes from."""

    value: float
    why: str


COEFFICIENTS = {
    "runtime_bytes": Coefficient(
        100e6, "measured: Python, MLX, mlx-lm, NumPy, the tokenizers library and the BLAS's buffers, after loading"
    ),
    "tokenizer_bytes_a_word": Coefficient(
        500, "measured: what a tokenizer of 49,152 and one of 262,144 words keep, after freed memory is returned"
    ),
    "default_cache_bytes": Coefficient(
        32 * 2**20, "measured: MLX's own limit for its cache of freed buffers on the CPU, where a run sets none"
    ),
    "margin": Coefficient(0.05, "a run fits if its predicted footprint and this share of it stay under the cap"),
    "made_copies": Coefficient(
        3, "a matrix w + eps z is made of the words of z, of eps z and of the sum, all of its size as float32"
    ),
    "moved_copies": Coefficient(2, "an update holds a chunk of the weights and the chunk that replaces it"),
    "rounded_copies": Coefficient(
        16, "stochastic rounding holds some 16 arrays of a chunk's size; its chunks are smaller by a factor of 8"
    ),
    "head_copies": Coefficient(
        1.8, "reading the head holds a chunk of its rows, and part of the next one, which MLX begins before it is freed"
    ),
    "kept_norms": Coefficient(
        8,
        "widths D a token that a layer makes where its weights are stored as they are computed with, and MLX runs"
        " ahead: two or four norms, both outputs, both sums, and those of the next layer",
    ),
    "kept_heads": Coefficient(4, "widths Q and K a token made there: projected, rotated, attended, put back in order"),
    "score_copies": Coefficient(
        1, "scores [R, H, T, T] alive on the CPU, where attention is made of its parts; a GPU never makes them whole"
    ),
}


def coefficient(name: str) -> float:
    return COEFFICIENTS[name].value


@dataclass(frozen=True)
class Component:
    """One part of the predicted footprint: its name, its bytes, and what it is in words."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class ExampleSize:
    """An example as the memory sees it (a `batching.Size`): see `Size` for the fields."""

    length: int
    row_count: int = 1
    candidates: int = 2
    scored: int = 1
    shared: bool = True


@dataclass(frozen=True)
class Data:
    """The sizes of the examples that a run trains on, and of those that it evaluates on."""

    train: tuple[Size, ...]
    evaluated: tuple[Size, ...]

    @staticmethod
    def uniform(tokens: int, count: int = 1000, evaluated: int = 200, scored: int = 1) -> Data:
        """Examples of one length, with one answer token to choose among labels, or a completion of `scored` tokens."""
        one = ExampleSize(tokens, candidates=2 if scored == 1 else 1, scored=scored, shared=scored == 1)
        return Data((one,) * count, (one,) * evaluated)

    @property
    def longest(self) -> int:
        return max((size.length for size in (*self.train, *self.evaluated)), default=0)


@dataclass(frozen=True)
class Estimate:
    """What a run is predicted to take.

    Attributes:
        components: parts of the footprint, which is their sum.
        phase: the phase of the run that takes most, whose parts these are.
        phases: MLX's peak in each phase, in bytes.
        cache_limit_bytes: limit of MLX's cache of freed buffers.
        micro_batch_tokens: padded tokens of the largest micro-batch that trains.
    """

    components: tuple[Component, ...]
    phase: str
    phases: dict[str, int] = field(default_factory=dict)
    cache_limit_bytes: int = 0
    micro_batch_tokens: int = 0

    @property
    def footprint_bytes(self) -> int:
        return sum(component.bytes for component in self.components)

    @property
    def peak_bytes(self) -> int:
        """MLX's peak."""
        return sum(c.bytes for c in self.components if c.name not in _OUTSIDE)


# Components that MLX's counter of the peak does not see.
_OUTSIDE = ("runtime", "tokenizer", "buffer cache")


@dataclass(frozen=True)
class Trained:
    """What trains in a scope.

    Attributes:
        tensors: what trains, as (rows, columns) and bytes a number.
        added_bytes: of parameters that the scope adds, or keeps in float32 beside the stored ones.
        frozen_layers: the first layers that no trained parameter can change.
        embedding, head: whether these train.
    """

    tensors: tuple[tuple[Tensor, int], ...]
    added_bytes: int
    frozen_layers: int

    @property
    def numbers(self) -> int:
        return sum(tensor.size for tensor, _ in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.size * size for tensor, size in self.tensors)

    def has(self, name: str) -> bool:
        return any(tensor.name == name for tensor, _ in self.tensors)


def trained(shape: ModelShape, config: RunConfig) -> Trained:
    """What the scope of `config` trains of a model: as `models.scope.prepare` decides, from figures alone."""
    scope = config.parsed_scope
    first = max(0, shape.layers - (scope.last_layers or shape.layers))
    whole = scope.last_layers is None
    rest = DTYPE_BYTES[shape.dtype_at_rest(config.dtype)]
    chosen: dict[str, tuple[Tensor, int]] = {}
    added = 0
    inside = [t for t in shape.tensors if (whole if t.layer is None else t.layer >= first)]
    for kind in scope.kinds:
        if kind in ("full", "match"):
            fits = [t for t in inside if kind == "full" or any(fnmatchcase(t.name, glob) for glob in scope.globs)]
            new = [(t, rest) for t in fits if t.quantization is None]
        elif kind == "scales":
            new = [
                (Tensor(f"{t.path}.{leaf}", t.rows, t.columns // t.quantization.group_size, t.layer), rest)
                for t in inside
                if t.quantization is not None
                for leaf in ("scales", "biases")
            ]
        elif kind == "norms":
            norms = [t for t in shape.tensors if "norm" in t.name and (t.layer is None or t.layer >= first)]
            new = [(t, 4) for t in norms]
            added += sum((4 - rest) * t.size for t in norms)
        else:
            new = [(t, 4) for t in _ADAPTERS[kind](shape, config, first)]
            added += sum(4 * t.size for t, _ in new)
        for tensor, size in new:
            chosen.setdefault(tensor.name, (tensor, size))
    tensors = tuple(chosen.values())
    after = ("model.norm.", "lm_head.")
    numbers = [t.layer if t.layer is not None else shape.layers if t.name.startswith(after) else 0 for t, _ in tensors]
    return Trained(tensors, added, min([*numbers, shape.layers]))


def _lora(shape: ModelShape, config: RunConfig, first: int) -> Iterable[Tensor]:
    linears = [t for t in shape.tensors if t.layer is not None and t.layer >= first and t.rows > 1]
    targets = config.lora_targets
    if targets == "auto":
        names = ("qkv_proj",) if shape.fused else ("q_proj", "v_proj")
    else:
        names = tuple(name.strip() for name in targets.split(","))
    for linear in linears:
        if targets == "all" or linear.path.endswith(tuple(f".{name}" for name in names)):
            yield Tensor(f"{linear.path}.lora_a", linear.columns, config.lora_rank, linear.layer)
            yield Tensor(f"{linear.path}.lora_b", config.lora_rank, linear.rows, linear.layer)


def _biases(shape: ModelShape, config: RunConfig, first: int) -> Iterable[Tensor]:
    for layer in range(first, shape.layers):
        yield Tensor(f"model.layers.{layer}.mlp.down_proj.bias", 1, shape.hidden, layer)


def _gains(shape: ModelShape, config: RunConfig, first: int) -> Iterable[Tensor]:
    for layer in range(first, shape.layers):
        yield Tensor(f"model.layers.{layer}.self_attn.v_proj.gain", 1, shape.keys, layer)
        yield Tensor(f"model.layers.{layer}.mlp.gate_proj.gain", 1, shape.intermediate, layer)


_ADAPTERS = {"lora": _lora, "biases": _biases, "gains": _gains}


@functools.cache
def runs_on_cpu() -> bool:
    """Whether MLX computes on this machine's CPU: not on Apple Silicon, nor where the CUDA backend is installed."""
    if sys.platform == "darwin":
        return False
    names = (distribution.metadata["Name"] or "" for distribution in metadata.distributions())
    return not any(name.replace("_", "-").startswith("mlx-cuda") for name in names)


def estimate(
    shape: ModelShape,
    config: RunConfig,
    data: Data,
    *,
    on_cpu: bool | None = None,
    cache_limit_bytes: int | None = None,
) -> Estimate:
    """The memory that a run of `config` takes on a model.

    Args:
        config: resolved or not; `checkpointing: auto` counts as off, `prefix_cache: auto` and `disk` as off.
        data: sizes of its examples. The batch that counts is that of the longest examples.
        on_cpu: where it runs; None is this machine.
        cache_limit_bytes: limit of MLX's cache of freed buffers; None for the run's default.
    """
    return _Run(shape, config, data, runs_on_cpu() if on_cpu is None else on_cpu, cache_limit_bytes).estimate()


@dataclass(frozen=True)
class _Micro:
    """The micro-batches of one batch, as the memory sees them: tokens of all, and rows, length and scored positions of
    the one that takes most."""

    tokens: int
    parts: int
    rows: int
    length: int
    scored: int
    shared: bool

    @property
    def own(self) -> int:
        """Tokens of one micro-batch."""
        return self.rows * self.length


class _Run:
    """The arithmetic of one run."""

    def __init__(self, shape: ModelShape, config: RunConfig, data: Data, on_cpu: bool, cache_limit: int | None):
        self.shape, self.config, self.data, self.on_cpu = shape, config, data, on_cpu
        self.cache_limit = int(coefficient("default_cache_bytes")) if cache_limit is None else cache_limit
        self.trained = trained(shape, config)
        self.stored = DTYPE_BYTES[shape.dtype_at_rest(config.dtype)]
        # On the CPU everything is computed in float32, where half precision would bypass the BLAS.
        self.c = 4 if on_cpu else self.stored
        self.shapes = Shapes.suited(on_cpu, config.micro_batch)

    def estimate(self) -> Estimate:
        train = self._micro(_largest(self.data.train, self.config.batch_size, self.shapes))
        evaluated = self._micro(_largest(self.data.evaluated, SCORED_AT_ONCE, self.shapes))
        resident = self._resident()
        phases = {"evaluation": self._forward(evaluated, perturbed=False)}
        if self.config.method == "mezo":
            phases["forward pass"] = self._forward(train, perturbed=True)
            phases["update"] = self._update()
        components = {name: [*resident, *parts] for name, parts in phases.items()}
        peaks = {name: sum(part.bytes for part in parts) for name, parts in components.items()}
        phase = max(peaks, key=peaks.__getitem__)
        words = self.shape.vocabulary
        outside = (
            Component("runtime", int(coefficient("runtime_bytes")), "Python, MLX and the libraries"),
            Component("tokenizer", int(coefficient("tokenizer_bytes_a_word") * words), f"{words:,} words"),
        )
        cache = Component("buffer cache", self.cache_limit, "freed buffers that MLX keeps for reuse, at most")
        merged = _merged(components[phase])
        return Estimate((*outside, *merged, cache), phase, peaks, self.cache_limit, train.own)

    def _micro(self, batch: Sequence[Size]) -> _Micro:
        parts = cut(batch, self.shapes)

        def rows(part: tuple[int, ...]) -> int:
            return sum(batch[i].row_count for i in part)

        def length(part: tuple[int, ...]) -> int:
            return self.shapes.padded(batch[part[0]])

        largest = max(parts, key=lambda part: self._layer(rows(part), length(part)))
        return _Micro(
            tokens=sum(rows(part) * length(part) for part in parts),
            parts=len(parts),
            rows=rows(largest),
            length=length(largest),
            scored=max(sum(batch[i].scored for i in part) for part in parts),
            shared=all(size.shared for size in batch),
        )

    def _resident(self) -> list[Component]:
        """What is there throughout the run."""
        shape, config = self.shape, self.config
        rest = f"{shape.quantization.bits}-bit" if shape.quantization else shape.dtype_at_rest(config.dtype)
        parts = [Component("weights", shape.weight_bytes(config.dtype), f"{shape.parameters:,} parameters, {rest}")]
        if self.trained.added_bytes:
            why = f"{self.trained.numbers:,} trained numbers in float32"
            parts.append(Component("adapters", self.trained.added_bytes, why))
        if config.prefix_cache == "ram" and self.trained.frozen_layers:
            parts.append(
                Component("prefix cache", self.prefix_cache_bytes(), "output of the frozen layers, once an example")
            )
        return parts

    def prefix_cache_bytes(self) -> int:
        """Bytes of the frozen layers' output for every example."""
        tokens = sum(size.length * size.row_count for size in (*self.data.train, *self.data.evaluated))
        return self.c * self.shape.hidden * tokens

    def _forward(self, micro: _Micro, perturbed: bool) -> list[Component]:
        """One forward pass over a batch, with weights at w + eps z or as they are stored."""
        shape = self.shape
        linears = [t for t in shape.tensors if t.layer == shape.layers - 1 and t.rows > 1]
        remade = self.on_cpu and (shape.quantised or self.stored != self.c)
        changed = {t.name for t, _ in self.trained.tensors} if perturbed else set()
        made = [t for t in linears if remade or t.name in changed]
        weights = 0
        if made:
            weights = int(coefficient("made_copies") * max(min(4 * t.size, CHUNK_BYTES) for t in made))
            if micro.parts > 1 and not shape.quantised:
                # Micro-batches share the layer's weights, which stay until the last has passed.
                weights += sum(self.c * t.size for t in made if 4 * t.size <= CHUNK_BYTES)
        batch = 3 * self.c * shape.hidden * (micro.tokens - micro.own)
        layer = self._layer(micro.rows, micro.length, ahead=not made)
        scores = self._scores(micro.rows, micro.length)
        in_layer = weights + layer
        head = 0
        if not micro.shared:
            copies = coefficient("made_copies") if changed else coefficient("head_copies")
            head = int(copies * min(4 * shape.vocabulary * shape.hidden, CHUNK_BYTES))
            head += 4 * micro.scored * min(shape.vocabulary, CHUNK_BYTES // (4 * shape.hidden))
        if head > in_layer:
            whole = 2 * self.c * shape.hidden * micro.tokens
            return [
                Component("activations", whole, "hidden states of the batch"),
                Component("logits", head, "a chunk of the head's rows and its logits"),
            ]
        return [
            Component("transient", weights, "weights of a layer as they are computed with, while it computes"),
            Component("activations", batch + layer - scores, f"one layer of {micro.rows} x {micro.length} tokens"),
            Component("attention", scores, f"scores of {shape.heads} heads"),
        ]

    def _layer(self, rows: int, length: int, ahead: bool = False) -> int:
        """Bytes that one layer has alive at its peak for one micro-batch.

        Args:
            ahead: nothing is made of its weights first, so that MLX allocates for operations far ahead of those that
                are done, and frees little before the layer ends.
        """
        shape, n = self.shape, rows * length
        widths = self.c * n
        mlp = (4 if shape.model_type == "gemma3_text" else 3) * shape.intermediate
        scores = self._scores(rows, length)
        if ahead:
            heads = coefficient("kept_heads") * (shape.queries + shape.keys)
            return int(widths * (coefficient("kept_norms") * shape.hidden + heads + mlp)) + scores
        attention = widths * (2 * shape.hidden + 3 * shape.queries + 3 * shape.keys) + scores
        return max(widths * (4 * shape.hidden + mlp), attention)

    def _scores(self, rows: int, length: int) -> int:
        if not self.on_cpu:
            return 0
        return int(coefficient("score_copies") * self.c * rows * self.shape.heads * length**2)

    def _update(self) -> list[Component]:
        """The pass that moves the weights, a chunk at a time."""

        def alive(tensor: Tensor, size: int) -> int:
            if size == 4:
                return int(coefficient("moved_copies") * min(4 * tensor.size, CHUNK_BYTES))
            return int(coefficient("rounded_copies") * min(4 * tensor.size, CHUNK_BYTES // 8))

        largest = max((alive(tensor, size) for tensor, size in self.trained.tensors), default=0)
        return [Component("transient", largest, "a chunk of the weights being moved")]


def _largest(sizes: Sequence[Size], count: int, shapes: Shapes) -> list[Size]:
    """The `count` examples with most tokens: no batch of a run takes more than this one."""
    return sorted(sizes, key=lambda size: shapes.padded(size) * size.row_count)[-count:]


def _merged(components: Sequence[Component]) -> list[Component]:
    return [component for component in components if component.bytes]
