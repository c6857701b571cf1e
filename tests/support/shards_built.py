"""Makes shard directories for tests: random tokens in samples and shards of given sizes."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from gpt1_ds.data.manifest import CorpusEntry, Manifest, Shard, write_manifest
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.tokenizer import CONTROL_PIECES

VOCAB_SIZE = 8000


@functools.cache
def model(vocab_size: int) -> bytes:
    """A SentencePiece model of so many pieces."""
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = proto.SentencePiece
    for piece in CONTROL_PIECES:
        proto.pieces.add(piece=piece, type=kinds.CONTROL)
    proto.pieces.add(piece="<unk>", type=kinds.UNKNOWN)
    for number in range(len(proto.pieces), vocab_size):
        proto.pieces.add(piece=f"w{number}")
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    return proto.SerializeToString(deterministic=True)


MODEL = model(VOCAB_SIZE)
SETTINGS = {
    "tokenizer": hashlib.sha256(MODEL).hexdigest(),
    "by_the_tokenizer": {},
    "normalization": {"steps": {}, "versions": {}, "bad_text": "mend"},
    "duplicate_paragraphs": 200,
    "near_duplicates": 0.0,
    "block_lines": 10_000,
    "sample_tokens": 65_536,
    "shard_tokens": 1 << 24,
    "validation_fraction": 0.005,
}


DROPPED = ("empty", "bad_text", "duplicate", "near_duplicate", "duplicate_paragraphs")


def about(documents: int) -> dict[str, object]:
    """The manifest's record of a corpus that is all training."""
    text = {"text_bytes": 2 * documents, "unknown": 0}
    return {
        "split": "hash",
        "documents_read": documents,
        "mended": {},
        "dropped": dict.fromkeys(DROPPED, 0),
        "text": {"train": text, "valid": dict.fromkeys(text, 0)},
        "sources": [],
    }


@dataclass
class Built:
    root: Path
    manifest: Manifest
    streams: dict[str, np.ndarray]
    """Every token of a corpus, (T,)."""

    @property
    def tokens(self) -> np.ndarray:
        return self.streams["a"]

    def shard(self, number: int = 0, corpus: str = "a") -> Shard:
        return self.manifest.splits["train"][corpus].shards[number]

    def path(self, number: int = 0, corpus: str = "a") -> Path:
        return self.root / self.shard(number, corpus).file

    def confirm(self, data: bytes, number: int = 0) -> None:
        """Put `data` in a shard's place, with a manifest that confirms it, whatever is inside."""
        shard = self.shard(number)
        self.path(number).write_bytes(data)
        shard.bytes, shard.sha256 = len(data), hashlib.sha256(data).hexdigest()
        write_manifest(self.root, self.manifest)


def build(
    root: Path, sizes: list[list[int]] | dict[str, list[list[int]]], vocab_size: int = VOCAB_SIZE
) -> Built:
    """Shards of corpus `a`, or of each corpus: the sizes of the samples of each shard.

    Each sample has two documents.
    """
    rng = np.random.default_rng(7)
    streams, entries = {}, {}
    for corpus, shard_sizes in (sizes if isinstance(sizes, dict) else {"a": sizes}).items():
        stream, shards = [np.empty(0, np.int64)], []
        for number, sample_sizes in enumerate(shard_sizes):
            file = f"train/{corpus}/{corpus}-{number:06d}.tar"
            with ShardWriter(root, file, corpus, vocab_size) as writer:
                for size in sample_sizes:
                    stream.append(rng.integers(0, vocab_size, size))
                    writer.add(stream[-1], [("première", 0), (f"{number}/x.txt", size // 2)])
                shards.append(writer.close())
        streams[corpus] = np.concatenate(stream)
        documents = sum(shard.documents for shard in shards)
        entries[corpus] = CorpusEntry(documents, len(streams[corpus]), shards)
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.model").write_bytes(model(vocab_size))
    tokenizer = {
        "kind": "sentencepiece",
        "files": ["tokenizer.model"],
        "sha256": hashlib.sha256(model(vocab_size)).hexdigest(),
        "vocab_size": vocab_size,
        "special_ids": {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4},
    }
    corpora = {name: about(entry.documents) for name, entry in entries.items()}
    settings = SETTINGS | {"tokenizer": tokenizer["sha256"]}
    preparation = {"settings": settings, "corpora": corpora}
    manifest = Manifest(tokenizer, preparation, {"train": entries, "valid": {}})
    write_manifest(root, manifest)
    return Built(root, manifest, streams)
