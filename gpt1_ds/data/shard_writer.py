"""Writes one shard: a WebDataset tar whose bytes are reproducible."""

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from gpt1_ds.base.files import file_sha256, flush
from gpt1_ds.data.manifest import Shard, token_dtype


class ShardWriter:
    """Writes `root/file`, a tar whose bytes depend on its samples alone, under a temporary name until `close`.

    As a context manager it removes the temporary file when the block fails; a good end still needs `close`.
    """

    def __init__(self, root: Path | str, file: str, corpus: str, vocab_size: int):
        self.path = Path(root) / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._tar = tarfile.open(self._temporary, "w", format=tarfile.USTAR_FORMAT)
        self._corpus = corpus
        self._dtype = token_dtype(vocab_size)
        self._shard = Shard(file, 0, "", 0, 0, 0, [], [])

    def add(self, tokens: np.ndarray, documents: list[tuple[str, int]]) -> None:
        """Append one sample: tokens (T,), and the (id, token offset) of each document in it."""
        shard = self._shard
        # Unique in its corpus and split, and free of dots: WebDataset cuts the key at the first one.
        key = f"{self.path.stem}-{shard.samples:06d}"
        npy = io.BytesIO()
        np.lib.format.write_array(npy, np.ascontiguousarray(tokens, self._dtype), version=(1, 0))
        member_start = self._add_member(f"{key}.tokens.npy", npy.getvalue())
        record = {"corpus": self._corpus, "documents": [list(document) for document in documents]}
        self._add_member(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        shard.sample_offsets.append(member_start + npy.tell() - len(tokens) * self._dtype.itemsize)
        shard.sample_tokens.append(len(tokens))
        shard.samples += 1
        shard.documents += sum(offset >= 0 for _, offset in documents)
        shard.tokens += len(tokens)

    def _add_member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode 0644
        info.size = len(data)
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return start

    def close(self) -> Shard:
        """Flush to disk and give the shard its final name."""
        self._tar.close()
        flush(self._temporary)
        size, sha256 = self._temporary.stat().st_size, file_sha256(self._temporary)
        os.replace(self._temporary, self.path)
        return dataclasses.replace(self._shard, bytes=size, sha256=sha256)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self._temporary.unlink(missing_ok=True)
        self._tar.fileobj.close()
