"""Rows of public datasets, from parquet files on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from .base import Example, HubSource, Task
from .parquet import parquet_rows
from .row_file import RowFile
from .row_problems import bad_rows
from .sampling import stable_permutation

VALIDATION_ROWS = 500
TEST_ROWS = 1000
TIMEOUT_SECONDS = 5.0
"""Time for the hub to answer before it counts as unreachable."""

_FIX = "pass --data DIR with train.jsonl and validation.jsonl, or use --task reviews, which needs no network"


def fetch_splits(task: Task, progress: Callable[[str], None]) -> dict[str, list[Example]]:
    """The splits of a task with a `hub` source, divided as in Malladi et al. 2023.

    The public validation split is the test split. Of the public training split, `VALIDATION_ROWS` fixed rows are the
    validation split; training rows are drawn from the rest. Without a public validation split, `TEST_ROWS` more of them
    are the test split.

    Raises:
        DataError: the files are neither in the Hugging Face cache nor available from the hub, or lack fields of the
            task.
    """
    source = task.hub
    if source is None:
        raise ValueError(f"the task {task.name} has no hub source")

    def public(filename: str) -> list[Example]:
        progress(f"{source.repo}: {filename}")
        return read_parquet(task, fetch(source, filename))

    rows = public(source.train)
    order = stable_permutation(len(rows), "hub validation")
    validation, rest = order[:VALIDATION_ROWS], order[VALIDATION_ROWS:]
    if source.heldout is None:
        test, rest = [rows[i] for i in rest[:TEST_ROWS]], rest[TEST_ROWS:]
    else:
        test = public(source.heldout)
    return {"train": [rows[i] for i in sorted(rest)], "validation": [rows[i] for i in validation], "test": test}


def fetch(source: HubSource, filename: str) -> str:
    """Path of a dataset's file in the Hugging Face cache, downloaded if it is not there.

    Raises:
        DataError: the hub cannot be reached, or refuses; raised within seconds.
    """
    import huggingface_hub as hf

    where: dict[str, Any] = {"repo_type": "dataset", "revision": source.revision}
    cached = hf.try_to_load_from_cache(source.repo, filename, **where)
    if isinstance(cached, str):
        return cached
    try:
        # One request without retries: hf_hub_download alone would retry for half a minute and more.
        url = hf.hf_hub_url(source.repo, filename, **where)
        hf.get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
        return hf.hf_hub_download(source.repo, filename, etag_timeout=TIMEOUT_SECONDS, **where)
    except Exception as error:
        # The library's exceptions depend on the HTTP client of its version: the type goes into the details.
        kind = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(f"{source.repo} cannot be fetched: {_reason(error)}", _FIX, [kind]) from None


def _reason(error: Exception) -> str:
    """The reason of a failed download, in words."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    response = getattr(error, "response", None)
    if response is not None:
        return f"the hub answered with HTTP status {response.status_code}"
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub cannot be reached (HF_HUB_OFFLINE is set)"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return os.strerror(error.errno).lower()
    return "the hub cannot be reached"


def read_parquet(task: Task, path: str) -> list[Example]:
    """The examples of a parquet file.

    Raises:
        DataError: the file is damaged, lacks a field of the task, or holds a row the task rejects.
    """
    rows = parquet_rows(Path(path), f"delete it, or {_FIX}", task.fields)
    found = RowFile(Path(path), list(enumerate(rows, start=1)), unit="row")
    examples = found.examples(task.example_from_row)
    if found.problems:
        raise bad_rows(found.located(), _FIX)
    return examples
