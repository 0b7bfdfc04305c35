"""Loading a model folder with mlx-lm, and the fingerprint of its weights."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..core.errors import ModelError
from ..core.failures import raise_shortage
from ..core.formatting import brief, shown
from ..core.meter import return_freed_memory
from .architecture import LAYER_KEYS
from .folder import check_folder
from .resolve import ResolvedModel
from .safetensors_file import read_header

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass
class LoadedModel:
    """A model ready to run: mlx-lm's module and tokenizer wrapper, its folder and its config.json."""

    model: nn.Module
    tokenizer: Any
    path: Path
    config: dict

    @cached_property
    def embedding_rows(self) -> int:
        """Number of tokens that the model can read: the rows of its largest embedding."""
        kinds = nn.Embedding | nn.QuantizedEmbedding
        rows = (module["weight"].shape[0] for module in self.model.modules() if isinstance(module, kinds))
        return max(rows, default=sys.maxsize)

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """Checks that the embedding has a row for every token: MLX would read the memory behind it.

        Raises:
            ModelError: it has not; the sizes of tokenizer and embedding are named.
        """
        highest = max(tokens, default=0)
        if highest >= self.embedding_rows:
            raise ModelError(
                f"the tokenizer in {self.path} has {len(self.tokenizer)} tokens and the model {self.embedding_rows}: "
                f"it cannot read token {highest}, {self.tokenizer.decode([highest])!r}",
                "copy the tokenizer files from the original model",
            )


def load_tokenizer(resolved: ResolvedModel | Path | str) -> Any:
    """Loads a folder's tokenizer, without its weights.

    Raises:
        ModelError: incomplete folder, or a broken tokenizer.
    """
    from mlx_lm.utils import load_config

    path = _folder(resolved)
    check_folder(path)
    return _load_tokenizer(path, load_config(path))


def load_model(resolved: ResolvedModel | Path | str, *, dtype: str = "auto", tokenizer: Any = None) -> LoadedModel:
    """Loads a folder's weights and tokenizer; code that comes with a model is never executed.

    Args:
        resolved: the result of `resolve`, or a folder.
        tokenizer: the result of `load_tokenizer`, if the caller has it.
        dtype: `auto` keeps every tensor as stored; `float32`, `float16` or `bfloat16` casts the floating ones at rest
            (scales and biases of quantised layers included; packed integers stay).

    Raises:
        ModelError: incomplete folder, model type mlx-lm does not know, weights that do not match the config, or a
            broken tokenizer.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is auto, {', '.join(DTYPES)}; not {dtype!r}")
    path = _folder(resolved)
    check_folder(path)
    model, config = _load_weights(path)
    # Before the weights, since a large tokenizer takes several times its size while it is read.
    if tokenizer is None:
        tokenizer = _load_tokenizer(path, config)
    return_freed_memory()
    if dtype != "auto":
        model.set_dtype(DTYPES[dtype])
    try:
        # One after the other, so that each stored tensor is freed when it is cast.
        for _, parameter in tree_flatten(model.parameters()):
            mx.eval(parameter)
    except (RuntimeError, ValueError) as error:
        raise_shortage(error)
        raise ModelError(f"the weights in {path} cannot be read", "download the model again", _lines(error)) from error
    return LoadedModel(model, tokenizer, path, config)


def _folder(resolved: ResolvedModel | Path | str) -> Path:
    return resolved.path if isinstance(resolved, ResolvedModel) else Path(resolved)


def _load_weights(path: Path) -> tuple[nn.Module, dict]:
    from mlx_lm import utils

    config = utils.load_config(path)
    if "model_file" in config:  # mlx-lm's way to bring an architecture along
        raise ModelError(
            f"{path} needs code that comes with the model ({config['model_file']}), which mlxzo never runs",
            "use a model of an architecture that mlx-lm itself has",
        )
    _check_layers(path, config)
    model_type = config["model_type"]
    module = utils.MODEL_REMAPPING.get(model_type, model_type)
    try:
        importlib.import_module(f"mlx_lm.models.{module}")
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"{path} is a model of type {shown(model_type)}, which mlx-lm does not know",
            "use another model, or install a newer mlx-lm",
        ) from error
    try:
        with _without_wildcards(path) as plain:
            return utils.load_model(plain, lazy=True)
    except Exception as error:  # mlx-lm raises whatever a wrong config or file happens to cause
        raise_shortage(error)
        raise ModelError(
            f"mlx-lm cannot load the model in {path}: its weights and config.json do not fit together",
            "download the model again, or convert it with `mlx_lm.convert`",
            _lines(error),
        ) from error


def _check_layers(path: Path, config: dict) -> None:
    """Checks that config.json claims no more layers than the weight files have tensors: each would be made first."""
    text = config.get("text_config")
    claims = [each.get(key) for each in (config, text) if isinstance(each, dict) for key in LAYER_KEYS]
    layers = max((claim for claim in claims if isinstance(claim, int)), default=0)
    tensors = sum(len(read_header(file).spans) for file in path.glob("model*.safetensors"))
    if layers > tensors:
        raise ModelError(
            f"{path / 'config.json'} has {shown(layers)} layers, and the weight files have {tensors} tensors",
            "copy config.json from the original model",
        )


@contextlib.contextmanager
def _without_wildcards(path: Path) -> Iterator[Path]:
    """A path of a folder that mlx-lm can search for weights: one with brackets would be a pattern to it."""
    if glob.escape(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlxzo-model-") as folder:
        link = Path(folder) / "model"
        link.symlink_to(path.absolute())
        yield link


def _load_tokenizer(path: Path, config: dict) -> Any:
    from mlx_lm.utils import load_tokenizer

    try:
        # Without an explicit False transformers asks on the terminal. A large model_max_length avoids its warning about
        # long texts, which are cut elsewhere.
        settings = {"trust_remote_code": False, "model_max_length": sys.maxsize}
        return load_tokenizer(path, settings, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:  # transformers raises whatever a wrong file happens to cause
        raise_shortage(error)
        raise ModelError(
            f"the tokenizer in {path} cannot be loaded",
            "copy tokenizer.json and tokenizer_config.json from the original model",
            _lines(error),
        ) from error


def _lines(error: Exception) -> list[str]:
    """The message of another library, cut to a few short lines."""
    return [f"{type(error).__name__}: {brief(line)}" for line in str(error).splitlines()[:8]]


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model; a packed quantised weight counts as the weights it stands for, scales do not."""
    count = 0
    for _, module in model.named_modules():
        for leaf, value in module.items():
            # Arrays under a leading underscore, such as rotary frequencies, are no parameters.
            if not isinstance(value, mx.array) or leaf.startswith("_"):
                continue
            if "scales" not in module:
                count += value.size
            elif leaf == "weight":
                count += value.size * 32 // module.bits
            elif leaf == "bias":
                count += value.size
    return count


def weights_fingerprint(model: nn.Module) -> str:
    """The fingerprint of every parameter of a model."""
    return fingerprint(dict(tree_flatten(model.parameters())))


def described(name: str, tensor: mx.array) -> bytes:
    """The text that a fingerprint hashes before a tensor's bytes."""
    return f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode()


def fingerprint(parameters: Mapping[str, mx.array]) -> str:
    """SHA-256, in hex, over the name, dtype, shape and bytes of parameters in the order of their names.

    A contiguous tensor is not copied; of the others one copy at a time is made.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        digest.update(described(name, tensor))
        flat = mx.contiguous(tensor).reshape(-1).view(mx.uint8)
        # MLX's stubs lack `__buffer__`, which its arrays have.
        digest.update(memoryview(cast(bytes, flat)))
    return digest.hexdigest()
