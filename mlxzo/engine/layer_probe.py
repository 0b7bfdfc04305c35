"""The ridge probe as a baseline: what a linear map makes of a frozen model's states at the end of the prompt.

One forward pass an example gives the states after all layers. Layer and ridge strength are chosen by the leave-one-out
error on the training rows; the evaluated rows are used once, for the reported accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ModelError
from ..core.meter import system_memory
from ..core.metrics import standard_error
from ..models.last_layer import at_positions
from ..models.trainable import Trainable
from .batching import SCORED_AT_ONCE, by_length
from .data_summary import share_candidates
from .encoding import EncodedExample, Row
from .evaluation import majority_share
from .ridge_probe import RidgeProbe, fit
from .session import Session, fetch, load_base, load_data, make_session

# States of the training rows take at most this share of the memory that programs could have now.
_MEMORY_SHARE = 0.1


@dataclass(frozen=True)
class LayerProbe:
    """Outcome of a ridge probe on one split: accuracy `value` on `examples` rows, and duration in seconds.

    Attributes:
        standard_error: of the accuracy, as a binomial share.
        majority: share of the most frequent label.
        layer: the chosen layer, from 1; `layers` of those that the model has were tried.
        strength: the chosen ridge strength per training row, for states of unit variance.
        leave_one_out_error: mean squared residual of the choice, over training rows and labels.
    """

    metric: str
    value: float
    standard_error: float
    examples: int
    majority: float | None
    seconds: float
    layer: int
    layers: tuple[int, ...]
    model_layers: int
    strength: float
    leave_one_out_error: float
    train_examples: int


def obstacle(session: Session, split: str) -> str:
    """The reason why a session can have no ridge probe, as a sentence; empty if there is none."""
    data = session.data
    if not share_candidates((*data.train, *getattr(data, split))):
        return f"no ridge probe: it needs a fixed set of labels, which the task {data.task.name} does not have"
    if not session.causal.splits:
        return "no ridge probe: the layers of this model cannot be run one at a time"
    if len(data.train) < 2:
        return "no ridge probe: it needs two training rows or more"
    return ""


def measure_probe(session: Session, split: str, emit: events.Emit) -> LayerProbe:
    """Fits a probe to the training rows for each layer, and measures the best one on a split.

    The model's weights are those that stand. The session must have no `obstacle`.

    Raises:
        ModelError: the states are not finite after any layer.
    """
    started, data, depth = time.perf_counter(), session.data, len(session.causal.layers)
    train, evaluated = session.splits["train"], session.splits[split]
    layers = layers_within(depth, 4 * len(train) * session.causal.hidden_size, _MEMORY_SHARE * system_memory()[1])
    if len(layers) < depth:
        emit(events.Note(f"ridge probe: layers {', '.join(map(str, layers))} of {depth} only, to save memory"))
    states = states_at_prompt_end(session, train, layers, "ridge probe: reading training rows", emit)
    targets, label_count = np.array([example.target for example in train]), train[0].candidates
    probes: dict[int, RidgeProbe] = {}
    for done, (layer, of_layer) in enumerate(zip(layers, states, strict=True), start=1):
        # Half precision may overflow in some layers.
        if np.isfinite(of_layer).all():
            probes[layer] = fit(of_layer, targets, label_count)
        emit(events.Progress("ridge probe: fitting", float(done), float(len(layers)), "layers"))
    del states
    if not probes:
        raise ModelError("the hidden states of this model are not finite", "try --dtype float32")
    layer = min(probes, key=lambda number: (probes[number].error, number))
    probe = probes[layer]
    (found,) = states_at_prompt_end(session, evaluated, (layer,), f"ridge probe: evaluating on {split}", emit)
    value = float(np.mean(probe.predict(found) == [example.target for example in evaluated]))
    return LayerProbe(
        metric="accuracy",
        value=value,
        standard_error=standard_error(value, len(evaluated)),
        examples=len(evaluated),
        majority=majority_share(getattr(data, split)),
        seconds=time.perf_counter() - started,
        layer=layer,
        layers=layers,
        model_layers=depth,
        strength=probe.strength,
        leave_one_out_error=probe.error,
        train_examples=len(train),
    )


def probe_job(config: RunConfig, emit: events.Emit) -> dict[str, Any]:
    """Measures the probe of a base model on the test split, or on the validation split where there is no other.

    Returns:
        The `split` and the fields of a `LayerProbe`; or the `obstacle`, where there can be no probe.

    Raises:
        MlxzoError: model or data are missing or damaged.
    """
    inputs = fetch(config, load_data(config, emit), emit)
    session = make_session(inputs, load_base(inputs), Trainable(()), emit)
    split = "test" if session.splits["test"] else "validation"
    if reason := obstacle(session, split):
        return {"obstacle": reason}
    return {"split": split, **asdict(measure_probe(session, split, emit))}


def layers_within(depth: int, layer_bytes: int, limit: float) -> tuple[int, ...]:
    """Layers from 1 to `depth` whose states fit into a limit in bytes: all, else every second, fourth and so on; at
    least the last."""
    stride = 1
    while stride < depth and len(range(depth, 0, -stride)) * layer_bytes > limit:
        stride *= 2
    return tuple(range(depth, 0, -stride))[::-1]


def states_at_prompt_end(
    session: Session, examples: Sequence[EncodedExample], layers: Sequence[int], label: str, emit: events.Emit
) -> np.ndarray:
    """States of the last token of each prompt after some layers, float32 [layers, N, D]; later layers are not computed.

    Args:
        layers: numbers from 1, ascending.
        label: names the progress, which `emit` takes.
    """
    causal, view = session.causal, session.causal.view()
    found = np.empty((len(layers), len(examples), causal.hidden_size), np.float32)
    done = 0
    for indices, batch in by_length([prompt_alone(example) for example in examples], SCORED_AT_ONCE, session.batch):
        tokens = [mx.array(part.tokens) for part in batch.parts]
        positions = [mx.array(part.positions) for part in batch.parts]
        order = [indices[place] for places in batch.places for place in places]
        kept = iter(found)
        for number, states in enumerate(causal.states_after_layers(tokens, view), start=1):
            ends = mx.concatenate([at_positions(p, s) for p, s in zip(positions, states, strict=True)])
            # Each layer by itself, so that no more than two of them hold states at every position.
            mx.eval(ends)
            if number in layers:
                next(kept)[order] = np.array(ends.astype(mx.float32))
            if number == layers[-1]:
                break
        done += len(indices)
        emit(events.Progress(label, float(done), float(len(examples)), "examples"))
    return found


def prompt_alone(example: EncodedExample) -> EncodedExample:
    """An example's prompt, cut to `max_tokens` as for scoring, as one row whose last position alone is scored."""
    # Where joining a candidate changes the end of the prompt, candidates differ in how much of it they keep.
    row, last = min(example.starts, key=lambda start: start[1])
    prompt = Row(example.rows[row].tokens[: last + 1], last)
    # The scored token has no effect: the states before it are read.
    return EncodedExample((prompt,), ((0, last),), ((0,),), 0, example.truncated)
