"""Checks a shard directory against its manifest.

    python -m data_prep.verify_shards shards
    python -m data_prep.verify_shards shards --stats --out documents.png

It checks every hash, size, count, token id and document offset: exit 0, or 3 with what is wrong.
`--stats` also prints a table of the corpora and draws a histogram of their documents' lengths.
Every shard is read twice: for its hash, and for its samples.
"""

import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.building.consistency import find_contradictions
from data_prep.building.corpus_table import print_corpus_table
from data_prep.inspect_shards import documents
from gpt1_ds.base.errors import DataError, command
from gpt1_ds.base.options import Parser, path
from gpt1_ds.base.progress import Progress
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.data.manifest import (
    SAMPLE_TOKENS,
    SPLITS,
    Manifest,
    Shard,
    find_damage,
    read_manifest,
)

_KEY = re.compile(r"([\w-]+)\.tokens\.npy", re.ASCII)
_RECORD_BYTES = 1 << 26
"""Most bytes of a sample's json: 65,536 documents of one token each may have long names."""


class Sample(NamedTuple):
    """One sample of a tar, as it is read back."""

    tokens: np.ndarray
    """(T,) in a sound shard."""
    record: dict[str, Any]
    """Its json: `corpus` and `documents`."""
    offset: int
    """Byte of its first token in the tar."""


def main(argv: list[str]) -> None:
    keep_going_without_output()
    parser = Parser(description=__doc__)
    parser.add_argument(
        "directory", type=path, metavar="SHARDS", help="shard directory, the --out of build_shards"
    )
    option = parser.add_argument_group("options").add_argument
    option("--stats", action="store_true", help="print a table, draw the documents' lengths")
    option(
        "--out",
        "--picture",
        dest="picture",
        type=path,
        default="documents.png",
        metavar="FILE",
        help="where --stats draws",
    )
    args = parser.parse_args(argv)
    root, manifest = args.directory, read_manifest(args.directory)
    shards = manifest.shards()
    total = sum(shard.bytes for shard in shards)
    with Progress("verifying", total, "byte") as bar:
        problems = verify(root, bar.update)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(
            f"{root}: {len(problems)} problems, listed above; delete the folder and build it again"
        )
    tokens = sum(shard.tokens for shard in shards)
    print(
        f"{root}: {len(shards):,} shards, {total / 1e6:,.1f} MB, {tokens:,} tokens,"
        " all as the manifest says"
    )
    if args.stats:
        print_corpus_table(manifest)
        print(f"{draw_lengths(root, manifest, args.picture)}: lengths of the documents, in tokens")


def draw_lengths(root: Path, manifest: Manifest, path: Path) -> Path:
    """A histogram for each corpus, both splits together, over logarithmic bins.

    It is a PNG, or what the end of the name says.
    """
    from matplotlib.figure import Figure  # takes a second

    corpora = list(manifest.preparation["corpora"])
    figure = Figure(figsize=(8, 1 + 2.5 * len(corpora)), layout="constrained")
    rows = figure.subplots(len(corpora), squeeze=False)[:, 0]
    for corpus, axes in zip(corpora, rows, strict=True):
        lengths = []
        for split in SPLITS:
            if corpus in manifest.splits[split]:
                for spans in documents(root, manifest, split, corpus):
                    lengths.append(sum(span.tokens for span in spans))
        lengths_D = np.array(lengths)
        axes.hist(lengths_D, np.geomspace(lengths_D.min(), lengths_D.max() + 1, 60))
        axes.set(xscale="log", xlabel="tokens of a document", ylabel="documents")
        axes.set_title(
            f"{corpus}: {len(lengths_D):,} documents, median {np.median(lengths_D):,.0f} tokens"
        )
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--picture {path}: cannot be written ({error}); choose another file"
        ) from error
    return path


def verify(root: Path | str, progress: Callable[[float], object] | None = None) -> list[str]:
    """Problems of a shard directory, one line each, in manifest order; none if it is whole.

    Checks every value of the manifest, the tokenizer, every shard's size and hash, and every
    sample's count, place, dtype, id range and document offsets. `progress` is called with the bytes
    of each shard done.
    DataError if no manifest can be read.
    """
    root = Path(root)
    manifest = read_manifest(root)
    problems = find_contradictions(root, manifest)
    for corpora in manifest.splits.values():
        for corpus, entry in corpora.items():
            for shard in entry.shards:
                problem = _verify_shard(root, manifest, corpus, shard)
                if problem:
                    problems.append(f"{root / shard.file}: {problem}")
                if progress:
                    progress(shard.bytes)
    return problems


def _verify_shard(root: Path, manifest: Manifest, corpus: str, shard: Shard) -> str | None:
    """What is wrong with the shard, None if it is sound."""
    path = root / shard.file
    problem = find_damage(path, shard, hashed=True)
    if problem:
        return problem
    documents = 0
    counts, offsets = [], []
    try:
        for number, sample in enumerate(iter_samples(path)):
            counts.append(len(sample.tokens))
            offsets.append(sample.offset)
            documents += sum(start >= 0 for _, start in sample.record["documents"])
            problem = _sample_problem(sample, manifest, corpus)
            if problem:
                return f"sample {number}: {problem}"
    except (
        OSError,
        EOFError,
        MemoryError,
        tarfile.TarError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        return f"cannot be read as a shard ({error})"
    expected = (list(shard.sample_tokens), list(shard.sample_offsets), shard.documents)
    if (counts, offsets, documents) != expected:
        return "samples, their places or documents differ from the manifest's"
    return None


def _sample_problem(sample: Sample, manifest: Manifest, corpus: str) -> str | None:
    tokens = sample.tokens
    starts = [start for _, start in sample.record["documents"]]
    is_row = tokens.dtype == manifest.dtype and tokens.ndim == 1
    if not is_row or not 0 < len(tokens) <= SAMPLE_TOKENS:
        return f"{tokens.dtype} array of shape {tokens.shape}"
    if int(tokens.max()) >= manifest.tokenizer["vocab_size"]:
        return f"token id {tokens.max()} outside the vocabulary"
    ordered = bool(starts) and starts == sorted(starts) and starts[-1] < len(tokens)
    if sample.record["corpus"] != corpus or not ordered:
        return "documents do not fit its tokens"
    return None


def iter_samples(path: Path) -> Iterator[Sample]:
    """Each sample of a tar.

    ValueError for anything but pairs `KEY.tokens.npy`, `KEY.json` of plain files with keys of
    their own. Nothing is unpickled, and no more is read or allocated than a sample may have.
    """
    keys = set()
    with tarfile.open(path, "r:") as tar:
        members = iter(tar)
        for first in members:
            second = next(members, None)
            key = _KEY.fullmatch(first.name)
            if second is None or not key or second.name != f"{key[1]}.json" or key[1] in keys:
                raise ValueError(
                    f"member {first.name!r} is not the first of a pair KEY.tokens.npy, KEY.json"
                    " of its own"
                )
            keys.add(key[1])
            npy = _read_member(tar, first, SAMPLE_TOKENS * 4 + (1 << 14))
            tokens, header_bytes = _read_tokens(npy)
            record = json.loads(_read_member(tar, second, _RECORD_BYTES))
            yield Sample(tokens, record, first.offset_data + header_bytes)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, most_bytes: int) -> bytes:
    is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    content = tar.extractfile(member) if is_plain and member.size <= most_bytes else None
    if content is None:
        raise ValueError(f"member {member.name!r} is no plain file of at most {most_bytes} bytes")
    data = content.read()
    if len(data) != member.size:
        raise ValueError(f"member {member.name!r} ends early")
    return data


def _read_tokens(npy: bytes) -> tuple[np.ndarray, int]:
    """Array of a .npy file, and the bytes of its header.

    What the header claims is compared with the file's size before anything is allocated.
    """
    file = io.BytesIO(npy)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not a .npy file of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or len(npy) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"array of {dtype} and shape {shape} does not fit its member's {len(npy)} bytes"
        )
    return np.frombuffer(npy, dtype, offset=file.tell()).reshape(shape), file.tell()


cli = command(main, __name__)
