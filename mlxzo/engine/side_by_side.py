"""Answers of a base model and of the model tuned from it, to the same prompt: texts, or probabilities of labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import DataError, Diverged
from ..models.causal import CausalLM
from ..models.folder import context_length
from ..models.slots import Slot
from ..tasks.base import Example
from ..tasks.chat import in_style
from .batching import make_batch
from .encoding import encode, encode_prompt
from .sampling import Sampling, check_numbers, next_tokens
from .scoring import Scorer, candidate_probabilities
from .session import compute_dtype, micro_batch_shapes, open_model, within_context
from .tuned_model import TunedModel
from .tuned_source import Source


class SideBySide:
    """A base model and the model tuned from it, loaded once for any number of prompts.

    Trained parameters are held twice, before and after training, all others once. The base model runs with its
    adapters, whose initial values change nothing.
    """

    def __init__(
        self, config: RunConfig, source: Source | None, sampling: Sampling | None = None, *, alone: str = "base"
    ):
        """Loads both models; without a source the model of the configuration alone.

        Args:
            sampling: how tokens are drawn, with the same random numbers for both models; None: greedily.
            alone: the name of the model without a source: a fused model is `tuned`.

        Raises:
            MlxzoError: the model or the source is missing or damaged.
        """
        self._sampling = sampling
        resolved, self._loaded = open_model(config, events.ignore)
        self._config = within_context(config, resolved, events.ignore)
        self._context = context_length(self._loaded.path)
        self._slots: dict[str, Slot] = {}
        self._states: dict[str, dict[str, mx.array]] = {alone: {}}
        if source is not None:
            tuned = TunedModel(self._loaded, config, source)
            self._slots = tuned.slots
            self._states = {"base": tuned.parameters()}
            tuned.apply(events.ignore)
            self._states["tuned"] = tuned.parameters()

    def answer(self, prompt: str, max_new_tokens: int) -> Iterator[tuple[str, str]]:
        """Continues `prompt`: yields ('base', piece) for each piece of text, then ('tuned', piece).

        An answer ends after `max_new_tokens`, at the end of its text, or at the end of the model's context.

        Raises:
            DataError: the prompt fills the context. ModelError: the model lacks one of its tokens.
        """
        for model in self._models():
            for piece in self._generate(prompt, max_new_tokens):
                yield model, piece

    def choose(self, question: Example) -> dict[str, np.ndarray]:
        """The probabilities of an example's candidates, float64 [C], by model.

        Raises:
            DataError: the example leaves no room for its candidates. ModelError: the model lacks one of its tokens.
            Diverged: a score is not a finite number.
        """
        config = self._config
        example = encode(in_style(question, config.prompt_style), self._loaded.tokenizer, config.max_tokens)
        self._loaded.check_tokens(example.tokens)
        batch = make_batch([example], micro_batch_shapes(config))
        causal = CausalLM(self._loaded.model, compute_dtype())
        found = {}
        for model in self._models():
            (grid,) = Scorer(causal).scores(batch, causal.view())
            if not np.isfinite(grid).all():
                raise Diverged.not_finite("the score of a label")
            found[model] = candidate_probabilities(grid[0])
        return found

    def _models(self) -> Iterator[str]:
        """The names of the models; each has its weights until the next is asked for."""
        for model, state in self._states.items():
            for name, value in state.items():
                self._slots[name].set(value)
            yield model

    def _generate(self, prompt: str, max_new_tokens: int) -> Iterator[str]:
        from mlx_lm import stream_generate

        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        example = in_style(Example(prompt, (), None), self._config.prompt_style)
        # Decoded together with the prompt: mlx-lm's own pieces lose the space that joins the first word to it.
        tokens = encode_prompt(example, tokenizer)
        self._loaded.check_tokens(tokens)
        if self._context is not None:
            max_new_tokens = min(max_new_tokens, self._context - len(tokens))
        if max_new_tokens < 1:
            raise DataError(
                f"the prompt has {len(tokens)} tokens, and the context length of the model is {self._context}, "
                "answer included",
                "shorten the prompt",
            )
        shown = tokenizer.decode(tokens)
        places = count()

        def draw(logprobs: mx.array) -> mx.array:
            return mx.array(next_tokens(np.array(logprobs.astype(mx.float32)), self._sampling, [0], [next(places)]))

        sampler = draw if self._sampling else None
        for response in stream_generate(model, tokenizer, list(tokens), max_tokens=max_new_tokens, sampler=sampler):
            check_numbers(np.array(response.logprobs[response.token].astype(mx.float32)))
            if response.finish_reason == "stop":
                return
            tokens.append(response.token)
            text = tokenizer.decode(tokens)
            # A character whose bytes are not all there yet decodes to the replacement character.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
