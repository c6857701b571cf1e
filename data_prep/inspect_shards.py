"""Lists the documents of a shard directory, or prints one back as text.

    python -m data_prep.inspect_shards shards/                                    id, split, corpus, tokens of each
    python -m data_prep.inspect_shards shards/ --corpus books --document emma.txt    its normalised text, decoded

Reads the samples' json alone, at the place that the manifest gives, and the tokens of the document asked for.
"""

import argparse
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.data.manifest import SPLITS, Manifest, Shard, read_manifest
from gpt1_ds.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Part:
    """What one sample holds of a document."""

    document: str
    offset: int
    """Of the part's first token in the document; 0 where it begins here."""
    first: int
    """Token of the sample."""
    tokens: int


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.inspect_shards", description=__doc__.split("\n")[0]
    )
    parser.add_argument("directory", type=Path, help="shard directory, the --out of build_shards")
    parser.add_argument("--corpus", metavar="NAME", help="look into this corpus (default: all)")
    parser.add_argument(
        "--document", metavar="ID", help="print the text of this document (default: list them)"
    )
    args = parser.parse_args(argv)
    manifest = read_manifest(args.directory)
    corpora = list(
        dict.fromkeys(name for split in SPLITS for name in manifest.splits.get(split, {}))
    )
    if args.corpus and args.corpus not in corpora:
        raise ConfigError(
            f"--corpus {args.corpus}: not in {args.directory}; {near(args.corpus, corpora)}"
        )
    for split, corpus in ((split, corpus) for split in SPLITS for corpus in corpora):
        if args.corpus in (None, corpus) and corpus in manifest.splits.get(split, {}):
            for document, pieces in documents(args.directory, manifest, split, corpus):
                if args.document is None:
                    print(
                        f"{split}\t{corpus}\t{sum(part.tokens for _, _, part in pieces)}\t{document}"
                    )
                elif args.document == document:
                    return print(text(args.directory, manifest, pieces))
    if args.document is not None:
        raise DataError(
            f"--document {args.document}: not in {args.directory}; without the option, all are listed"
        )


Piece = tuple[Shard, int, Part]  # (shard, number of its sample, what that holds)


def documents(
    root: Path, manifest: Manifest, split: str, corpus: str
) -> Iterator[tuple[str, list[Piece]]]:
    """(id, pieces) of each document, in the order of the shards."""
    pieces: list[Piece] = []
    for shard in manifest.splits[split][corpus].shards:
        for sample in range(shard.samples):
            for part in parts(root / shard.file, manifest, shard, sample):
                if part.offset == 0 and pieces:
                    yield pieces[0][2].document, pieces
                    pieces = []
                pieces.append((shard, sample, part))
    if pieces:
        yield pieces[0][2].document, pieces


def parts(path: Path, manifest: Manifest, shard: Shard, sample: int) -> list[Part]:
    """The documents of one sample, in order. DataError where its json cannot be read."""
    tokens = shard.sample_tokens[sample]
    end = shard.sample_offsets[sample] + tokens * manifest.dtype.itemsize
    try:
        with open(path, "rb") as file:
            file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            member = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
            if not member.isreg() or not member.size <= shard.bytes - file.tell():
                raise ValueError(f"{member.name} is not the sample's json")
            starts = [
                (str(name), int(start))
                for name, start in json.loads(file.read(member.size))["documents"]
            ]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: sample {sample} cannot be read ({error}); run data_prep.verify_shards"
        ) from error
    ends = [start for _, start in starts[1:]] + [tokens]
    return [
        Part(name, max(0, -start), max(0, start), end - max(0, start))
        for (name, start), end in zip(starts, ends, strict=True)
    ]


def text(root: Path, manifest: Manifest, pieces: list[Piece]) -> str:
    """The pieces' tokens, decoded."""
    ids = np.concatenate(
        [
            np.fromfile(
                root / shard.file,
                manifest.dtype,
                part.tokens,
                offset=shard.sample_offsets[sample] + part.first * manifest.dtype.itemsize,
            )
            for shard, sample, part in pieces
        ]
    )
    if ids.max(initial=0) >= manifest.tokenizer["vocab_size"]:
        raise DataError(
            f"{root}: token id {ids.max()} outside the vocabulary; run data_prep.verify_shards"
        )
    return load_tokenizer(root / "tokenizer").decode(ids.tolist())


cli = command(main, __name__)
