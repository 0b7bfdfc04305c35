"""What the command line does with a model beside training: evaluate it, probe it, and let it speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any, get_args

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import DataError
from ..models.folder import context_length
from ..models.loading import LoadedModel
from ..models.slots import Slot
from ..models.trainable import Trainable
from ..tasks.base import Example, Task
from ..tasks.chat import in_style
from .baselines import Baseline, measure
from .encoding import encode_prompt
from .lr_finder import SAMPLES, SCOPE_SAMPLES, ProbeReport, probe_scope, probe_scopes
from .sampling import Sampling, next_tokens
from .session import open_model, open_session
from .tuned_model import Tuning
from .tuned_source import Kind, Source


def evaluate_job(
    config: RunConfig,
    *,
    source: Source | None,
    split: str,
    on_event: events.Emit,
    ways: Callable[[Task], Sequence[Baseline]] = lambda task: (Baseline(),),
) -> list[dict[str, Any]]:
    """Measures the base model, or what `source` tuned it to, on one split of the task.

    Args:
        ways: the ways in which the model is asked, by the task.

    Returns:
        For each way, what was measured and the outcome.

    Raises:
        MlxzoError: model, data or what the model was tuned to cannot be had, or a way does not suit the task.
    """

    def bring(loaded: LoadedModel, config: RunConfig) -> Trainable:
        if source is None:
            return Trainable(())
        tuning = Tuning(loaded, config, source)
        tuning.apply(on_event)
        return tuning.trainable

    session = open_session(config, on_event, tune=bring)
    if not session.splits[split]:
        raise DataError(f"there are no {split} examples", "add test.jsonl to the data, or use --split validation")
    facts = {
        "model": session.resolved.name,
        **tuned_by(source),
        "task": session.data.task.name,
        "split": split,
        "data_sha256": session.data.sha256,
    }
    return [
        {**facts, "asked": way.name, **asdict(way), **asdict(measure(session, split, way, on_event))}
        for way in ways(session.data.task)
    ]


def tuned_by(source: Source | None) -> dict[str, str | None]:
    """Run, adapter and journal, of which one may be named."""
    return {kind: str(source.path) if source and source.kind == kind else None for kind in get_args(Kind)}


def probe_job(config: RunConfig, *, by: str, samples: int | None, on_event: events.Emit) -> ProbeReport:
    """Gradient and curvature of the configuration's scope, or with `probe: scope` of every candidate.

    Args:
        by: what a row is (see `group_names`).
        samples: directions a row; None for the number that training takes.

    Raises:
        MlxzoError: model or data cannot be had, or do not suit.
    """
    if config.probe == "scope":
        return probe_scopes(config, on_event, samples or SCOPE_SAMPLES)
    return probe_scope(config, on_event, by=by, samples=samples or SAMPLES)


class SideBySide:
    """A base model and what it was tuned to: loaded once, prompted as often as wanted.

    What was trained is held twice, as it was and as it became; everything else once. The base speaks with its adapters,
    which then change nothing, in place.
    """

    def __init__(self, config: RunConfig, source: Source | None, sampling: Sampling | None = None):
        """Loads them; without a source there is the base alone.

        Args:
            sampling: how tokens are drawn, with the same luck for both; None takes the likeliest ones.

        Raises:
            MlxzoError: the model or what it was tuned to cannot be had.
        """
        self._prompt_style, self._sampling = config.prompt_style, sampling
        _, self._loaded = open_model(config, events.ignore)
        self._context = context_length(self._loaded.path)
        self._slots: dict[str, Slot] = {}
        self._states: dict[str, dict[str, Any]] = {"base": {}}
        if source is not None:
            tuning = Tuning(self._loaded, config, source)
            self._slots = tuning.slots
            self._states["base"] = self._parameters()
            tuning.apply(events.ignore)
            self._states["tuned"] = self._parameters()

    def answer(self, prompt: str, max_new_tokens: int) -> Iterator[tuple[str, str]]:
        """Continuations of `prompt`: pieces of text as ('base', piece), then with a source ('tuned', piece). They end
        where the model's context does.

        Raises:
            DataError: the prompt leaves them no room in it.
        """
        for speaker, state in self._states.items():
            for name, value in state.items():
                self._slots[name].set(value)
            for piece in self._speak(prompt, max_new_tokens):
                yield speaker, piece

    def _parameters(self) -> dict[str, Any]:
        return {name: slot.get() for name, slot in self._slots.items()}

    def _speak(self, prompt: str, max_new_tokens: int) -> Iterator[str]:
        from mlx_lm import stream_generate

        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        example = in_style(Example(prompt, (), None), self._prompt_style)
        # Decoded together with the prompt: mlx-lm's own pieces lose the space that joins the first word to it.
        tokens = encode_prompt(example, tokenizer)
        if self._context is not None:
            max_new_tokens = min(max_new_tokens, self._context - len(tokens))
        if max_new_tokens < 1:
            raise DataError(
                f"the prompt has {len(tokens)} tokens, and the model was made for {self._context}, answer included",
                "shorten the prompt",
            )
        shown = tokenizer.decode(tokens)
        places = count()

        def draw(logprobs: mx.array) -> mx.array:
            return mx.array(next_tokens(np.array(logprobs.astype(mx.float32)), self._sampling, [0], [next(places)]))

        sampler = draw if self._sampling else None
        for response in stream_generate(model, tokenizer, list(tokens), max_tokens=max_new_tokens, sampler=sampler):
            if response.finish_reason == "stop":
                return
            tokens.append(response.token)
            text = tokenizer.decode(tokens)
            # A character whose bytes are not all there yet decodes to the replacement character.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
