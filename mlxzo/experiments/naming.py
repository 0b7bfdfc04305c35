"""What comparisons and batches have in common: seeds, and names of runs that follow from what the runs are."""

from __future__ import annotations

import hashlib
import re
from typing import Any

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
        raise ValueError(f"expected different whole numbers such as 0,1,2, not {raw!r}")
    return seeds


def read_name(raw: Any) -> str:
    """The name of a comparison or a batch, which those of its runs begin with.

    Raises:
        ValueError: with a sentence naming what is expected.
    """
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}", str(raw)):
        raise ValueError(
            f"{raw!r} must be 1-{LONGEST_NAME} letters, digits, dots, dashes or underscores, and start with a letter "
            "or digit"
        )
    return str(raw)


def slug(text: str, otherwise: str) -> str:
    """A text as part of a file name; one cut short ends in a digest of the whole.

    Args:
        otherwise: for a text without a letter or digit that file names can be made of.
    """
    found = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
    if not found:
        return otherwise
    return found if len(found) <= _LONGEST_SLUG else f"{found[: _LONGEST_SLUG - 7]}-{digest(text)}"


def digest(text: str) -> str:
    """Six hex digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]
