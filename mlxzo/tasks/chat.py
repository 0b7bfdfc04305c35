"""Prompts as turns of a conversation, for models tuned on conversations (`prompt_style: chat`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .base import Example, Message


def in_style(example: Example, style: str) -> Example:
    """An example in a prompt style. In `chat` the prompt is a user's message and a candidate the assistant's, without
    the white space that would join the two; conversations, and texts without a prompt, do not change.
    """
    if style == "plain" or example.messages or not example.prompt.strip():
        return example
    return replace(
        example,
        candidates=tuple(candidate.strip() for candidate in example.candidates),
        answers=tuple(answer.strip() for answer in example.answers),
        messages=(Message("user", example.prompt.strip()),),
    )


def after_turns(shown: Sequence[Example], example: Example) -> Example:
    """An example preceded by the conversations of others, each with its answer."""
    turns = [
        message
        for one in shown
        if one.target is not None
        for message in (*one.messages, Message("assistant", one.candidates[one.target]))
    ]
    return replace(example, messages=(*turns, *example.messages))
