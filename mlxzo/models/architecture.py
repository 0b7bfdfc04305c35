"""The dimensions of a decoder and the tensors that follow from them, read from a config.json. Imports no MLX.

Keys are those of Hugging Face and mlx-lm. An architecture that is not known here is taken for a llama-like decoder,
and every assumption is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.formatting import shown
from ..core.parsing import ContentError, parsing, read_json_object
from .layer_shapes import FIGURES, LayerShape, figure_problems, layer_shapes, own_inputs
from .safetensors_file import tensor_bytes

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Quantization:
    """MLX affine quantisation: `bits` a weight, one scale and one bias for `group_size` weights."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Tensor:
    """One parameter: its dotted name in mlx-lm, its shape (a vector has one row), and its quantisation."""

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
        """Dotted path of its module."""
        return self.name.rpartition(".")[0]

    def stored_bytes(self, dtype_bytes: int) -> int:
        """Bytes at rest; those of a quantised tensor include one scale and one bias a group."""
        if self.quantization is None:
            return self.size * dtype_bytes
        groups = self.size // self.quantization.group_size
        return self.size * self.quantization.bits // 8 + 2 * groups * dtype_bytes


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a decoder.

    `intermediate`, `kv_heads` and `head_dim` are those of config.json; single layers may have others.

    Attributes:
        dtype: of the floating tensors at rest; of the scales, where the model is quantised.
        quantization: of the linear layers; `embedding_quantization` of embedding and head. None: not quantised.
        more: the figures of this architecture alone (see `layer_shapes.FIGURES`); left out: mlx-lm's defaults.
        stored_bytes: bytes of the weight files; None where there are none, and `weight_bytes` computes them.
        assumed: the assumptions made where config.json is silent, in words.
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
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    stored_bytes: int | None = None
    assumed: tuple[str, ...] = ()

    @cached_property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """Every decoder layer."""
        return layer_shapes(self)

    @property
    def final_norm(self) -> str:
        """Name of the norm behind the last layer."""
        return f"model.{'embedding_norm' if self.model_type == 'lfm2' else 'norm'}.weight"

    @property
    def own_input_width(self) -> int:
        """Width of the inputs that single layers get beside the hidden states, of all layers together (Gemma 4)."""
        return sum(columns for name, (_, columns) in own_inputs(self).items() if name == "embed_tokens_per_layer")

    def state_width(self, number: int) -> int:
        """Width of the state before layer `number`: hidden states, and keys and values that later layers share."""
        shared = self.layer_shapes[:number] if number < self.layers else ()
        return self.hidden + sum(layer.shared for layer in shared)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every parameter, once; embedding first, head last."""
        first, *last = self._outer_tensors()
        return (first, *(tensor for layer in range(self.layers) for tensor in self._layer_tensors(layer)), *last)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once, scales and biases of quantised weights do not."""
        return sum(tensor.size for tensor in self._outer_tensors()) + self.layer_parameters

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of all decoder layers."""
        return sum(layer.parameters for layer in self.layer_shapes)

    @property
    def quantised(self) -> bool:
        return self.quantization is not None

    def dtype_at_rest(self, dtype: str = "auto") -> str:
        """The dtype of floating tensors in a run whose option `dtype` is this."""
        return self.dtype if dtype == "auto" else dtype

    def number_format(self, dtype: str = "auto") -> str:
        """`4-bit` of quantised weights, otherwise their dtype at rest."""
        return f"{self.quantization.bits}-bit" if self.quantization else self.dtype_at_rest(dtype)

    def weight_bytes(self, dtype: str = "auto") -> int:
        """Bytes of the weights in memory, for a run's option `dtype`."""
        if dtype in ("auto", self.dtype) and self.stored_bytes is not None:
            return self.stored_bytes
        size = DTYPE_BYTES[self.dtype_at_rest(dtype)]
        return sum(tensor.stored_bytes(size) for tensor in self.tensors)

    def _outer_tensors(self) -> Iterator[Tensor]:
        """Embedding, what makes the layers' own inputs, final norm, and the head where it is a matrix of its own."""
        yield Tensor("model.embed_tokens.weight", self.vocabulary, self.hidden, None, self.embedding_quantization)
        for name, (rows, columns) in own_inputs(self).items():
            quantization = None if rows == 1 else self.quantization
            yield Tensor(f"model.{name}.weight", rows, columns, None, quantization)
        yield Tensor(self.final_norm, 1, self.hidden)
        if not self.tied:
            yield Tensor("lm_head.weight", self.vocabulary, self.hidden, None, self.embedding_quantization)

    def _layer_tensors(self, number: int) -> Iterator[Tensor]:
        layer, prefix = self.layer_shapes[number], f"model.layers.{number}."
        for path, (rows, columns) in layer.matrices.items():
            yield Tensor(f"{prefix}{path}.weight", rows, columns, number, self.quantization)
        for path, (rows, columns) in layer.kernels.items():
            yield Tensor(f"{prefix}{path}.weight", rows, columns, number)
        for name, size in layer.vectors.items():
            yield Tensor(prefix + name, 1, size, number)


def shape_of_figures(figures: Mapping[str, Any]) -> ModelShape:
    """The shape of a known architecture from the fields of `ModelShape` that models.yaml gives."""
    return ModelShape(**figures, embedding_quantization=figures.get("quantization"))


def of_folder(folder: Path) -> ModelShape:
    """The dimensions in a folder's config.json, and the size of its weight files where it has them.

    Raises:
        ModelError: config.json is missing, is not JSON, or lacks required dimensions; all of them are named.
    """
    path, fix = folder / "config.json", "copy it from the original model"
    config = read_json_object(path, ModelError, fix)
    files = list(folder.glob("model*.safetensors"))
    try:
        stored = sum(map(tensor_bytes, files)) if files else None
    except (OSError, ContentError):
        stored = None  # loading the model reports a broken file
    with parsing(path, ModelError, fix):
        return of_config(config, folder.resolve().name, str(path), stored)


def of_config(
    config: Mapping[str, Any], name: str, source: str = "config.json", stored_bytes: int | None = None
) -> ModelShape:
    """The dimensions in a config.json; of a multimodal model those of its text part.

    Raises:
        ModelError: dimensions are missing or not whole numbers above 0; one sentence names all of them. Or they do
            not fit together.
    """
    text = config.get("text_config")
    outer, config = config, {**config, **text} if isinstance(text, Mapping) else config
    kind = str(config.get("model_type") or "unknown")
    kind = _TEXT_TYPES.get(kind, kind)
    found: dict[str, int] = {}
    more = {key: config[key] for key in FIGURES.get(kind, ()) if config.get(key) is not None}
    missing: list[str] = []
    for figure, keys in _KEYS.items():
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if type(value) is int and 0 < value <= _MOST.get(figure, value):
            found[figure] = value
        elif value is not None or figure in _REQUIRED:
            missing.append(keys[0] if value is None else f"{keys[0]} (it is {shown(value)})")
    if missing := missing + figure_problems(kind, more):
        raise ModelError(
            f"{source} lacks what the memory follows from: {', '.join(missing)}",
            "copy config.json from the original model",
        )
    assumed: list[str] = []
    if kind not in FIGURES:
        assumed.append(f"its architecture, {shown(kind)}, is not known here and is taken for a llama-like decoder")
        if any(re.search(r"expert", key) for key in config):
            assumed.append("it has experts, of which only one a layer is counted")
    if kind == "lfm2" and config.get("block_auto_adjust_ff_dim"):
        multiple = int(config.get("block_multiple_of") or 1)
        width = int((config.get("block_ffn_dim_multiplier") or 1.0) * int(2 * found["intermediate"] / 3))
        found["intermediate"] = -(-width // multiple) * multiple
    if "intermediate" not in found:
        found["intermediate"] = 4 * found["hidden"]
        assumed.append(f"intermediate_size is not given: 4 x hidden_size = {found['intermediate']}")
    if "kv_heads" not in found:
        found["kv_heads"] = found["heads"]
        if kind not in FIGURES:
            assumed.append("num_key_value_heads is not given: as many as heads")
    if "head_dim" not in found:
        found["head_dim"] = found["hidden"] // found["heads"]
    dtype = str(config.get("torch_dtype") or config.get("dtype") or outer.get("torch_dtype") or "")
    dtype = dtype.removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        assumed.append("the dtype of its weights is not given: bfloat16")
        dtype = "bfloat16"
    tied = config.get("tie_word_embeddings", outer.get("tie_word_embeddings"))
    if tied is None:
        tied = kind in ("gemma3_text", "gemma4_text", "lfm2")
        if kind not in FIGURES:
            assumed.append("tie_word_embeddings is not given: embedding and head are two matrices")
    if kind == "lfm2":
        tied = True  # its head is its embedding, whatever the file says
    linears, embedding = _quantisation(outer)
    shape = ModelShape(
        name=name,
        model_type=kind,
        **found,
        tied=bool(tied),
        dtype=dtype,
        quantization=linears,
        embedding_quantization=embedding,
        more=more,
        stored_bytes=stored_bytes,
        assumed=tuple(assumed),
    )
    if len(shape.layer_shapes) != shape.layers:
        raise ModelError(
            f"{source} has {shape.layers} layers, and layer_types names {len(shape.layer_shapes)}",
            "copy config.json from the original model",
        )
    return shape


LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KEYS = {
    "layers": LAYER_KEYS,
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "intermediate": ("block_ff_dim", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
}
# Some ten times the most that there are; every one costs time before anything is compared with the weights.
_MOST = {"layers": 2000}
_REQUIRED = ("layers", "hidden", "heads", "vocabulary")
# Model types of multimodal architectures, by which their text part is known as well.
_TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_text",
    "gemma4_unified_text": "gemma4_text",
    "qwen3_5": "qwen3_5_text",
}


def _quantisation(config: Mapping[str, Any]) -> tuple[Quantization | None, Quantization | None]:
    """Quantisation of the linear layers and of the embedding, from mlx-lm's `quantization`."""
    settings = config.get("quantization") or config.get("quantization_config")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("bits"), int):
        return None, None
    linears = Quantization(settings["bits"], int(settings.get("group_size", 64)))
    own = settings.get("model.embed_tokens", settings)
    if own is False:
        return linears, None
    return linears, Quantization(int(own.get("bits", linears.bits)), int(own.get("group_size", linears.group_size)))
