"""Conversations in the format of chat interfaces, which mlx-lm reads: messages, their content in parts, and tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.formatting import shown
from .base import Example, Message, kind_of, require, require_text

_ROLES = ("system", "user", "assistant", "tool")


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row; the last is one of the assistant, after at least one other.

    Raises:
        ValueError: the row has no such messages; the message says which is wrong.
    """
    messages = _messages(row)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError("'messages' must end with a message of the assistant that answers another")
    return messages


def prompt_of(row: Mapping[str, Any]) -> Example:
    """The example of a row without an answer: {"messages"} that end before the assistant's, or {"prompt"}.

    Raises:
        ValueError: the row has neither; the message says what is wrong.
    """
    if "messages" not in row:
        return Example(require_text(row, "prompt").rstrip(" "), (), None)
    messages = _messages(row)
    if not messages or messages[-1].role not in ("user", "tool"):
        raise ValueError("'messages' must end with a message of the user, or of a tool, which the model answers")
    return Example(transcript(messages), (), None, messages=tuple(messages), tools=tools_of(row))


def transcript(messages: Iterable[Message]) -> str:
    """A conversation up to the assistant's answer, for people to read."""
    return "".join(f"{message.role}: {readable(message)}\n" for message in messages) + "assistant:"


def readable(message: Message) -> str:
    """A message for people to read: its content, and the calls of tools that it makes."""
    calls = message.more.get("tool_calls")
    return message.content + (json.dumps(calls, ensure_ascii=False, default=str) if calls else "")


def has_answer(row: Mapping[str, Any]) -> bool:
    """Returns whether the last message of a row is the assistant's, as far as it can be read."""
    held = row.get("messages")
    last = held[-1] if isinstance(held, list) and held else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def _messages(row: Mapping[str, Any]) -> list[Message]:
    held = require(row, "messages")
    if not isinstance(held, list):
        raise ValueError(f"'messages' must be a list, not {kind_of(held)}")
    messages = []
    for number, item in enumerate(held, start=1):
        try:
            messages.append(_message(item))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return messages


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The tools that a row describes to the model: a list of objects, or the JSON text of one.

    Raises:
        ValueError: they are anything else.
    """
    held = row.get("tools")
    if isinstance(held, str):
        held = _from_json(held, "'tools'")
    if held is None:
        return ()
    return tuple(_objects(held, "'tools'"))


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"it must be an object, not {kind_of(item)}")
    role = require_text(item, "role")
    if role not in _ROLES:
        raise ValueError(f"the role {shown(role)} is not system, user, assistant or tool")
    # In parquet every message has every key.
    more = {name: value for name, value in item.items() if name not in ("role", "content") and value is not None}
    if calls := more.get("tool_calls"):
        more["tool_calls"] = [_call(call) for call in _objects(calls, "'tool_calls'")]
    # An empty system message keeps a template from writing one of its own; a tool may have nothing to say.
    may_be_empty = calls or role in ("system", "tool")
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(map(_text_of, content))
    if may_be_empty and not content:
        return Message(role, "", more)
    return Message(role, require_text(item if content is None else {"content": content}, "content"), more)


def _text_of(part: Any) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, Mapping) and isinstance(text := part.get("text"), str) and part.get("type", "text") == "text":
        return text
    kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
    raise ValueError(f"'content' has a part that is no text but {shown(kind)}, and a model is trained on text alone")


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool call with its arguments as an object, which templates expect, where the row has them as JSON text."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("'tool_calls' must name the function of each call")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    function = {**function, "arguments": _from_json(arguments or "{}", "the arguments of a tool call")}
    return {**call, "function": function} if "function" in call else function


def _objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{name} must be a list of objects")
    return value


def _from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} are no valid JSON: {shown(text)}") from None
