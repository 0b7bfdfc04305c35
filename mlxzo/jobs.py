"""What the command line does with a model beside training: evaluate it, probe it, and let it speak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import events
from .config import RunConfig
from .errors import DataError
from .models.causal import Slot, parameter_slots
from .models.scope import prepare
from .probing import SAMPLES, SCOPE_SAMPLES, Report, probe_scope, probe_scopes
from .runs import BEST_STATE
from .session import open_model, open_session
from .states import load_state


def evaluate_job(config: RunConfig, *, run: Path | None, split: str, on_event: events.Emit) -> dict[str, Any]:
    """Measures the base model, or the best state of `run`, on one split of the task.

    Raises:
        MlxzoError: model, data or the run's state cannot be had.
    """
    session = open_session(config, on_event, trains=run is not None)
    if not session.splits[split]:
        raise DataError(f"there are no {split} examples", "add test.jsonl to the data, or use --split validation")
    if run is not None:
        load_state(run / BEST_STATE, session.causal.slots, session.trainable.names)
    outcome = session.evaluate(split, on_event)
    return {
        "model": session.resolved.name,
        "run": str(run) if run else None,
        "task": session.data.task.name,
        "split": split,
        "data_sha256": session.data.sha256,
        **asdict(outcome),
    }


def probe_job(config: RunConfig, *, by: str, samples: int | None, on_event: events.Emit) -> Report:
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


class Voices:
    """A base model and, of a run, the model that it became: loaded once, prompted as often as wanted.

    What the run trained is held twice, as it was and as it became; everything else once. The base speaks as the run
    measured it before training, with its adapters, which then change nothing, in place.
    """

    def __init__(self, config: RunConfig, run: Path | None):
        """Loads them; without a run there is the base alone.

        Raises:
            MlxzoError: the model or the run's state cannot be had.
        """
        _, self._loaded = open_model(config, lambda event: None)
        self._slots: dict[str, Slot] = {}
        self._states: dict[str, dict[str, Any]] = {"base": {}}
        if run is not None:
            names = prepare(self._loaded.model, config).names
            slots = parameter_slots(self._loaded.model)
            self._slots = {name: slots[name] for name in names}
            self._states["base"] = self._parameters()
            load_state(run / BEST_STATE, slots, names)
            self._states["tuned"] = self._parameters()

    def answer(self, prompt: str, max_new_tokens: int) -> Iterator[tuple[str, str]]:
        """Greedy continuations of `prompt`: pieces of text as ('base', piece), then with a run ('tuned', piece)."""
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
        # Decoded together with the prompt: mlx-lm's own pieces lose the space that joins the first word to it.
        tokens = list(tokenizer.encode(prompt))
        shown = tokenizer.decode(tokens)
        for response in stream_generate(model, tokenizer, list(tokens), max_tokens=max_new_tokens):
            if response.finish_reason == "stop":
                return
            tokens.append(response.token)
            text = tokenizer.decode(tokens)
            # A character whose bytes are not all there yet decodes to the replacement character.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
