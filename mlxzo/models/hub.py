"""Models from the Hugging Face hub: its cache, its availability, and the download.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HOME and the proxy variables mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..core.errors import MlxzoError, ModelError
from ..core.files import FileProgress, Report, disk_full, is_disk_full
from ..core.formatting import shown

# The files that mlx-lm reads; none that Python would execute or unpickle.
ALLOW_PATTERNS = ["*.json", "*.jsonl", "*.jinja", "*.txt", "*.tiktoken", "model*.safetensors", "tokenizer.model"]
REACH_SECONDS = 4.0


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT as it is now, or huggingface_hub's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def offline() -> bool:
    """True if the user has disabled the hub."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cached_snapshot(repo: str, revision: str) -> Path | None:
    """The snapshot of a repository that an earlier download left in the hub's cache, if all its files are there."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(repo, revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def partial_snapshot(repo: str, revision: str) -> Path | None:
    """The snapshot in the hub's cache even if files of the repository are missing, such as other programs never read;
    None if there is not so much as a config.json."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, "config.json", os.environ.get("HF_HUB_CACHE") or None, revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def why_unreachable() -> str | None:
    """The reason why the hub cannot be used, in a few words; None if it answers within a few seconds."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint(), timeout=REACH_SECONDS)
    except Exception as error:  # the HTTP library under huggingface_hub differs between its versions
        return f"{endpoint()} does not answer ({type(error).__name__})"
    return None


def download(repo: str, revision: str, report: Report) -> Path:
    """Downloads the files that mlx-lm needs into the hub's cache, and resumes an interrupted download.

    Raises:
        ModelError: not found, gated, no such revision, or the connection broke.
        DoesNotFit: the disk is full.
    """
    bar = _progress_class(f"Downloading {repo}", report)
    try:
        return _snapshot(repo, revision, endpoint=endpoint(), tqdm_class=bar)
    except Exception as error:  # every failure of the client becomes one sentence
        raise _plain_error(repo, revision, error) from error


def _snapshot(repo: str, revision: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    cache = os.environ.get("HF_HUB_CACHE") or None
    # A pattern would also fit files in folders, which are the model in other formats.
    wanted = {"allow_patterns": ALLOW_PATTERNS, "ignore_patterns": ["*/*"]}
    return Path(snapshot_download(repo, revision=revision, cache_dir=cache, **wanted, **options))


def _plain_error(repo: str, revision: str, error: Exception) -> MlxzoError:
    from huggingface_hub import errors

    if is_disk_full(error):
        return disk_full(f"{repo} in the hub's cache")
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{shown(repo)} is not the name of a hub repository", "write it as organisation/name")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{repo} is gated: its owner asks you to accept terms before you download it",
            f"accept them on {endpoint()}/{repo}, then set HF_TOKEN or run `hf auth login`",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{repo} has no revision {shown(revision)}", "name a branch, tag or commit it has")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"the hub has no repository {repo}, or it is private",
            "check the spelling; for a private one set HF_TOKEN or run `hf auth login`",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ModelError(
            f"the hub refuses access to {repo}: the access token is missing or wrong",
            "correct or unset HF_TOKEN, or run `hf auth login`",
        )
    return ModelError(
        f"the download of {repo} from {endpoint()} failed",
        "try again: the download resumes where it stopped",
        [redact(f"{type(error).__name__}: {error}")],
    )


def redact(text: str) -> str:
    """`text` without access tokens, signed query strings and passwords in addresses."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "***", text)
    text = re.sub(r"(https?://[^\s?\"']+)\?[^\s\"']+", r"\1", text)
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def _progress_class(label: str, report: Report) -> type:
    """A tqdm class that shows nothing and passes bytes on to `report`.

    huggingface_hub makes three bars of it: files fetched, bytes from the network, bytes on the disk. Only the last
    (unit B, and not the transfer) is reported.
    """
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any):
            named = str(options.pop("name", ""))
            self.counts_bytes = options.get("unit") == "B" and not named.endswith(".transfer")
            super().__init__(*arguments, **{**options, "disable": True})
            # A disabled tqdm keeps no state: keep it here.
            self.total, self.n = options.get("total"), options.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            self.refresh()

        def refresh(self, *arguments: Any, **options: Any) -> None:
            if self.counts_bytes:
                report(FileProgress(label, int(self.n), int(self.total) if self.total else None))

    return Bar
