"""A task's prompts as turns of a conversation, for models that were tuned to converse (`prompt_style: chat`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .base import Example, Message


def in_style(example: Example, style: str) -> Example:
    """An example as a prompt style has it; in `chat`, the prompt is what a user says, and a candidate what the
    assistant answers, without the white space that would join the two.

    What is a conversation already, and a text without a prompt, stay as they are.
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
    """A conversation that comes after others, each of which ends with its answer."""
    turns = [
        message
        for one in shown
        if one.target is not None
        for message in (*one.messages, Message("assistant", one.candidates[one.target]))
    ]
    return replace(example, messages=(*turns, *example.messages))
