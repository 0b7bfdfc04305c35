"""Labels of own data: how a value of a row becomes a label, and how labels are listed in a message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import require_text


def label_text(value: Any, field: str = "label") -> str:
    """A label as text: whole numbers in digits, true and false as JSON spells them.

    Raises ValueError for any other kind of value, and for an empty label.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return require_text({field: value}, field).strip()


def listed(words: Iterable[str], limit: int = 12) -> str:
    """Words for a message, the rest counted where they are many."""
    words = list(words)
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
