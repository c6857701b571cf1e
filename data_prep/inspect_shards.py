"""Lists documents of a shard directory, or prints one.

    python -m data_prep.inspect_shards shards
    python -m data_prep.inspect_shards shards --corpus books --document emma.txt

The first lists each document: split, corpus, tokens, id. The second decodes one document to its
normalised text. Documents of several splits or corpora may have the same id. Only the samples'
json, found by the manifest's offsets, and the tokens of that document are read.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.base.options import Parser, path
from gpt1_ds.data.manifest import SPLITS, Manifest, Shard, read_manifest
from gpt1_ds.data.tokenizer import load_tokenizer


class DocumentSpan(NamedTuple):
    """The tokens of one document that lie in one sample."""

    document: str
    """Its id."""
    shard: Shard
    sample: int
    """Number of the sample in the shard."""
    offset: int
    """Of the span's first token in the document; 0 if the document begins here."""
    first: int
    """The span's first token in the sample."""
    tokens: int


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "directory", type=path, metavar="SHARDS", help="shard directory, the --out of build_shards"
    )
    option = parser.add_argument_group("options").add_argument
    option("--corpus", metavar="NAME", help="look into this corpus (default: all)")
    option("--split", choices=SPLITS, help="look into this split (default: both)")
    option("--document", metavar="ID", help="print the text of this document (default: list them)")
    args = parser.parse_args(argv)
    root, manifest = args.directory, read_manifest(args.directory)
    corpora: dict[str, None] = {}  # in order, each once
    for split in SPLITS:
        corpora |= dict.fromkeys(manifest.splits.get(split, {}))
    if args.corpus and args.corpus not in corpora:
        raise ConfigError(f"--corpus {args.corpus}: not in {root}; {near(args.corpus, corpora)}")
    places = product(
        [args.split] if args.split else SPLITS, [args.corpus] if args.corpus else corpora
    )
    places_here = [
        (split, name) for split, name in places if name in manifest.splits.get(split, {})
    ]
    if args.document is not None:
        print(text(root, manifest, _find(root, manifest, places_here, args.document)))
        return
    for split, corpus in places_here:
        for spans in documents(root, manifest, split, corpus):
            tokens = sum(span.tokens for span in spans)
            print(f"{split}\t{corpus}\t{tokens}\t{spans[0].document}")


def _find(
    root: Path, manifest: Manifest, places: list[tuple[str, str]], document: str
) -> list[DocumentSpan]:
    """The spans of the document in one of the `places`: split and corpus."""
    found: dict[tuple[str, str], list[DocumentSpan]] = {}
    for place in places:
        for spans in documents(root, manifest, *place):
            if spans[0].document == document:
                found[place] = spans
                break
    if not found:
        raise DataError(f"--document {document}: not in {root}; without the option, all are listed")
    if len(found) > 1:
        where = " and ".join("/".join(place) for place in found)
        raise ConfigError(
            f"--document {document}: is in {where}; choose one by --split and --corpus"
        )
    return next(iter(found.values()))


def documents(
    root: Path, manifest: Manifest, split: str, corpus: str
) -> Iterator[list[DocumentSpan]]:
    """The spans of each document, in the order of the shards."""
    token_bytes = manifest.dtype.itemsize
    spans: list[DocumentSpan] = []
    for shard in manifest.splits[split][corpus].shards:
        for sample in range(shard.samples):
            for span in document_spans(root / shard.file, shard, sample, token_bytes):
                if span.offset == 0 and spans:
                    yield spans
                    spans = []
                spans.append(span)
    if spans:
        yield spans


def document_spans(path: Path, shard: Shard, sample: int, token_bytes: int) -> list[DocumentSpan]:
    """The documents of one sample, in order. DataError if its json cannot be read."""
    tokens = shard.sample_tokens[sample]
    tokens_end = shard.sample_offsets[sample] + tokens * token_bytes
    try:
        with open(path, "rb") as file:
            file.seek(-(-tokens_end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            member = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
            if not member.isreg() or member.size > shard.bytes - file.tell():
                raise ValueError(f"{member.name} is not the sample's json")
            record = json.loads(file.read(member.size))
            starts = [(str(name), int(start)) for name, start in record["documents"]]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: sample {sample} cannot be read ({error}); run data_prep.verify_shards"
        ) from error
    ends = [start for _, start in starts[1:]] + [tokens]
    spans = []
    for (name, start), end in zip(starts, ends, strict=True):
        # A document that began in an earlier sample has a negative start.
        first = max(0, start)
        spans.append(DocumentSpan(name, shard, sample, max(0, -start), first, end - first))
    return spans


def text(root: Path, manifest: Manifest, spans: list[DocumentSpan]) -> str:
    """The tokens of the spans, decoded."""
    dtype = manifest.dtype
    found = []
    for span in spans:
        begin = span.shard.sample_offsets[span.sample] + span.first * dtype.itemsize
        found.append(np.fromfile(root / span.shard.file, dtype, span.tokens, offset=begin))
    ids = np.concatenate(found)
    if ids.max(initial=0) >= manifest.tokenizer["vocab_size"]:
        raise DataError(
            f"{root}: token id {ids.max()} outside the vocabulary; run data_prep.verify_shards"
        )
    return load_tokenizer(root / "tokenizer").decode(ids.tolist())


cli = command(main, __name__)
