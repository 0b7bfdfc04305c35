"""Names of runs that follow from what the runs are, and the seeds that runs are made with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.formatting import shown
from ..core.options import former_name

LONGEST_NAME = 40
_LONGEST_SLUG = 45


def read_seeds(raw: Any) -> tuple[int, ...]:
    """The seeds in a list, in text such as `0,1,2`, or in one number.

    Raises:
        ValueError: with a sentence naming what is expected.
    """
    words = raw if isinstance(raw, list) else str(raw).split(",")
    try:
        seeds = tuple(int(str(word).strip()) for word in words)
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise ValueError(f"expected different whole numbers such as 0,1,2, not {shown(raw)}")
    return seeds


def read_name(raw: Any) -> str:
    """The name of a sweep or a comparison, with which the names of its runs begin.

    Raises:
        ValueError: with a sentence naming what is expected.
    """
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}", str(raw)):
        raise ValueError(
            f"{shown(raw)} must be 1-{LONGEST_NAME} letters, digits, dots, dashes or underscores, and start with a "
            "letter or digit"
        )
    return str(raw)


def slug(text: str, otherwise: str) -> str:
    """A text as part of a file name; a long one is cut and ends in a digest of the whole.

    Args:
        otherwise: returned for a text without a letter or digit that file names can hold.
    """
    found = dashed(text).strip("-.")
    if not found:
        return otherwise
    return found if len(found) <= _LONGEST_SLUG else f"{found[: _LONGEST_SLUG - 7]}-{digest(text)}"


def dashed(text: str) -> str:
    """A text with a dash in place of characters that file names do not hold."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)


def digest(text: str) -> str:
    """Six hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def options_digest(values: Mapping[str, Any]) -> str:
    """The digest of options and their values; it stays the same when an option is renamed."""
    return digest(json.dumps(dict(sorted((former_name(key), str(value)) for key, value in values.items()))))


def base_name(model: str) -> str:
    """A model's name without the folders of a path or the owner of a Hugging Face id."""
    return Path(model.rstrip("/")).name
