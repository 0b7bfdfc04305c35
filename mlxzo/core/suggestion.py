"""The known name that an unknown one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(text: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean NAME?`, or an empty text if no known name is close.

    Args:
        prefix: what comes before each name, such as the dashes of a flag; it is not compared.
    """
    names = [name.removeprefix(prefix) for name in known]
    text = text.removeprefix(prefix)
    # A slip of the keyboard is closer than this; a word that merely shares letters, such as `epochs` and `steps`, is
    # not. In a short word one letter is a large share.
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.75 if len(text) > 4 else 0.65)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
