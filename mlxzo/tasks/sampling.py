"""Sampling of rows by permutations that are the same on every machine and in every version."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Any


def stable_permutation(n: int, *key: str | int) -> list[int]:
    """A permutation of range(n) determined by `key`: indices sorted by their BLAKE2b digests under the key.

    Without a random generator, so no library version, platform or global state can change the result.
    """
    keyed = blake2b(json.dumps(key).encode(), digest_size=16)

    def digest(index: int) -> bytes:
        hasher = keyed.copy()
        hasher.update(index.to_bytes(8, "little"))
        return hasher.digest()

    return sorted(range(n), key=digest)


def sample(rows: list, limit: int | None, *key: str | int) -> list:
    """The first `limit` rows (None: all) of the permutation under `key`: samples of one key are nested."""
    return [rows[i] for i in stable_permutation(len(rows), *key)[:limit]]


def sample_of_each(rows: list, group: Callable[[Any], Hashable], count: int, *key: str | int) -> list:
    """The first `count` rows of each group in the permutation under `key`; all rows of a smaller group."""
    taken: Counter[Hashable] = Counter()
    chosen = []
    for row in sample(rows, None, *key):
        taken[group(row)] += 1
        if taken[group(row)] <= count:
            chosen.append(row)
    return chosen
