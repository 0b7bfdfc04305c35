"""Model folders: completeness checks, and conversion that runs exactly once across processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..core.errors import ModelError
from ..core.files import FileProgress, Report, disk_full, irregular_entries, is_disk_full, lock, publish_folder
from ..core.parsing import CONTENT_ERRORS, read_json, read_json_object, reason_of
from .adapter_folder import ADAPTER_CONFIG
from .safetensors_file import safetensors_problem

# Any of these sets of files is a tokenizer.
TOKENIZER_FILES = (("tokenizer.json",), ("tokenizer.model",), ("tiktoken.model",), ("vocab.json", "merges.txt"))


def check_folder(folder: Path) -> None:
    """Raises ModelError with everything that a folder lacks, or with what it is instead of a model."""
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        raise ModelError(
            f"{folder} is an adapter, not a model",
            "make a model of both: `mlx_lm.fuse --model BASE --adapter-path FOLDER --save-path MODEL`, or of a run "
            "`mlxzo export RUN --to fused`",
        )
    if (folder / "events.jsonl").exists():
        raise ModelError(f"{folder} is a run, not a model", "make a model of it: `mlxzo export RUN --to fused`")
    if problems := folder_problems(folder):
        several = len(problems) > 1
        raise ModelError(
            f"{folder} is not a complete model" + ("" if several else f": {problems[0]}"),
            "copy what is missing from the original model, or convert it with `mlx_lm.convert`",
            problems if several else (),
        )


def context_length(folder: Path) -> int | None:
    """Longest sequence of a complete model, in tokens; None if its config.json does not say."""
    config = read_json_object(folder / "config.json", ModelError, "copy it from the original model")
    if isinstance(text := config.get("text_config"), dict):
        config = text
    length = config.get("max_position_embeddings")
    return length if type(length) is int and length > 0 else None


def folder_problems(folder: Path) -> list[str]:
    """The problems of a folder as a model for mlx-lm, one clause each; empty if it is complete."""
    if problems := [f"{Path(error.filename).name} {reason_of(error)}" for error in irregular_entries(folder)]:
        return problems
    try:
        config = read_json(folder / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            problems.append("config.json does not say its model_type")
    except FileNotFoundError:
        problems.append("config.json is missing")
    except (OSError, *CONTENT_ERRORS) as error:
        problems.append(f"config.json {reason_of(error)}")
    problems += _weight_problems(folder)
    if not any(all((folder / name).exists() for name in names) for names in TOKENIZER_FILES):
        problems.append("the tokenizer is missing: tokenizer.json (or tokenizer.model)")
    if not (folder / "tokenizer_config.json").exists():
        problems.append("tokenizer_config.json is missing")
    return problems


def _weight_problems(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            named = sorted(set(read_json(index)["weight_map"].values()))
        except (OSError, *CONTENT_ERRORS):
            return [f"{index.name} is not a valid index of weights"]
        if missing := [name for name in named if not (folder / str(name)).exists()]:
            return [f"weights are missing: {', '.join(missing)}"]
    if files := sorted(folder.glob("model*.safetensors")):
        return [problem for file in files if (problem := safetensors_problem(file))]
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    found = f" (there is {', '.join(others[:3])}, which mlx-lm does not load)" if others else ""
    return [f"weights are missing: model*.safetensors{found}"]


def make_once(final: Path, name: str, build: Callable[[Path], Path], report: Report) -> Path:
    """The folder `final`, made by `build` unless it exists; it appears complete or not at all.

    `build` gets an empty scratch folder beside `final` and returns the finished folder inside it. Of several processes
    one builds and the others wait. Remains of a killed process are removed by the next.

    Raises:
        ModelError: `build` fails, or the folder cannot be written.
        DoesNotFit: the disk is full.
    """

    def ready() -> bool:
        return final.exists() and not folder_problems(final)

    def waiting() -> None:
        report(FileProgress(f"Waiting for another process that is preparing {name}"))

    if ready():
        return final
    prefix = f".{final.name}.part-"
    try:
        with lock(final.parent / f".{final.name}.lock", waiting):
            if ready():
                return final
            for leftover in final.parent.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if final.exists():  # somebody deleted or damaged a file in it
                shutil.rmtree(final)
            scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
            try:
                publish_folder(build(scratch), final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(f"{name} under {final.parent}") from error
        raise ModelError(
            f"{name} cannot be stored under {final.parent}: {error}",
            "set MLXZO_HOME to a folder you can write to",
        ) from error
    return final
