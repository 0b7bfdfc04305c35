"""A GGUF file comes back as the model and the tokenizer it was written from."""

from __future__ import annotations

import json

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxzo.core.errors import ModelError
from mlxzo.models.gguf.convert import convert_gguf, natural_weights
from mlxzo.models.gguf.reader import read_gguf
from mlxzo.models.gguf.tokenizer import _merges
from mlxzo.models.loading import load_model, load_tokenizer
from mlxzo.models.resolve import resolve
from tests.models.gguf_writing import add_byte_level_tokenizer, finish, write_tiny_gguf
from tests.tiny import TEXT, tiny_tokenizer

PROMPT = "Question: what is the capital of France? Answer: 12 days, naïve 😀\n\n"


def dequantized(raw: np.ndarray, kind: str) -> np.ndarray:
    """Q4_0, Q4_1 and Q8_0 straight from their definition in ggml-common.h, block by block."""
    raw = np.ascontiguousarray(raw)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    values = []
    for block in raw.reshape(-1, size):
        block = block.tobytes()
        scale = np.float32(np.frombuffer(block[:2], "<f2")[0])
        if kind == "Q8_0":
            values.append(np.frombuffer(block[2:], np.int8).astype(np.float32) * scale)
            continue
        integers = np.array([b & 15 for b in block[-16:]] + [b >> 4 for b in block[-16:]], np.float32)
        if kind == "Q4_0":
            values.append((integers - 8) * scale)
        else:
            values.append(integers * scale + np.float32(np.frombuffer(block[2:4], "<f2")[0]))
    return np.concatenate(values).reshape(len(raw), -1)


def floats(model) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in tree_flatten(model.parameters())}


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("qwen3", True), ("gemma3", True)])
def test_float_weights_and_logits_come_back(tmp_path, kind, tied):
    layers = 6 if kind == "gemma3" else 3
    original = write_tiny_gguf(tmp_path / "model.gguf", kind, tied=tied, layers=layers)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", weights="float32")
    loaded = load_model(tmp_path / "out")

    expected, found = floats(original), floats(loaded.model)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        if kind == "gemma3" and "norm" in name:  # the file holds 1 + w, rounded to float32
            array = (array + np.float32(1)) - np.float32(1)
        assert np.array_equal(found[name], array), name
    ids = mx.array([[5, 9, 300, 17, 250, 4] * 6])
    assert mx.allclose(loaded.model(ids), original(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("number_format", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantised_weights_dequantise_exactly_and_are_kept_exactly(tmp_path, number_format):
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, "qwen3", number_format=number_format)
    convert_gguf(path, tmp_path / "float", weights="float32")
    convert_gguf(path, tmp_path / "kept", weights="quantized")
    as_float, kept = load_model(tmp_path / "float"), load_model(tmp_path / "kept")
    stored = floats(as_float.model)
    raw = read_gguf(path).tensors
    for ours, theirs in [
        ("model.embed_tokens", "token_embd"),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q"),
        ("model.layers.2.mlp.down_proj", "blk.2.ffn_down"),
    ]:
        expected = dequantized(raw[f"{theirs}.weight"].rows, number_format)
        assert np.array_equal(stored[f"{ours}.weight"], expected)
        module = dict(kept.model.named_modules())[ours]
        scales, biases = module.scales.astype(mx.float32), module.biases.astype(mx.float32)
        back = mx.dequantize(module.weight, scales, biases, group_size=module.group_size, bits=module.bits)
        assert np.array_equal(np.array(back), expected)
    ids = mx.array([[5, 9, 300, 17, 250, 4]])
    assert mx.allclose(kept.model(ids), as_float.model(ids), atol=1e-4, rtol=0)
    assert natural_weights(path) == "quantized"


def test_mixed_formats_get_their_own_bits(tmp_path):
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, "llama", number_format="Q4_1", embedding_format="Q8_0")
    convert_gguf(path, tmp_path / "out", weights="quantized")
    loaded = load_model(tmp_path / "out")
    eight_bits = {"group_size": 32, "bits": 8}
    assert loaded.config["quantization"] == {"group_size": 32, "bits": 4, "model.embed_tokens": eight_bits}
    assert (loaded.model.model.embed_tokens.bits, loaded.model.layers[0].mlp.up_proj.bits) == (8, 4)


@pytest.mark.parametrize(("weights", "dtype"), [("float16", mx.float16), ("bfloat16", mx.bfloat16)])
def test_half_precision_rounds_to_nearest(tmp_path, weights, dtype):
    original = write_tiny_gguf(tmp_path / "model.gguf", "qwen3")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", weights=weights)
    loaded = load_model(tmp_path / "out")
    for (name, found), (_, expected) in zip(
        sorted(tree_flatten(loaded.model.parameters())), sorted(tree_flatten(original.parameters())), strict=True
    ):
        assert mx.array_equal(found, expected.astype(dtype)), name


def test_the_byte_level_tokenizer_encodes_as_the_original(tmp_path):
    write_tiny_gguf(tmp_path / "model.gguf", "llama")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", weights="float32")
    tokenizer, original = load_model(tmp_path / "out").tokenizer, tiny_tokenizer()
    for text in (PROMPT, TEXT, "<|im_start|>user\n1234<|im_end|>", "  two  spaces\tand a tab", ""):
        ids = tokenizer.encode(text)
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.bos_token == "<|im_start|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("pre", "says", "added"),
    [("llama-bpe", None, True), ("llama3", None, True), ("llama-bpe", False, False), ("qwen2", None, False)],
)
def test_a_text_begins_as_llama_cpp_begins_it(tmp_path, pre, says, added):
    write_tiny_gguf(tmp_path / "model.gguf", "llama", pre=pre, add_bos=says)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", weights="float32")
    assert (load_tokenizer(tmp_path / "out").encode("hi")[0] == 1) is added


def test_the_parts_of_a_split_file_are_read_together(tmp_path):
    original = write_tiny_gguf(tmp_path / "model.gguf", "llama", layers=1, split_after=4)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 2
    for part in (parts[0], parts[-1]):
        convert_gguf(part, tmp_path / part.stem, weights="float32")
        ids = mx.array([[1, 2, 3]])
        assert mx.allclose(load_model(tmp_path / part.stem).model(ids), original(ids), atol=1e-4)
    assert resolve(str(parts[0])).path == resolve(str(parts[1])).path and resolve(str(parts[0])).name == "model"
    parts[1].unlink()
    with pytest.raises(ModelError, match=f"one of {len(parts)} parts of a model: {parts[1].name} is missing") as caught:
        convert_gguf(parts[0], tmp_path / "lacking", weights="float32")
    assert "llama-gguf-split --merge" in caught.value.fix
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelError, match=f"renamed.gguf is one of {len(parts)} parts of a model"):
        convert_gguf(tmp_path / "renamed.gguf", tmp_path / "lacking", weights="float32")


def sentencepiece_model(tmp_path, add_dummy_prefix: bool):
    import sentencepiece

    (tmp_path / "text").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n", "\n\n", "  ", "   ", "<b>"],
        control_symbols=["<turn>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))


@pytest.mark.parametrize("prefix", [False, True])
def test_the_sentencepiece_tokenizer_encodes_as_sentencepiece(tmp_path, prefix):
    spm = sentencepiece_model(tmp_path, prefix)
    path = tmp_path / "model.gguf"
    pieces = [spm.id_to_piece(index) for index in range(len(spm))]
    types = []
    for index, piece in enumerate(pieces):
        kind = gguf.TokenType.NORMAL
        if spm.is_unknown(index):
            kind = gguf.TokenType.UNKNOWN
        elif spm.is_control(index):
            kind = gguf.TokenType.CONTROL
        elif spm.is_byte(index):
            kind = gguf.TokenType.BYTE
        elif piece in ("\n", "\n\n", "▁▁", "▁▁▁", "<b>"):
            kind = gguf.TokenType.USER_DEFINED
            pieces[index] = piece.replace("▁", " ")  # as llama.cpp's converter writes them
        types.append(kind)
    write_with_tokenizer(path, pieces, types, [spm.get_score(index) for index in range(len(spm))], prefix)
    convert_gguf(path, tmp_path / "out", weights="float32")
    tokenizer = load_model(tmp_path / "out").tokenizer
    for text in (
        "The old clock in the hall",
        " a leading space",
        "a  b   c    d",
        "numbers 1234567890, naïve 😀 \u4f60\u597d",
        "lines\nand\n\nmore\n\n\nlines",
        "1234567890 <b>bold</b> naïve 😀 \u4f60\u597d",
        PROMPT,
    ):
        if prefix and any(piece in text for piece in ("\n", "  ", "<b>")):
            continue  # Llama's fast tokenizer puts its prefix after every added token, SentencePiece does not
        expected = [spm.bos_id(), *spm.encode(text)]
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert tokenizer.encode("<turn>", add_special_tokens=False) == [spm.piece_to_id("<turn>")]


def write_with_tokenizer(path, pieces, types, scores, prefix):
    """A GGUF whose vocabulary is SentencePiece's; the model in it is random."""
    donor = path.with_name("donor.gguf")
    write_tiny_gguf(donor, "llama")
    source = read_gguf(donor)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in source.metadata.items():
        if key.startswith("llama."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    for tensor in source.tensors.values():
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.rows).view("<f4").reshape(tensor.shape))
    finish(writer)


def test_the_cuts_of_a_long_piece_are_looked_for_where_its_parts_may_end():
    tokens = ["a", "b", "ab", "abab", "x" * 300_000]
    kinds, scores = np.ones(len(tokens)), -np.arange(len(tokens), dtype=float)
    assert _merges(tokens, kinds, scores) == [("a", "b"), ("ab", "ab")]


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, "llama", layers=1)
    data = path.read_bytes()
    for length in (0, 3, 4, 12, 25, 100, 2000, 5000, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            convert_gguf(path, tmp_path / "out", weights="float32")
    assert not (tmp_path / "out").exists()


def test_random_damage_never_ends_in_anything_but_a_model_error(tmp_path):
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, "llama", layers=1)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = data.copy()
        places = random.integers(4, 600, size=4)
        damaged[places] = random.integers(0, 256, size=4)
        path.write_bytes(damaged.tobytes())
        try:
            convert_gguf(path, tmp_path / "out", weights="float32")
        except ModelError as error:
            assert error.message and error.fix


def test_what_cannot_be_converted_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    (tmp_path / "text.gguf").write_text("hello, this is not a model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        convert_gguf(tmp_path / "text.gguf", tmp_path / "out", weights="float32")

    writer = gguf.GGUFWriter(path, "mamba")
    add_byte_level_tokenizer(writer)
    writer.add_tensor("token_embd.weight", np.zeros((512, 64), np.float32))
    finish(writer)
    with pytest.raises(ModelError, match="'mamba'"):
        convert_gguf(path, tmp_path / "out", weights="float32")

    write_tiny_gguf(path, "llama", number_format="Q5_0")
    with pytest.raises(ModelError, match="Q5_0"):
        convert_gguf(path, tmp_path / "out", weights="quantized")
    convert_gguf(path, tmp_path / "out", weights="float32")
    assert natural_weights(path) == "float16"

    damaged = path.read_bytes().replace(b"gpt-2", b"gpt-9")
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match="'gpt-9'"):
        convert_gguf(path, tmp_path / "out2", weights="float32")

    path.write_bytes(damaged.replace(b"gpt-9", b"gpt-2").replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"))
    with pytest.raises(ModelError) as caught:
        convert_gguf(path, tmp_path / "out3", weights="float32")
    assert caught.value.details == ["unknown tensor blk.1.ffn_xx.weight", "missing tensor blk.1.ffn_up.weight"]


def test_llama_3_rotary_scaling_is_recognised(tmp_path):
    from mlxzo.models.gguf.convert import _llama3_factors

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factors, recognised in [(_llama3_factors(10000.0, 16, scaling), True), (np.linspace(1, 32, 8), False)]:
        path = tmp_path / "model.gguf"
        write_tiny_gguf(tmp_path / "donor.gguf", "llama")
        donor = read_gguf(tmp_path / "donor.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in donor.metadata.items():
            if key.startswith("llama."):
                (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
        add_byte_level_tokenizer(writer)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
        for tensor in donor.tensors.values():
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.rows).view("<f4").reshape(tensor.shape))
        finish(writer)
        if recognised:
            convert_gguf(path, tmp_path / "out", weights="float32")
            assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"] == scaling
        else:
            with pytest.raises(ModelError, match="rotary"):
                convert_gguf(path, tmp_path / "out", weights="float32")
