"""Writes our tokenizers as tokenizer.json and tokenizer_config.json, for transformers."""

import base64
import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from gpt1_ds.base.protocols import Json
from gpt1_ds.data.openai_bpe import OPENAI_FILES
from gpt1_ds.data.tokenizer import CONTROL_PIECES, MODEL_FILE, Tokenizer

SPACE = "\u2581"
"""SentencePiece's mark for a space."""
DOTTED_CAPITAL_I, STAND_IN = "\u0130", "\ufdd0"
DELETED = "\x01"
"""A control character that SentencePiece's rules delete."""


def tokenizer_json(tokenizer: Tokenizer, folder: Path, for_task: bool = False) -> Json:
    """`tokenizer.json` that gives the same ids as `tokenizer`, which has its files in `folder`.

    With `for_task` it adds the control pieces of a task's sequences.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = []
    for piece in CONTROL_PIECES:
        number = tokenizer.special_ids[piece.strip("<>")]
        added.append({"id": number, "content": piece, "special": True} | flags)
    if tokenizer.kind == "sentencepiece":
        parts = _sentencepiece_json(folder)
    else:
        parts = _openai_json(folder)
        # In transformers a literal "<unk>" in a text becomes id 0.
        added.append({"id": 0, "content": "<unk>", "special": False} | flags)
    return parts | {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _template(tokenizer.special_ids) if for_task else None,
    }


def _template(special_ids: dict[str, int]) -> Json:
    """`<s> text <e>`, or `<s> first <delim> second <e>`."""
    pieces: Json = {}
    for name in ("s", "delim", "e"):
        piece = f"<{name}>"
        pieces[piece] = {"id": piece, "ids": [special_ids[name]], "tokens": [piece]}
    start, delimiter, end = ({"SpecialToken": {"id": piece, "type_id": 0}} for piece in pieces)
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    return {
        "type": "TemplateProcessing",
        "single": [start, first, end],
        "pair": [start, first, delimiter, second, end],
        "special_tokens": pieces,
    }


def tokenizer_config_json(n_ctx: int) -> Json:
    """`tokenizer_config.json`: `<eot>` separates documents, and a literal `<e>` stays text."""
    return {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": "<eot>",
        "eos_token": "<eot>",
        "pad_token": "<pad>",
        "extra_special_tokens": ["<s>", "<e>", "<delim>"],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
        # Not token_type_ids: transformers' model would add embeddings of them.
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _sentencepiece_json(folder: Path) -> Json:
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / MODEL_FILE).read_bytes())
    decoders = [
        _replace(SPACE, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": _sentencepiece_normalizers(model)},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "never",
            "split": True,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {piece.piece: i for i, piece in enumerate(model.pieces)},
            "merges": _merges(model),
        },
    }


def _merges(model: sentencepiece_model_pb2.ModelProto) -> list[tuple[str, str]]:
    """All pairs of pieces that form a piece, ordered by score, then by the ids of the pair."""
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    ranked = []
    for piece, score in scores.items():
        for i in range(1, len(piece)):
            left, right = piece[:i], piece[i:]
            if left in scores and right in scores:
                ranked.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _sentencepiece_normalizers(model: sentencepiece_model_pb2.ModelProto) -> list[Json]:
    """SentencePiece's normalisation. The normalizer `Precompiled` alone is not enough.

    SentencePiece applies the longest rule at each character. The tokenizers library applies the
    shortest rule to a whole grapheme, so it loses combining marks after a capital or a space. Lower
    case letters have no such rules, so the text is lower-cased first (a cased model has none for
    capitals either). The dotted capital I must not
    be lower-cased, so a stand-in replaces it meanwhile. If a mark follows a character that is not a
    letter, a control character is put between them. The rules delete it later.
    """
    rules = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    lower = [
        _replace(DOTTED_CAPITAL_I, STAND_IN),
        {"type": "Lowercase"},
        _replace(STAND_IN, DOTTED_CAPITAL_I),
    ]
    return [
        _replace(r"(?<=[^\p{L}=<>])(?=\p{M})", DELETED),
        *(lower if model.normalizer_spec.name.endswith("_cf") else []),
        {"type": "Precompiled", "precompiled_charsmap": rules},
        _replace("^ +| +$", ""),
        _replace(" +", SPACE),
        {"type": "Prepend", "prepend": SPACE},
    ]


def _replace(pattern: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _openai_json(folder: Path) -> Json:
    """The same tokenizer that transformers' OpenAIGPTTokenizer builds."""
    vocab, merges = ((folder / name).read_text(encoding="utf-8") for name in OPENAI_FILES)
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
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
