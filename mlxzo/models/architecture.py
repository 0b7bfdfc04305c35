"""The figures of a model that its memory follows from, read without its weights. Imports no MLX.

They come from models.yaml, or from the config.json of a folder, in the key names of Hugging Face and mlx-lm. Where a
folder's architecture is not known here it is taken for a llama-like decoder, and what was assumed is said.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.files import mlxzo_home
from . import pypi_mirror
from .folder import folder_problems
from .registry import MODEL_TYPES, ModelEntry, Quantization, find, load_registry

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Gemma 3: one layer in six attends to everything, the others to a window of so many tokens.
_GEMMA_WINDOW, _GEMMA_PATTERN = 512, 6


@dataclass(frozen=True)
class Tensor:
    """One parameter: its dotted name as mlx-lm has it, its shape (a vector has one row), and how it is quantised."""

    name: str
    rows: int
    columns: int
    layer: int | None = None
    quantization: Quantization | None = None

    @property
    def size(self) -> int:
        return self.rows * self.columns

    @property
    def path(self) -> str:
        """The module it belongs to."""
        return self.name.rpartition(".")[0]

    def stored_bytes(self, dtype_bytes: int) -> int:
        """Bytes at rest; a quantised tensor brings one scale and one offset a group along."""
        if self.quantization is None:
            return self.size * dtype_bytes
        groups = self.size // self.quantization.group_size
        return self.size * self.quantization.bits // 8 + 2 * groups * dtype_bytes


@dataclass(frozen=True)
class ModelShape:
    """A decoder's figures, as its config.json gives them.

    Attributes:
        dtype: of the floating tensors at rest; of the scales, where the model is quantised.
        quantization: of the linear layers; `embedding_quantization` of embedding and head. None: not quantised.
        window: tokens that layers with a sliding window attend to; None where every layer attends to all.
        qkv_bias, qk_norm: biases on queries, keys and values; norms of queries and keys.
        layer_norms: norms a layer, those of queries and keys not counted.
        fused: queries, keys and values are one matrix, gate and up another (Phi-3).
        stored_bytes: of the weight files, where there are some; else it is computed.
        assumed: what was taken for granted because nothing said it, in words.
    """

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    dtype: str = "bfloat16"
    quantization: Quantization | None = None
    embedding_quantization: Quantization | None = None
    window: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    layer_norms: int = 2
    fused: bool = False
    stored_bytes: int | None = None
    assumed: tuple[str, ...] = ()

    @property
    def queries(self) -> int:
        """Width of all heads' queries together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all heads' keys together; the values have the same."""
        return self.kv_heads * self.head_dim

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every parameter, once."""
        return tuple(self._tensors())

    @cached_property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        return sum(tensor.size for tensor in self.tensors if tensor.layer == 0)

    @property
    def quantised(self) -> bool:
        return self.quantization is not None

    def dtype_at_rest(self, dtype: str = "auto") -> str:
        """The dtype of floating tensors in a run whose option `dtype` is this."""
        return self.dtype if dtype == "auto" else dtype

    def weight_bytes(self, dtype: str = "auto") -> int:
        """Bytes of the weights in memory, for a run's option `dtype`."""
        if dtype in ("auto", self.dtype) and self.stored_bytes is not None:
            return self.stored_bytes
        size = DTYPE_BYTES[self.dtype_at_rest(dtype)]
        return sum(tensor.stored_bytes(size) for tensor in self.tensors)

    def _tensors(self) -> Iterator[Tensor]:
        d, q, k, f = self.hidden, self.queries, self.keys, self.intermediate
        if self.fused:
            linears = {"self_attn.qkv_proj": (q + 2 * k, d), "self_attn.o_proj": (d, q)}
            linears |= {"mlp.gate_up_proj": (2 * f, d), "mlp.down_proj": (d, f)}
        else:
            linears = {f"self_attn.{name}_proj": (rows, d) for name, rows in (("q", q), ("k", k), ("v", k))}
            linears |= {"self_attn.o_proj": (d, q), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d)}
            linears["mlp.down_proj"] = (d, f)
        vectors = {f"{name}.weight": d for name in _NORMS[: self.layer_norms]}
        if self.qk_norm:
            vectors |= {f"self_attn.{name}_norm.weight": self.head_dim for name in "qk"}
        if self.qkv_bias:
            vectors |= {f"self_attn.{name}_proj.bias": size for name, size in (("q", q), ("k", k), ("v", k))}
        yield Tensor("model.embed_tokens.weight", self.vocabulary, d, None, self.embedding_quantization)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name, (rows, columns) in linears.items():
                yield Tensor(f"{prefix}{name}.weight", rows, columns, layer, self.quantization)
            for name, size in vectors.items():
                yield Tensor(prefix + name, 1, size, layer)
        yield Tensor("model.norm.weight", 1, d)
        if not self.tied:
            yield Tensor("lm_head.weight", self.vocabulary, d, None, self.embedding_quantization)


_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def shape_of(model: str) -> ModelShape:
    """The figures of a model by what a user calls it: a name in models.yaml, or a folder.

    A name whose weights were already converted from its mirror is read from that folder, since that is what a run
    loads.

    Raises:
        ModelError: no such name; or a folder without a usable config.json; or a model whose figures are not on this
            disk (a hub repository, a .gguf file).
    """
    if model in load_registry():
        return of_entry(find(model))
    path = Path(model).expanduser()
    if path.is_dir():
        return of_folder(path)
    if "/" in model or path.suffix.lower() == ".gguf":
        raise ModelError(
            f"the figures of {model} are not known before it is downloaded or converted",
            "name a model of `mlxzo models`, or a folder with a config.json",
        )
    find(model)
    raise AssertionError("unreachable: find raises for a name that is not in the registry")


def of_entry(entry: ModelEntry) -> ModelShape:
    """The figures of an entry of models.yaml; of its converted mirror, where that is on this disk."""
    if entry.mirror is not None:
        converted = pypi_mirror.converted_folder(entry, mlxzo_home())
        if converted.exists() and not folder_problems(converted):
            return dataclasses.replace(of_folder(converted), name=entry.name)
    gemma = entry.model_type == "gemma3_text"
    return ModelShape(
        name=entry.name,
        **{
            key: getattr(entry, key)
            for key in (
                "model_type",
                "layers",
                "hidden",
                "intermediate",
                "heads",
                "kv_heads",
                "head_dim",
                "vocabulary",
                "tied",
                "dtype",
                "quantization",
            )
        },
        embedding_quantization=entry.quantization,
        window=_GEMMA_WINDOW if gemma else None,
        qkv_bias=entry.model_type == "qwen2",
        qk_norm=entry.model_type in ("qwen3", "gemma3_text"),
        layer_norms=4 if gemma else 2,
        fused=entry.model_type == "phi3",
    )


def of_folder(folder: Path) -> ModelShape:
    """The figures of a folder's config.json, and the size of its weight files where it has them.

    Raises:
        ModelError: there is no config.json, it is not JSON, or lacks figures that nothing else gives; all are named.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json", "copy it from the original model") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}", "copy it from the original model") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} does not hold the figures of a model", "copy it from the original model")
    files = list(folder.glob("model*.safetensors"))
    stored = sum(map(_tensor_bytes, files)) if files else None
    return of_config(config, folder.resolve().name, str(path), stored)


def of_config(
    config: Mapping[str, Any], name: str, source: str = "config.json", stored_bytes: int | None = None
) -> ModelShape:
    """The figures in a config.json; of a multimodal model those of its text part.

    Raises:
        ModelError: figures are missing or are no whole numbers above 0; names all of them in one sentence.
    """
    text = config.get("text_config")
    outer, config = config, {**config, **text} if isinstance(text, Mapping) else config
    found: dict[str, int] = {}
    missing: list[str] = []
    for field, keys in _KEYS.items():
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if type(value) is int and value > 0:
            found[field] = value
        elif value is not None or field in _REQUIRED:
            missing.append(keys[0] if value is None else f"{keys[0]} (it is {value!r})")
    if missing:
        raise ModelError(
            f"{source} lacks what the memory follows from: {', '.join(missing)}",
            "copy config.json from the original model",
        )
    assumed: list[str] = []
    kind = str(config.get("model_type") or "unknown")
    kind = {"gemma3": "gemma3_text"}.get(kind, kind)
    if kind not in MODEL_TYPES:
        assumed.append(f"its architecture, {kind!r}, is not known here and is taken for a llama-like decoder")
        if any(re.search(r"expert", key) for key in config):
            assumed.append("it has experts, of which only one a layer is counted")
    if "intermediate" not in found:
        found["intermediate"] = 4 * found["hidden"]
        assumed.append(f"intermediate_size is not given: 4 x hidden_size = {found['intermediate']}")
    if "kv_heads" not in found:
        found["kv_heads"] = found["heads"]
        if kind not in MODEL_TYPES:
            assumed.append("num_key_value_heads is not given: as many as heads")
    if "head_dim" not in found:
        found["head_dim"] = found["hidden"] // found["heads"]
    dtype = str(config.get("torch_dtype") or config.get("dtype") or outer.get("torch_dtype") or "").removeprefix(
        "torch."
    )
    if dtype not in DTYPE_BYTES:
        assumed.append("the dtype of its weights is not given: bfloat16")
        dtype = "bfloat16"
    tied = config.get("tie_word_embeddings", outer.get("tie_word_embeddings"))
    if tied is None:
        tied = kind in ("gemma3_text",)
        if kind not in MODEL_TYPES:
            assumed.append("tie_word_embeddings is not given: embedding and head are two matrices")
    linears, embedding = _quantisation(outer)
    gemma = kind == "gemma3_text"
    return ModelShape(
        name=name,
        model_type=kind,
        **found,
        tied=bool(tied),
        dtype=dtype,
        quantization=linears,
        embedding_quantization=embedding,
        window=config.get("sliding_window") if gemma or config.get("use_sliding_window") else None,
        qkv_bias=bool(config.get("attention_bias", kind == "qwen2")),
        qk_norm=kind in ("qwen3", "gemma3_text"),
        layer_norms=4 if gemma else 2,
        fused=kind == "phi3",
        stored_bytes=stored_bytes,
        assumed=tuple(assumed),
    )


_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
}
_REQUIRED = ("layers", "hidden", "heads", "vocabulary")


def _quantisation(config: Mapping[str, Any]) -> tuple[Quantization | None, Quantization | None]:
    """How the linear layers and the embedding are quantised, from mlx-lm's `quantization`."""
    settings = config.get("quantization") or config.get("quantization_config")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("bits"), int):
        return None, None
    linears = Quantization(settings["bits"], int(settings.get("group_size", 64)))
    own = settings.get("model.embed_tokens", settings)
    if own is False:
        return linears, None
    return linears, Quantization(int(own.get("bits", linears.bits)), int(own.get("group_size", linears.group_size)))


def _tensor_bytes(file: Path) -> int:
    """Bytes of the tensors in a safetensors file: all but its header, whose length the first 8 bytes give."""
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    return max(0, file.stat().st_size - 8 - header)
