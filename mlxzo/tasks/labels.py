"""Labels of own data, and lists of them in messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import require_text


def label_text(value: Any, field: str = "label") -> str:
    """A label as text: whole numbers in digits, true and false as in JSON.

    Raises:
        ValueError: the value is of another kind, or empty.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return require_text({field: value}, field).strip()


def listed(words: Iterable[str], limit: int = 12) -> str:
    """Words for a message; beyond `limit`, the rest is counted."""
    words = list(words)
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
