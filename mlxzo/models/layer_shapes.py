"""The parameters of decoder layers by architecture, as mlx-lm names and shapes them. Imports no MLX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.formatting import shown

if TYPE_CHECKING:
    from .architecture import ModelShape

Figures = Mapping[str, Any]
Matrices = dict[str, tuple[int, int]]
Vectors = dict[str, int]

# Malladi et al. 2023 put LoRA on queries and values; in models with a fused projection it goes there, and in those with
# linear attention on that as well.
LORA_TARGETS = (("q_proj", "v_proj", "in_proj_qkv"), ("qkv_proj",), ("query_key_value",), ("Wqkv",), ("c_attn",))
# Names of the last linear layer of an MLP in the architectures of mlx-lm.
MLP_OUTPUTS = ("down_proj", "fc2", "c_proj", "w2", "dense_4h_to_h", "fc_out", "proj_2", "ff_out")
GAINED = ("v_proj", "gate_proj")
# Part of the path of matrices that hold all experts, which are no linear layers by themselves.
EXPERTS = ".switch_mlp."

_BIASES = {"attention_bias": False, "mlp_bias": False}
FIGURES: dict[str, Figures] = {
    "llama": _BIASES,
    "mistral": _BIASES,
    "smollm3": _BIASES,
    "granite": _BIASES,
    "ministral3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": None,
        "num_experts_per_tok": None,
        "moe_intermediate_size": None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": (),
    },
    "qwen3_5_text": {
        "full_attention_interval": 4,
        "linear_num_key_heads": None,
        "linear_num_value_heads": None,
        "linear_key_head_dim": None,
        "linear_value_head_dim": None,
        "linear_conv_kernel_dim": 4,
        "attention_bias": False,
    },
    "gemma3_text": {},
    "gemma4_text": {
        "layer_types": (),
        "sliding_window_pattern": 5,
        "global_head_dim": 512,
        "num_global_key_value_heads": 0,
        "attention_k_eq_v": False,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
    },
    "phi3": {},
    "olmo3": {"attention_bias": False},
    "lfm2": {"layer_types": (), "full_attn_idxs": (), "conv_L_cache": 3, "conv_bias": False},
}
"""What an architecture's layers follow from beside the figures that all have: keys of config.json with mlx-lm's
defaults; None: whole numbers that must be given."""


@dataclass(frozen=True)
class LayerShape:
    """A decoder layer.

    Attributes:
        matrices: rows and columns by path within the layer; those of all experts together are one.
        vectors: sizes by name within the layer.
        kernels: of convolutions, as `matrices`, but never quantised.
        queries, keys: width of all heads' queries and keys together; the values have the width of the keys. Of a layer
            without attention, widths that take as much memory.
        mlp: width of the MLP, or of all experts together that one token uses.
        experts: number of experts that one token uses; 0 without a mixture.
        cached: values per token that generation keeps of the layer: its own keys and values.
        shared: those of them that later layers read as well.
        recurrent: values of the state that each token changes, in a layer that has one instead of keys and values.
    """

    matrices: Mapping[str, tuple[int, int]]
    vectors: Mapping[str, int]
    queries: int
    keys: int
    mlp: int
    experts: int = 0
    cached: int = 0
    shared: int = 0
    recurrent: int = 0
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> int:
        matrices = (*self.matrices.values(), *self.kernels.values())
        return sum(rows * columns for rows, columns in matrices) + sum(self.vectors.values())

    @property
    def used_parameters(self) -> int:
        """Parameters that a token meets: of the experts those that it uses."""
        experts = [path for path in self.matrices if EXPERTS in path]
        unused = sum(rows * columns for rows, columns in (self.matrices[path] for path in experts))
        hidden = self.matrices[experts[0]][1] if experts else 0
        return self.parameters - unused + len(experts) * self.mlp * hidden

    @property
    def norm_width(self) -> int:
        """Values per token that the norms of the residual stream return."""
        return sum(size for name, size in self.vectors.items() if "norm" in name and "attn" not in name)

    @property
    def attends(self) -> bool:
        return any(path.startswith("self_attn.") for path in self.matrices)


def figure_problems(model_type: str, more: Figures) -> list[str]:
    """The figures that an architecture lacks among `more`, and those that are not what they should be."""
    problems = []
    for name, default in FIGURES.get(model_type, {}).items():
        value = more.get(name, default)
        kinds = (list, tuple) if default == () else type(0 if default is None else default)
        divides = name.endswith(("_interval", "_pattern", "_step"))
        if value is None:
            problems.append(name)
        elif not isinstance(value, kinds) or ((default is None or divides) and value < 1):
            problems.append(f"{name} (it is {shown(value)})")
    return problems


def own_inputs(shape: ModelShape) -> Matrices:
    """Rows and columns of what makes an input of its own for each layer, by path beside the layers (Gemma 4)."""
    own = {**FIGURES.get(shape.model_type, {}), **shape.more}
    width = own.get("hidden_size_per_layer_input", 0)
    if not width:
        return {}
    return {
        "embed_tokens_per_layer": (own["vocab_size_per_layer_input"], shape.layers * width),
        "per_layer_model_projection": (shape.layers * width, shape.hidden),
        "per_layer_projection_norm": (1, width),
    }


def layer_shapes(shape: ModelShape) -> tuple[LayerShape, ...]:
    """Every decoder layer of a model, the first one first; an architecture that is not known is taken for a llama."""
    kind = shape.model_type if shape.model_type in FIGURES else "llama"
    return _LAYERS.get(kind, _alike)(shape, {**FIGURES[kind], **shape.more})


def _alike(shape: ModelShape, own: Figures) -> tuple[LayerShape, ...]:
    """Layers of attention and a dense MLP, one like the other."""
    d, q, k, f = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    matrices = _attention(d, q, k) | _mlp(d, f)
    vectors: Vectors = {}
    match shape.model_type:
        case "qwen2":
            vectors = _biases(matrices, ("q_proj", "k_proj", "v_proj"))
        case "qwen3" | "qwen3_moe":
            vectors = _head_norms(shape.head_dim)
        case "gemma3_text":
            vectors = _head_norms(shape.head_dim) | _norms(
                d, ("pre_feedforward_layernorm", "post_feedforward_layernorm")
            )
        case "phi3":
            matrices = {"self_attn.qkv_proj": (q + 2 * k, d), "self_attn.o_proj": (d, q)}
            matrices |= {"mlp.gate_up_proj": (2 * f, d), "mlp.down_proj": (d, f)}
        case "olmo3":
            vectors = {"self_attn.q_norm.weight": q, "self_attn.k_norm.weight": k}
    before = "post_feedforward_layernorm" if shape.model_type == "olmo3" else "input_layernorm"
    vectors |= _norms(d, (before, "post_attention_layernorm"))
    vectors |= _biases(matrices, ("q_proj", "k_proj", "v_proj", "o_proj")) if own.get("attention_bias") else {}
    vectors |= _biases(matrices, ("gate_proj", "up_proj", "down_proj")) if own.get("mlp_bias") else {}
    return (LayerShape(matrices, vectors, q, k, f, cached=2 * k),) * shape.layers


def _qwen3_moe(shape: ModelShape, own: Figures) -> tuple[LayerShape, ...]:
    """Experts in place of the MLP, in all layers or in some."""
    dense, d = _alike(shape, own)[0], shape.hidden
    count, used, f = own["num_experts"], own["num_experts_per_tok"], own["moe_intermediate_size"]
    experts = {name.replace(".", EXPERTS): (count * rows, columns) for name, (rows, columns) in _mlp(d, f).items()}
    matrices = {name: size for name, size in dense.matrices.items() if not name.startswith("mlp.")}
    mixture = replace(dense, matrices=matrices | {"mlp.gate": (count, d)} | experts, mlp=used * f, experts=used)
    return tuple(
        dense if i in own["mlp_only_layers"] or (i + 1) % own["decoder_sparse_step"] else mixture
        for i in range(shape.layers)
    )


def _qwen3_5(shape: ModelShape, own: Figures) -> tuple[LayerShape, ...]:
    """Full attention with gated queries in every fourth layer or so, and a gated delta rule in the others."""
    d, q, k, f = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    norms = _norms(d, ("input_layernorm", "post_attention_layernorm"))
    matrices = _attention(d, q, k) | {"self_attn.q_proj": (2 * q, d)} | _mlp(d, f)
    vectors = _head_norms(shape.head_dim) | norms
    vectors |= _biases(matrices, ("q_proj", "k_proj", "v_proj", "o_proj")) if own["attention_bias"] else {}
    full = LayerShape(matrices, vectors, 2 * q, k, f, cached=2 * k)

    heads, width = own["linear_num_value_heads"], own["linear_value_head_dim"]
    keys, values = own["linear_num_key_heads"] * own["linear_key_head_dim"], heads * width
    linears: Matrices = {"in_proj_qkv": (2 * keys + values, d), "in_proj_z": (values, d), "out_proj": (d, values)}
    linears |= {"in_proj_a": (heads, d), "in_proj_b": (heads, d)}
    linear = LayerShape(
        {f"linear_attn.{name}": size for name, size in linears.items()} | _mlp(d, f),
        {"linear_attn.dt_bias": heads, "linear_attn.A_log": heads, "linear_attn.norm.weight": width} | norms,
        values,
        2 * keys,
        f,
        recurrent=values * own["linear_key_head_dim"],
        kernels={"linear_attn.conv1d": (2 * keys + values, own["linear_conv_kernel_dim"])},
    )
    return tuple(linear if (i + 1) % own["full_attention_interval"] else full for i in range(shape.layers))


def _gemma4(shape: ModelShape, own: Figures) -> tuple[LayerShape, ...]:
    """Sliding and full attention with heads of different width; the last layers may read keys and values of earlier
    ones, and each may get an input of its own from the tokens."""
    d, kinds, inputs = shape.hidden, layer_types(shape), own["hidden_size_per_layer_input"]
    first_reader = shape.layers - own["num_kv_shared_layers"]
    # The last layer of each kind that has keys and values of its own; those that read have the same kinds.
    sources = {kind: i for i, kind in enumerate(kinds[:first_reader]) if kind in kinds[first_reader:]}
    layers = []
    for i, kind in enumerate(kinds):
        full, reads = kind == "full_attention", i >= first_reader
        as_values = full and own["attention_k_eq_v"]
        width = (own["global_head_dim"] if full else 0) or shape.head_dim
        kv_heads = (own["num_global_key_value_heads"] if as_values else 0) or shape.kv_heads
        q, k = shape.heads * width, kv_heads * width
        f = shape.intermediate * (2 if own["use_double_wide_mlp"] and i >= first_reader > 0 else 1)
        dropped = {"self_attn.k_proj", "self_attn.v_proj"} if reads else {"self_attn.v_proj"} if as_values else set()
        matrices = {name: size for name, size in _attention(d, q, k).items() if name not in dropped} | _mlp(d, f)
        vectors = _norms(d, ("input_layernorm", "post_attention_layernorm"))
        vectors |= _norms(d, ("pre_feedforward_layernorm", "post_feedforward_layernorm")) | {"layer_scalar": 1}
        vectors |= _head_norms(width, "q" if reads else "qk")
        if inputs:
            matrices |= {"per_layer_input_gate": (inputs, d), "per_layer_projection": (d, inputs)}
            vectors |= _norms(d, ("post_per_layer_input_norm",))
        cached = 0 if reads else 2 * k
        layers.append(
            LayerShape(matrices, vectors, q, k, f, cached=cached, shared=cached if sources.get(kind) == i else 0)
        )
    return tuple(layers)


def _lfm2(shape: ModelShape, own: Figures) -> tuple[LayerShape, ...]:
    """Short convolutions, and attention in some layers."""
    d, q, k, f = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    feed_forward: Matrices = {
        f"feed_forward.{name}": size for name, size in (("w1", (f, d)), ("w3", (f, d)), ("w2", (d, f)))
    }
    norms = _norms(d, ("operator_norm", "ffn_norm"))
    attention = _attention(d, q, k, output="out_proj") | feed_forward
    head_norms = {f"self_attn.{name}_layernorm.weight": shape.head_dim for name in "qk"}
    full = LayerShape(attention, head_norms | norms, q, k, f, cached=2 * k)
    linears: Matrices = {"conv.in_proj": (3 * d, d), "conv.out_proj": (d, d)}
    biases = {f"{name}.bias": rows for name, (rows, _) in linears.items()} | {"conv.conv.bias": d}
    convolution = LayerShape(
        linears | feed_forward,
        norms | (biases if own["conv_bias"] else {}),
        2 * d,
        d,
        f,
        kernels={"conv.conv": (d, own["conv_L_cache"])},
    )
    return tuple(full if kind == "full_attention" else convolution for kind in layer_types(shape))


_LAYERS: dict[str, Callable[[ModelShape, Figures], tuple[LayerShape, ...]]] = {
    "qwen3_moe": _qwen3_moe,
    "qwen3_5_text": _qwen3_5,
    "gemma4_text": _gemma4,
    "lfm2": _lfm2,
}


def layer_types(shape: ModelShape) -> list[str]:
    """The type of each layer of Gemma 4 or LFM2, in config.json's words."""
    own = {**FIGURES[shape.model_type], **shape.more}
    if own["layer_types"]:
        return list(own["layer_types"])
    if shape.model_type == "lfm2":
        return ["full_attention" if i in own["full_attn_idxs"] else "conv" for i in range(shape.layers)]
    pattern = own["sliding_window_pattern"]
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(shape.layers)]


def _attention(d: int, q: int, k: int, output: str = "o_proj") -> Matrices:
    linears = {"q_proj": (q, d), "k_proj": (k, d), "v_proj": (k, d), output: (d, q)}
    return {f"self_attn.{name}": size for name, size in linears.items()}


def _mlp(d: int, f: int) -> Matrices:
    return {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}


def _norms(size: int, names: Iterable[str]) -> Vectors:
    return {f"{name}.weight": size for name in names}


def _head_norms(size: int, names: str = "qk") -> Vectors:
    return {f"self_attn.{name}_norm.weight": size for name in names}


def _biases(matrices: Matrices, names: Iterable[str]) -> Vectors:
    """Biases of the linear layers of these names."""
    return {f"{path}.bias": rows for path, (rows, _) in matrices.items() if path.split(".")[-1] in names}
