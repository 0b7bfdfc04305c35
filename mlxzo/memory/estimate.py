"""The memory a run will take, by component, from the dimensions of the model, the data and the options. No MLX.

A run has phases: loading, evaluation, steps, saving. Weights, adapters, the optimiser's state and an activation cache
in memory are present throughout; each phase adds its own components, and the peak is that of the largest phase. Two
results, both in bytes:

    peak        MLX's own counter (`mx.get_peak_memory`) at the end of the run
    footprint   an upper bound of the memory that the operating system charges the process for (phys_footprint on macOS,
                RSS on Linux): the runtime, the tokenizer, the peak, and the cache of freed buffers at its limit

For a batch of N tokens, cut into micro-batches of R rows of T tokens (n = R T), hidden width D, and c bytes a value in
the compute dtype:

    whole batch     3 N D c: output of the embedding, of the previous layer and of this one. All micro-batches of a
                    batch pass one layer before any passes the next, so that its weights are made once.
    keys and values 2 N L K c: of the answers in flight and their prompts, in L layers of key width K, and of one prompt
                    more, whose beginning is shared.
    one layer       forward pass of one micro-batch: the larger of MLP and attention (see `layer_memory`). A CPU
                    computes two micro-batches at once.
    backpropagation without checkpointing, all activations that the backward pass reads, of every layer; with it, the
                    layers' inputs, n D c each, and one whole layer (Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.config import RunConfig
from ..core.device import computes_as_cpu
from ..core.resolved_config import ResolvedConfig
from ..engine.batching import SCORED_AT_ONCE, Shapes, Size, cut, within
from ..engine.distributed.communicator import members_at_once
from ..engine.prefix_sharing import MAX_NEW_TOKENS
from ..models.architecture import DTYPE_BYTES, ModelShape
from ..models.layer_shapes import EXPERTS
from ..zo.chunks import CHUNK_BYTES, HALF_PRECISION_CHUNK_BYTES
from .coefficients import coefficient
from .components import Component, MemoryEstimate, larger, merged, sum_bytes
from .layer_memory import LayerMemory, backward_width, kept_width
from .metal_runtime import runtime_bytes
from .sizes import Data, Settings
from .trainable_sizes import Trained, trained


def estimate(
    shape: ModelShape,
    config: RunConfig,
    data: Data,
    *,
    on_cpu: bool | None = None,
    cache_limit_bytes: int | None = None,
) -> MemoryEstimate:
    """The memory that a run of `config` takes on a model.

    Args:
        config: resolved or not; `checkpointing: auto` counts as off, `activation_cache: auto` and `disk` as off.
        data: sizes of its examples; the batch of the largest ones counts.
        on_cpu: the device that it runs on; None: that of this machine.
        cache_limit_bytes: limit of MLX's cache of freed buffers; None: that of a process
            without a cap.
    """
    predictor = Predictor(shape, config, data, on_cpu)
    settings = Settings.of(config, predictor.on_cpu)
    if cache_limit_bytes is not None:
        settings = replace(settings, cache_limit_bytes=cache_limit_bytes)
    return predictor.estimate(settings)


@dataclass(frozen=True)
class _Micro:
    """The micro-batches of one batch: tokens of all, and their number; rows, length and scored positions of the
    largest."""

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


class Predictor:
    """The memory arithmetic of one run, for any settings.

    Args:
        shape, config, data, on_cpu: as for `estimate`; options that `Settings` holds are not read from `config`.
    """

    def __init__(self, shape: ModelShape, config: RunConfig, data: Data, on_cpu: bool | None = None):
        self.shape, self.config, self.data = shape, config, data
        self.on_cpu = computes_as_cpu() if on_cpu is None else on_cpu
        self.trained: Trained = trained(shape, config)
        self.stored = DTYPE_BYTES[shape.dtype_at_rest(config.dtype)]
        # On the CPU everything is computed in float32: half precision would bypass the BLAS.
        self.c = 4 if self.on_cpu else self.stored
        self._layer = LayerMemory(shape, self.c, self.on_cpu)
        self._last_linears = [t for t in shape.tensors if t.layer == shape.layers - 1 and t.rows > 1]
        self._trained_names = {tensor.name for tensor, _ in self.trained.tensors}
        # Weights stored in another dtype than the compute dtype are cast or dequantised while their layer computes.
        self._remade = self.on_cpu and (shape.quantised or self.stored != self.c)
        # Quantised experts are multiplied as they are, also on the CPU.
        remade = (t for t in self._last_linears if t.quantization is None or EXPERTS not in t.name)
        self._remade_linears = list(remade) if self._remade else []
        multiple = Shapes.suited(self.on_cpu).multiple
        self._batch = data.largest_batch(ResolvedConfig.of(config).batch_size, multiple)
        self._evaluated = self._scored_at_once("evaluated", multiple)

    def estimate(self, settings: Settings) -> MemoryEstimate:
        """The memory of the run with these settings."""
        train = self._micro(self._batch, settings)
        phases: dict[str, list[Component]] = {}
        if self._evaluated:
            phases["evaluation"] = self._forward(self._micro(self._evaluated, settings), perturbed=False)
        if self.trained.frozen_layers:
            phases["frozen layers"] = self._forward(self._frozen(train, settings), perturbed=False)
        if writing := self._writing(settings):
            phases["writing"] = writing
        if self.config.method == "mezo":
            phases["forward pass"] = self._forward(train, perturbed=True)
        else:
            phases["backward pass"] = self._backward(train, settings)
        phases["update"] = self._update(train)
        return self._total(phases, self._resident(settings), settings, train.rows)

    def evaluation(self) -> MemoryEstimate:
        """The memory of one forward pass of the base model over all examples."""
        settings, multiple = Settings.of(self.config, self.on_cpu), Shapes.suited(self.on_cpu).multiple
        batches = {split: self._scored_at_once(split, multiple) for split in ("train", "evaluated")}
        phases = {
            split: self._forward(self._micro(batch, settings), perturbed=False)
            for split, batch in batches.items()
            if batch
        }
        return self._total(phases, [self._weights], settings, 0)

    def _scored_at_once(self, split: str, multiple: int) -> tuple[Size, ...]:
        """The examples of the largest batch of an evaluation."""
        largest = self.data.largest(split, SCORED_AT_ONCE, multiple)
        return largest[: within(SCORED_AT_ONCE, largest)]

    def _total(
        self, phases: dict[str, list[Component]], resident: list[Component], settings: Settings, rows: int
    ) -> MemoryEstimate:
        """The sum of what is always there and of the largest phase; `rows` is the largest micro-batch of training."""
        always = sum_bytes(resident)
        peaks = {name: always + sum_bytes(parts) for name, parts in phases.items()}
        phase = max(peaks, key=peaks.__getitem__)
        words = self.shape.vocabulary
        components = [
            Component("runtime", runtime_bytes(), "Python, MLX and the libraries"),
            Component("tokenizer", int(coefficient("tokenizer_bytes_a_word") * words), f"{words:,} words"),
            *resident,
            *phases[phase],
            Component("buffer cache", settings.cache_limit_bytes, "freed buffers that MLX keeps for reuse, at most"),
            Component("saving", self._saved_bytes, "a piece of a trained tensor, copied to be written"),
            Component("heap", self._heap_bytes(phase, peaks[phase] - always), "freed memory that the C library keeps"),
        ]
        return MemoryEstimate(merged(components), phase, peaks, settings.cache_limit_bytes, rows)

    def _heap_bytes(self, phase: str, passing: int) -> int:
        """Bytes that the C library keeps of `passing` bytes allocated and freed on the CPU; 0 on a GPU."""
        share = coefficient("written_heap_share" if phase == "writing" else "heap_share")
        return int(share * passing) if self.on_cpu else 0

    @functools.cached_property
    def most_rows(self) -> int:
        """Sequences in the largest micro-batch that suits the device."""
        return self._micro(self._batch, Settings.of(self.config, self.on_cpu)).rows

    @functools.cached_property
    def prefix_bytes(self) -> int:
        """Bytes of the frozen layers' output for every example; 0 where no layer is frozen, or no step reads it."""
        if not self.trained.frozen_layers or self.config.writes:
            return 0
        # After the last layer, only the scored positions are needed.
        kept = self.data.scored if self.trained.frozen_layers == self.shape.layers else self.data.tokens
        return self.c * self.shape.state_width(self.trained.frozen_layers) * kept

    def _micro(self, batch: Sequence[Size], settings: Settings) -> _Micro:
        shapes = Shapes.suited(self.on_cpu, settings.micro_batch)
        parts = cut(batch, shapes)
        sizes = [(sum(batch[i].row_count for i in part), shapes.padded(batch[part[0]])) for part in parts]
        rows, length = max(dict.fromkeys(sizes), key=lambda size: self._layer.peak_bytes(*size))
        return _Micro(
            tokens=sum(rows * length for rows, length in sizes),
            parts=len(parts),
            rows=rows,
            length=length,
            scored=max(sum(batch[i].scored for i in part) for part in parts),
            shared=all(size.shared for size in batch),
        )

    def _frozen(self, micro: _Micro, settings: Settings) -> _Micro:
        """The passes of the micro-batches of a step through frozen layers (see `Shapes.frozen`)."""
        shapes = Shapes.suited(self.on_cpu, settings.micro_batch)
        if shapes.frozen_tokens is None:
            return micro
        sequences: Counter[tuple[int, int]] = Counter()
        for size in self._batch:
            sequences[shapes.frozen(size.length)] += size.row_count
        passes = {(rows, length): -(-count // rows) for (rows, length), count in sequences.items()}
        rows, length = max(passes, key=lambda size: self._layer.peak_bytes(*size))
        tokens = sum(count * rows * length for (rows, length), count in passes.items())
        return replace(micro, tokens=tokens, parts=sum(passes.values()), rows=rows, length=length)

    def _resident(self, settings: Settings) -> list[Component]:
        """Components present throughout the run."""
        config, parts = self.config, [self._weights]
        if self.trained.added_bytes:
            why = f"{self.trained.numbers:,} trained parameters in float32"
            parts.append(Component("adapters", self.trained.added_bytes, why))
        if ResolvedConfig.of(config).pull:
            why = "trained parameters before the first step, towards which es pulls"
            parts.append(Component("start", self.trained.bytes, why))
        if config.method == "bp" and config.optimizer != "sgd":
            why = "two float32 values per trained parameter"
            parts.append(Component("optimiser state", 8 * self.trained.numbers, why))
        if settings.keeps_prefix:
            why = "output of the frozen layers, one per example"
            size = self.prefix_bytes
            if self.trained.frozen_layers == self.shape.layers:
                # The states of the batch in use stay assembled.
                size += self.c * self.shape.hidden * sum(example.scored for example in self._batch)
            parts.append(Component("activation cache", size, why))
        return parts

    def _forward(self, micro: _Micro, perturbed: bool) -> list[Component]:
        """One forward pass over a batch, with weights at w + eps z or as they are stored."""
        shape = self.shape
        made = self._remade_linears
        if perturbed and not made:
            made = [t for t in self._last_linears if t.name in self._trained_names]
        weights = 0
        if made:
            # The experts of a mixture are made whole.
            whole = [t for t in made if 4 * t.size <= CHUNK_BYTES or EXPERTS in t.name]
            weights = int(coefficient("made_copies") * max(4 * t.size if t in whole else CHUNK_BYTES for t in made))
            if (micro.parts > 1 and not shape.quantised) or any(4 * t.size > CHUNK_BYTES for t in whole):
                # Micro-batches share the layer's weights, which stay until the last of them has passed.
                weights += sum(self.c * t.size for t in whole)
        at_once = 1.0 + coefficient("second_layer") if self.on_cpu and micro.parts > 1 else 1.0
        layer = int(at_once * self._layer.peak_bytes(micro.rows, micro.length, ahead=not made))
        scores = int(at_once * self._layer.score_bytes(micro.rows, micro.length))
        width = 3 * shape.state_width(shape.layers - 1) + shape.own_input_width
        others = self.c * width * (micro.tokens - micro.own)
        head = 0
        if not micro.shared:
            copies = coefficient("made_copies" if perturbed and self._trains_head else "head_copies")
            head = int(copies * min(self._head_bytes, CHUNK_BYTES))
            head += 4 * micro.scored * min(shape.vocabulary, CHUNK_BYTES // (4 * shape.hidden))
        if head > weights + layer:
            return [
                Component("activations", 2 * self.c * shape.hidden * micro.tokens, "hidden states of the batch"),
                Component("logits", head, "a chunk of the head's rows and its logits"),
            ]
        why = f"one layer of {micro.rows} x {micro.length} tokens, and hidden states of all {micro.tokens}"
        return [
            Component("transient", weights, "effective weights of a layer while it computes"),
            Component("activations", others + layer - scores, why),
            Component("attention", scores, f"scores of {shape.heads} heads"),
        ]

    def _writing(self, settings: Settings) -> list[Component]:
        """Generation of answers, in an evaluation or for a reward, while further prompts are read."""
        together = members_at_once(self.config)
        shape, shapes = self.shape, Shapes.suited(self.on_cpu, settings.micro_batch, together > 1)
        sizes = [size for size in self.data.evaluated if size.written or self.config.names_judge]
        sizes += self.data.train if self.config.writes else ()
        if not sizes:
            return []
        prompts = (size.length + 1 - size.scored if size.candidates == 1 else size.length for size in sizes)
        lengths = {min(prompt + MAX_NEW_TOKENS, self.config.max_tokens) for prompt in prompts}
        rows, length = max(
            ((min(max(len(sizes), self._answers_at_once), shapes.written(length)), length) for length in lengths),
            key=lambda answers: answers[0] * answers[1],
        )
        kept = sum(layer.cached for layer in shape.layer_shapes) * self.c * (rows + together) * length
        kept += sum(4 * layer.recurrent for layer in shape.layer_shapes) * (rows + together)
        if together > 1:
            # What the frozen layers keep of each prompt, which they read once for all members.
            frozen = shape.layer_shapes[: self.trained.frozen_layers]
            kept += sum(layer.cached for layer in frozen) * self.c * ResolvedConfig.of(self.config).batch_size * length
        read = self._micro(self.data.largest("evaluated", 1, shapes.multiple) or self._batch[:1], settings)
        shared = "one shared beginning" if together == 1 else f"{together} shared beginnings"
        why = f"of {rows} answers and their prompts, {length} tokens each, and of {shared}"
        parts = [Component("keys and values", kept, why), *self._forward(read, perturbed=self.config.writes)]
        if together > 1:
            # Each member's parameters, and those of every row in one layer while it computes.
            layers = max(1, shape.layers - self.trained.frozen_layers)
            size = 4 * self.trained.numbers * together + 4 * self.trained.numbers // layers * rows
            parts.append(Component("population", size, f"weights of {together} members, a row at a time"))
        return parts

    @property
    def _answers_at_once(self) -> int:
        """Answers that a population writes in one batch, at most; 0 where members write one after the other."""
        together = members_at_once(self.config)
        return together * ResolvedConfig.of(self.config).batch_size if together > 1 else 0

    def _backward(self, micro: _Micro, settings: Settings) -> list[Component]:
        """Forward and backward pass of one micro-batch.

        From the last layer to the first, gradients appear as activations are freed: the peak is either at the beginning
        of the backward pass or at its end.
        """
        shape, tokens, trained_bytes = self.shape, self.c * micro.own, self.trained.bytes
        layers = shape.layers - self.trained.frozen_layers
        inputs = sum(map(shape.state_width, range(self.trained.frozen_layers, shape.layers)))
        # For a gradient, MLX makes the scores whole on a GPU as well.
        scores = self.c * micro.rows * shape.heads * micro.length**2
        states = int(coefficient("recurrent_kept") * self._layer.state_bytes(micro.rows, micro.length))
        live = self._live(tokens * backward_width(shape), scores, states)
        throughout = []
        if micro.parts > 1:
            throughout.append(Component("gradients", 4 * self.trained.numbers, "their sum over micro-batches"))
        if self.trained.frozen_layers:
            prefix = self.c * shape.state_width(self.trained.frozen_layers) * micro.tokens
            throughout.append(Component("activations", prefix, "output of the frozen layers"))
        gradients = Component("gradients", trained_bytes, f"of {self.trained.numbers:,} parameters")
        of_layer = (trained_bytes - (self._head_bytes if self._trains_head else 0)) // max(1, layers)
        if settings.checkpointing:
            inputs = Component("activations", tokens * inputs, f"inputs of {layers} layers")
            begins = [inputs, *larger(live, self._at_head(micro))]
            if micro.parts > 1:
                # The gradients of each layer are added to the sum before those of the next are made.
                gradients = Component("gradients", of_layer, "of one layer")
            ends = [gradients, *live]
        else:
            kept, kept_scores = tokens * kept_width(shape), coefficient("kept_scores") * scores
            kept += tokens * (inputs / max(1, layers) - shape.hidden)
            recurrent = sum(layer.recurrent > 0 for layer in shape.layer_shapes[self.trained.frozen_layers :])
            ahead = min(layers, coefficient("ahead_layers"))
            begins = [
                *self._at_head(micro),
                Component("activations", int(layers * kept) + states * recurrent, f"all of {layers} layers"),
                Component("attention", int(layers * kept_scores), f"scores of {layers} layers"),
                Component("transient", int(coefficient("kept_remade") * self._remade_bytes), "effective weights"),
                Component("gradients", int(ahead * of_layer), "of the first layers passed backwards"),
            ]
            ends = [
                gradients,
                Component("activations", int(ahead * kept), "of the last layers passed backwards"),
                Component("attention", int(ahead * kept_scores), "their scores"),
            ]
        return throughout + larger(begins, ends)

    def _at_head(self, micro: _Micro) -> list[Component]:
        """The head's part of a backward pass: logits of the supervised positions, and gradients of the head."""
        parts = [Component("gradients", self._head_bytes, "of the head")] if self._trains_head else []
        if not micro.shared:
            logits = int(coefficient("logit_chunks") * min(self._head_bytes, CHUNK_BYTES // 4))
            parts.append(Component("logits", logits, f"of {micro.scored} positions, by chunks of the vocabulary"))
            if self._trains_head:
                parts.append(Component("gradients", 2 * self._head_bytes, "of the head, before its parts are joined"))
        return parts

    def _live(self, layer: int, scores: int, states: int) -> list[Component]:
        """The layer being differentiated, from the bytes of its forward pass, of its scores and of its states."""
        suffix = "_remade" if self._remade else ""
        return [
            Component(
                "transient",
                int(coefficient("live_weights_remade") * self._remade_bytes),
                "weights in the compute dtype",
            ),
            Component(
                "activations", int(coefficient(f"live_layers{suffix}") * layer) + states, "one layer, both passes"
            ),
            Component("attention", int(coefficient(f"live_scores{suffix}") * scores), "scores of one layer"),
        ]

    @functools.cached_property
    def _remade_bytes(self) -> int:
        """Bytes of one layer's weights in the compute dtype; 0 where they are stored in it."""
        return sum(self.c * tensor.size for tensor in self._remade_linears)

    @property
    def _head_bytes(self) -> int:
        """Bytes of the head's matrix in float32."""
        return 4 * self.shape.vocabulary * self.shape.hidden

    @property
    def _trains_head(self) -> bool:
        name = "model.embed_tokens.weight" if self.shape.tied else "lm_head.weight"
        return name in self._trained_names

    def _update(self, micro: _Micro) -> list[Component]:
        """The update of the weights, chunk by chunk; backpropagation holds its gradients meanwhile."""
        parts = [Component("transient", self._chunk_bytes, "a chunk of the weights being updated")]
        if self.config.method == "bp":
            size = 4 * self.trained.numbers if micro.parts > 1 else self.trained.bytes
            parts.append(Component("gradients", size, f"of {self.trained.numbers:,} parameters"))
        return parts

    @functools.cached_property
    def _chunk_bytes(self) -> int:
        """Peak bytes of the update of the largest chunk of a trained tensor."""
        backward = self.config.method == "bp"
        # A tensor and Adam's two means of it are rewritten together, in chunks that are smaller for it.
        slots = 3 if backward and self.config.optimizer != "sgd" else 1
        copies = coefficient("adam_copies" if backward else "moved_copies")

        def peak(numbers: int, size: int) -> int:
            chunk = (CHUNK_BYTES if size == 4 else HALF_PRECISION_CHUNK_BYTES) // slots
            # A tensor that is updated whole needs no copy of the old values.
            plain = copies * min(4 * numbers, chunk) * (0.5 if 4 * numbers <= chunk else 1.0)
            return int(plain + (0 if size == 4 else coefficient("rounded_copies") * min(4 * numbers, chunk)))

        return max((peak(numbers, size) for numbers, size in self.trained.sizes), default=0)

    @functools.cached_property
    def _saved_bytes(self) -> int:
        """Bytes of the largest piece in which a state is saved; the C library keeps them when they are freed."""
        return max((min(size * numbers, CHUNK_BYTES) for numbers, size in self.trained.sizes), default=0)

    @functools.cached_property
    def _weights(self) -> Component:
        shape, dtype = self.shape, self.config.dtype
        return Component(
            "weights", shape.weight_bytes(dtype), f"{shape.parameters:,} parameters, {shape.number_format(dtype)}"
        )
