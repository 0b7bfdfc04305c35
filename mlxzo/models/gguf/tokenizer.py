"""Reconstruction of a tokenizer from GGUF metadata: tokenizer.json and tokenizer_config.json.

Two families. `gpt2`: byte-level BPE with the pre-tokenizer that `tokenizer.ggml.pre` names. `llama`: SentencePiece BPE
with scores and byte fallback (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ModelError
from ...core.formatting import shown
from .reader import GgufFile

# Part of the name of a converted file of the user's: raise it when the tokenizer of some files changes.
TOKENIZER_VERSION = 2

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # SentencePiece's visible space

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "llama3": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
}
_PRE_TOKENIZERS = {
    "llama3": "llama3",
    "llama-v3": "llama3",
    "llama-bpe": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "smollm": "smollm",
    "default": "gpt2",
    "gpt-2": "gpt2",
}
# Tokens that end a turn, by whichever of these names the model has (llama.cpp, llama_vocab::impl::load).
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


def write_tokenizer(gguf_file: GgufFile, config: dict, out_dir: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, and adds the token ids to `config`.

    Raises:
        ModelError: the file has no tokenizer, or one of a family or pre-tokenizer that is not known.
    """
    metadata = gguf_file.metadata
    family = metadata.get("tokenizer.ggml.model", "none")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if family not in ("gpt2", "llama") or not isinstance(tokens, list):
        raise ModelError(
            f"{gguf_file.path} has a tokenizer of kind {shown(family)}, which mlxzo cannot rebuild",
            "use the model's safetensors folder, which brings its own tokenizer",
        )
    kinds = metadata.get("tokenizer.ggml.token_type")
    kinds = np.full(len(tokens), NORMAL) if kinds is None else kinds
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelError(f"{gguf_file.path} has a damaged vocabulary", "download the file again")

    special = {
        role: tokens[index]
        for role in ("bos", "eos", "unknown", "padding")
        if (index := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None and index < len(tokens)
    }
    build = _sentencepiece if family == "llama" else _byte_level
    tokenizer = build(gguf_file, tokens, kinds, special)
    # The families to which llama.cpp adds the token where the file does not say.
    default_bos = family == "llama" or _PRE_TOKENIZERS.get(metadata.get("tokenizer.ggml.pre", "")) == "llama3"
    _add_post_processor(tokenizer, metadata, special, tokens, default_bos)
    tokenizer.save(str(out_dir / "tokenizer.json"), pretty=False)

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    for role, key in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        if role in special:
            settings[key] = special[role]
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    (out_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")

    if "bos" in special:
        config["bos_token_id"] = tokens.index(special["bos"])
    names = [special["eos"]] if "eos" in special else []
    names += [name for name in _END_OF_TURN if name in tokens and name not in names]
    ends = [tokens.index(name) for name in names]
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends


def _byte_level(gguf_file: GgufFile, tokens: list[str], kinds: np.ndarray, special: dict[str, str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    name = gguf_file.metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{gguf_file.path} splits text in the way {shown(name)}, which mlxzo does not know",
            "use the model's safetensors folder, which brings its own tokenizer",
        )
    pre = _PRE_TOKENIZERS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in gguf_file.metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama3"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if pre in _SPLITS:
        before = [pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")]
    else:
        before = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, kinds)
    return tokenizer


def _sentencepiece(gguf_file: GgufFile, tokens: list[str], kinds: np.ndarray, special: dict[str, str]) -> Any:
    """SentencePiece BPE as a `tokenizers` BPE: pairs merge in the order of the merged piece's score.

    User-defined pieces (Gemma's runs of spaces and newlines, HTML tags) become added tokens, which match the longest
    first and before any merge, like SentencePiece's prefix matcher. llama.cpp's converter has already replaced their
    visible spaces by plain ones, which added tokens are matched against.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    scores = gguf_file.metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise ModelError(f"{gguf_file.path} has a vocabulary without scores", "download the file again")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    prefix = bool(gguf_file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    model = BPE(
        vocabulary,
        _merges(tokens, kinds, scores),
        unk_token=special.get("unknown"),
        fuse_unk=True,
        byte_fallback=bool((kinds == BYTE).any()),
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    # As in Llama 2's own tokenizer.json and in llama.cpp, the prefix also follows every added token.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    stages = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(stages + [decoders.Strip(" ", 1, 0)] * prefix)
    _add_tokens(tokenizer, tokens, kinds)
    return tokenizer


def _merges(tokens: list[str], kinds: np.ndarray, scores: np.ndarray) -> list[tuple[str, str]]:
    """Merge rules in the order of the merged piece's score, best first."""
    mergeable = {token for token, kind in zip(tokens, kinds, strict=True) if kind in (NORMAL, UNUSED)}
    # Only where both parts have the length of some piece can a piece be cut, however long it is.
    lengths = {len(token) for token in mergeable}
    ranked = []
    for index, token in enumerate(tokens):
        if kinds[index] not in (NORMAL, UNUSED):
            continue
        for cut in lengths:
            if len(token) - cut not in lengths:
                continue
            left, right = token[:cut], token[cut:]
            if left in mergeable and right in mergeable:
                ranked.append((-float(scores[index]), index, cut, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _add_tokens(tokenizer: Any, tokens: list[str], kinds: np.ndarray) -> None:
    from tokenizers import AddedToken

    added = []
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, UNKNOWN):
            added.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            added.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_tokens(added)


def _add_post_processor(
    tokenizer: Any, metadata: dict, special: dict[str, str], tokens: list[str], default_bos: bool
) -> None:
    from tokenizers import processors

    bos = special.get("bos") if metadata.get("tokenizer.ggml.add_bos_token", default_bos) else None
    eos = special.get("eos") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    around = [token for token in (bos, eos) if token]
    if not around:
        return
    parts = [bos] * bool(bos) + ["$A"] + [eos] * bool(eos)
    pair = parts + [bos] * bool(bos) + ["$B"] + [eos] * bool(eos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=parts, pair=pair, special_tokens=[(token, tokens.index(token)) for token in dict.fromkeys(around)]
    )
