"""Writes one shard: a WebDataset tar with reproducible bytes."""

import io
import json
import os
import tarfile
from pathlib import Path
from types import TracebackType

import numpy as np

from gpt1_ds.base.files import file_sha256, flush
from gpt1_ds.data.manifest import Shard, token_dtype


class ShardWriter:
    """Writes the tar `root/file`. Its bytes depend only on its samples.

    The tar has a temporary name until `close`. Use the writer as a context manager and call `close`
    at the end of the block. If the block fails, the temporary file is removed.
    """

    def __init__(self, root: Path | str, file: str, corpus: str, vocab_size: int):
        self.path = Path(root) / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._output = open(self._temporary, "wb")
        self._tar = tarfile.open(fileobj=self._output, mode="w", format=tarfile.USTAR_FORMAT)
        self._corpus = corpus
        self._dtype = token_dtype(vocab_size)
        self._offsets: list[int] = []
        self._tokens: list[int] = []
        self._documents = 0
        self._file = file

    def add(self, tokens_T: np.ndarray, documents: list[tuple[str, int]]) -> None:
        """Append one sample: its tokens, and the (id, token offset) of each document in it."""
        # The key is unique in its corpus and split. It has no dots, because WebDataset ends the key
        # at the first dot.
        key = f"{self.path.stem}-{len(self._tokens):06d}"
        npy = io.BytesIO()
        np.lib.format.write_array(npy, np.ascontiguousarray(tokens_T, self._dtype), version=(1, 0))
        member_start = self._add_member(f"{key}.tokens.npy", npy.getvalue())
        record = {"corpus": self._corpus, "documents": [list(document) for document in documents]}
        self._add_member(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        self._offsets.append(member_start + npy.tell() - len(tokens_T) * self._dtype.itemsize)
        self._tokens.append(len(tokens_T))
        self._documents += sum(offset >= 0 for _, offset in documents)

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a file to the tar; returns the byte offset of its data."""
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode 0644
        info.size = len(data)
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return start

    def close(self) -> Shard:
        """Flush to disk and give the shard its final name."""
        self._tar.close()
        self._output.close()
        flush(self._temporary)
        size, sha256 = self._temporary.stat().st_size, file_sha256(self._temporary)
        os.replace(self._temporary, self.path)
        return Shard(
            self._file,
            bytes=size,
            sha256=sha256,
            samples=len(self._tokens),
            documents=self._documents,
            tokens=sum(self._tokens),
            sample_offsets=self._offsets,
            sample_tokens=self._tokens,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._temporary.unlink(missing_ok=True)
        self._output.close()
