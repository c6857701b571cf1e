"""Tokenizers as files that transformers loads."""

import base64
import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from gpt1_ds.data.openai_bpe import OPENAI_FILES
from gpt1_ds.data.tokenizer import CONTROL_PIECES, MODEL_FILE, Tokenizer


def tokenizer_json(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """`tokenizer.json` with the ids of `tokenizer`, whose files are in `folder`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": tokenizer.special_ids[piece[1:-1]], "content": piece, "special": True} | flags
        for piece in CONTROL_PIECES
    ]
    parts = (
        _sentencepiece_json(folder) if tokenizer.kind == "sentencepiece" else _openai_json(folder)
    )
    if tokenizer.kind == "openai":  # where a literal "<unk>" is id 0
        added.append({"id": 0, "content": "<unk>", "special": False} | flags)
    return parts | {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
    }


def tokenizer_config_json(n_ctx: int) -> dict[str, Any]:
    """`tokenizer_config.json`: `<eot>` parts documents; `split_special_tokens` keeps a literal `<e>` text."""
    return {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": "<eot>",
        "eos_token": "<eot>",
        "pad_token": "<pad>",
        "extra_special_tokens": ["<s>", "<e>", "<delim>"],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
    }


def _sentencepiece_json(folder: Path) -> dict[str, Any]:
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / MODEL_FILE).read_bytes())
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    pairs = sorted(
        (-score, vocab[piece[:i]], vocab[piece[i:]], piece[:i], piece[i:])
        for piece, score in scores.items()
        for i in range(1, len(piece))
        if piece[:i] in scores and piece[i:] in scores
    )
    # tokenizers looks a whole grapheme up by its shortest rule, and so loses the marks on a capital or a space, where
    # SentencePiece takes the longest rule from each character on. Lower case has no such rule, but the dotted capital
    # I must be kept from it; a control character, which the rules delete, parts a mark from what is no letter.
    rules = {
        "precompiled_charsmap": base64.b64encode(
            model.normalizer_spec.precompiled_charsmap
        ).decode()
    }
    normalizers = [
        _replace(r"(?<=[^\p{L}=<>])(?=\p{M})", "\x01"),
        _replace("\u0130", "\ufdd0"),
        {"type": "Lowercase"},
        _replace("\ufdd0", "\u0130"),
        {"type": "Precompiled", **rules},
        _replace("^ +| +$", ""),
        _replace(" +", "\u2581"),
        {"type": "Prepend", "prepend": "\u2581"},
    ]
    decoders = [
        _replace("\u2581", " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "never",
            "split": True,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [pair[3:] for pair in pairs],
        },
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _openai_json(folder: Path) -> dict[str, Any]:
    """As transformers' OpenAIGPTTokenizer builds it."""
    vocab, merges = ((folder / name).read_text(encoding="utf-8") for name in OPENAI_FILES)
    bert = {
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    }
    return {
        "normalizer": {"type": "BertNormalizer", **bert},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "vocab": json.loads(vocab),
            "merges": [line.split(" ") for line in merges.split("\n")[1:] if line],
        },
    }
