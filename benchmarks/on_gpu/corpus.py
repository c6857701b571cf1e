"""Shards of random tokens with GPT-1's vocabulary, and a tokenizer of that size."""

import hashlib
from pathlib import Path

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from gpt1_ds.data.manifest import CorpusEntry, Manifest, write_manifest
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.tokenizer import CONTROL_PIECES, MODEL_FILE

DOCUMENT_TOKENS = 65_536
DROPPED = ("empty", "bad_text", "duplicate", "near_duplicate", "duplicate_paragraphs")


def build(root: Path, tokens: int, vocab_size: int) -> None:
    """Write a shard directory of `tokens` training tokens, and a few for validation."""
    model = _tokenizer_model(vocab_size)
    folder = root / "tokenizer"
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(model)
    splits = {"train": tokens, "valid": DOCUMENT_TOKENS}
    corpora = {
        split: {"random": _corpus(root, split, splits[split], vocab_size)} for split in splits
    }
    tokenizer = {
        "kind": "sentencepiece",
        "files": [MODEL_FILE],
        "sha256": hashlib.sha256(model).hexdigest(),
        "vocab_size": vocab_size,
        "special_ids": {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4},
    }
    write_manifest(root, Manifest(tokenizer, {}, corpora))


def _tokenizer_model(vocab_size: int) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = proto.SentencePiece
    for piece in CONTROL_PIECES:
        proto.pieces.add(piece=piece, type=kinds.CONTROL)
    proto.pieces.add(piece="<unk>", type=kinds.UNKNOWN)
    for number in range(len(proto.pieces), vocab_size):
        proto.pieces.add(piece=f"w{number}")
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    return bytes(proto.SerializeToString(deterministic=True))


def _corpus(root: Path, split: str, tokens: int, vocab_size: int) -> CorpusEntry:
    rng, documents = np.random.default_rng(0), 0
    file = f"{split}/random/random-000000.tar"
    with ShardWriter(root, file, "random", vocab_size) as writer:
        for begin in range(0, tokens, DOCUMENT_TOKENS):
            count = min(DOCUMENT_TOKENS, tokens - begin)
            writer.add(rng.integers(5, vocab_size, count), [(f"{begin}", 0)])
            documents += 1
        shard = writer.close()
    return CorpusEntry(documents, tokens, [shard])
