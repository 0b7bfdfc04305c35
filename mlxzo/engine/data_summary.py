"""What a user should know of data before a run: rows, lengths, labels, what is cut and what occurs twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tasks.base import Example
from ..tasks.labels import listed
from .encoding import EncodedExample
from .evaluation import share_candidates


@dataclass(frozen=True)
class SplitSummary:
    """One split in figures.

    Attributes:
        split: its name.
        rows: examples.
        tokens_median, tokens_95th, tokens_most: tokens of an example's longest sequence, after cutting.
        truncated: examples that are longer than `max_tokens` and were cut.
        labels: examples of each label word, most frequent first; empty where candidates differ from row to row.
        repeated: examples whose prompt and answers an earlier one of the split has already.
    """

    split: str
    rows: int
    tokens_median: int
    tokens_95th: int
    tokens_most: int
    truncated: int
    labels: dict[str, int]
    repeated: int

    @property
    def text(self) -> str:
        """In one line."""
        parts = [
            f"{self.split}: {self.rows} rows of {self.tokens_median} tokens in the median, {self.tokens_95th} at the "
            f"95th percentile, {self.tokens_most} at most"
        ]
        if self.labels:
            parts.append(listed(f"{label} {100 * count / self.rows:.0f} %" for label, count in self.labels.items()))
        if self.truncated:
            parts.append(f"{self.truncated} cut")
        if self.repeated:
            parts.append(f"{self.repeated} repeated")
        return "; ".join(parts)


def summarise(split: str, examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> SplitSummary:
    """The figures of one split, which is not empty.

    Args:
        encoded: the same examples as tokens.
    """
    lengths = [example.length for example in encoded]
    median, high, most = (int(np.percentile(lengths, share, method="higher")) for share in (50, 95, 100))
    counts = Counter(example.candidates[example.target].strip() for example in examples if example.target is not None)
    return SplitSummary(
        split=split,
        rows=len(examples),
        tokens_median=median,
        tokens_95th=high,
        tokens_most=most,
        truncated=sum(example.truncated for example in encoded),
        labels=dict(counts.most_common()) if share_candidates(examples) else {},
        repeated=len(examples) - len({(example.prompt, example.candidates, example.target) for example in examples}),
    )


def duplicates_text(count: int) -> str:
    """What is said where splits share prompts."""
    return f"{count} validation or test examples have a prompt that is also a training prompt"
