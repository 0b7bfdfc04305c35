"""A summary of the data of a run: rows, lengths, labels, truncated and repeated examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.formatting import counted
from ..tasks.base import Example, listed
from .encoding import EncodedExample


@dataclass(frozen=True)
class SplitSummary:
    """Statistics of one split.

    Attributes:
        split: its name.
        rows: number of examples.
        tokens_median, tokens_95th, tokens_most: tokens of an example's longest sequence, after truncation.
        truncated: number of examples longer than `max_tokens`, which were cut.
        labels: number of examples of each label, most frequent first; empty if candidates differ between rows.
        repeated: number of examples with the prompt, candidates and target of an earlier one.
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
        """The statistics in one line."""
        parts = [
            f"{self.split}: {counted(self.rows, 'row')} of {counted(self.tokens_median, 'token')} in the median, "
            f"{self.tokens_95th} at the 95th percentile, {self.tokens_most} at most"
        ]
        if self.labels:
            parts.append(listed(f"{label} {100 * count / self.rows:.0f} %" for label, count in self.labels.items()))
        if self.truncated:
            parts.append(f"{self.truncated} cut")
        if self.repeated:
            parts.append(f"{self.repeated} repeated")
        return "; ".join(parts)


def summarise(split: str, examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> SplitSummary:
    """Computes the statistics of a split with at least one example.

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
    """The warning about prompts shared between splits."""
    return f"{count} validation or test examples have a prompt that is also a training prompt"


def share_candidates(examples: Sequence[Example]) -> bool:
    """Returns whether all examples choose among the same labels."""
    candidates = {example.candidates for example in examples}
    return len(candidates) == 1 and all(len(each) > 1 for each in candidates)
