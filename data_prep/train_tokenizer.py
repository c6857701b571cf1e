"""Trains the SentencePiece BPE that everything else speaks.

    python -m data_prep.train_tokenizer --corpus books=PATH --corpus lm1b=PATH --vocab-size 40000 --out tok/

About 4 seconds for 22 MB of books and 8,000 pieces. Writes `OUT/preparation.json` (corpora with hashes, sampling,
normalisation) and then `OUT/tokenizer.model`, each atomically; the model is the same, byte for byte, for the same input
and options.

The text is cleaned as for the shards (`--clean`); NFKC and lower case are the model's own (`--normalization-rule`).
White space: every run of it, line breaks included, is one space, which begins the piece behind it; no piece crosses it.
Digits: a run of them is apart from letters, and is cut as learned: pieces of one digit and of several (years, say).
The rarest characters (0.01 % of the text) have no piece of their own and are spelled as UTF-8 bytes, so no text is
unknown. Beyond `--sample-bytes`, a seeded share of the lines is learned from: memory is about 4 times that.
"""

import argparse
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from data_prep.reading.cleaning import Cleaning, add_option, parse_steps
from data_prep.reading.corpus import Source, SourceReader, find_sources
from gpt1_ds.base.errors import ConfigError, DataError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.tokenizer import CONTROL_PIECES, MODEL_FILE

CHUNK_CHARACTERS = 1000
"""SentencePiece skips training sentences of more than 4,192 bytes; a character has up to 4."""

RULES = ("nmt_nfkc_cf", "nmt_nfkc", "identity")

UNK_ID = len(CONTROL_PIECES)
"""SentencePiece insists on such a piece; with byte fallback it never occurs."""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.train_tokenizer", description=__doc__.split("\n")[0]
    )
    option = parser.add_argument
    option(
        "--corpus",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="training text, a file or a folder; repeatable",
    )
    option(
        "--vocab-size",
        type=int,
        default=40_000,
        metavar="PIECES",
        help="pieces, with 5 control pieces, <unk> and 256 bytes among them (default: 40000)",
    )
    option("--out", type=Path, required=True, metavar="DIR", help="folder for tokenizer.model")
    option(
        "--sample-bytes",
        type=int,
        default=500_000_000,
        metavar="BYTES",
        help="text to learn from; of more, a seeded sample of lines is taken (default: 500000000)",
    )
    option("--seed", type=int, default=42, help="seed of that sample (default: 42)")
    option(
        "--normalization-rule",
        choices=RULES,
        default=RULES[0],
        help="the model's: NFKC and lower case, NFKC alone, or neither; the first encodes fastest"
        f" (default: {RULES[0]})",
    )
    add_option(parser)
    args = parser.parse_args(argv)
    sources = find_sources(args.corpus, [])
    cleaning = Cleaning(parse_steps(args.clean, {source.corpus for source in sources}))
    for option, value in (("--vocab-size", args.vocab_size), ("--sample-bytes", args.sample_bytes)):
        if value < 1:
            raise ConfigError(f"{option} {value}: must be at least 1")
    sampled = _Sample(sources, cleaning, args.sample_bytes, args.seed)
    model = _train(sampled, args.vocab_size, args.normalization_rule)
    record = {
        "normalization": cleaning.record(),
        "normalization_rule": args.normalization_rule,
        "sample_bytes": args.sample_bytes,
        "seed": args.seed,
        "sentencepiece": sentencepiece.__version__,
        "sources": sampled.read,
        "vocab_size": args.vocab_size,
    }
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            args.out / "preparation.json", json.dumps(record, indent=1, ensure_ascii=False)
        )
        write_atomically(args.out / MODEL_FILE, model)
    except OSError as error:
        raise DataError(f"--out {args.out}: cannot be written ({error.strerror})") from error
    print(
        f"{args.out / MODEL_FILE}: {args.vocab_size:,} pieces from {sampled.bytes / 1e6:,.1f} MB of text"
    )


class _Sample:
    """The training lines: all of a small corpus, a seeded share of a large one."""

    def __init__(self, sources: list[Source], cleaning: Cleaning, sample_bytes: int, seed: int):
        self._sources, self._cleaning = sources, cleaning
        text_bytes = sum(source.cost for source in sources)
        self._share = min(1.0, sample_bytes / text_bytes)
        self._random = random.Random(seed)
        self.bytes = 0
        """Text given out so far."""
        self.read: list[dict[str, str | int]] = []
        """Sources read to their end."""

    def __iter__(self) -> Iterator[str]:
        total = sum(source.bytes for source in self._sources)
        with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=None) as bar:
            for source in self._sources:
                reader = SourceReader(source, self._cleaning)
                for piece in reader.pieces():
                    for line in piece.text.split("\n"):
                        if self._share == 1 or self._random.random() < self._share:
                            self.bytes += len(line.encode())
                            yield from _chunks(line)
                    bar.update(reader.bytes_read + sum(r["bytes"] for r in self.read) - bar.n)
                self.read.append(
                    {
                        "corpus": source.corpus,
                        "file": source.name,
                        "bytes": source.bytes,
                        "sha256": reader.sha256,
                    }
                )


def _chunks(line: str) -> Iterator[str]:
    while len(line) > CHUNK_CHARACTERS:
        cut = line.rfind(" ", 0, CHUNK_CHARACTERS) + 1 or CHUNK_CHARACTERS
        yield line[:cut]
        line = line[cut:]
    yield line


def _train(sentences: _Sample, vocab_size: int, rule: str) -> bytes:
    model = io.BytesIO()
    lines = iter(sentences)
    try:
        pad, bos, eos, *others = CONTROL_PIECES
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name=rule,
            byte_fallback=True,
            character_coverage=0.9999,
            pad_id=0,
            pad_piece=pad,
            bos_id=1,
            bos_piece=bos,
            eos_id=2,
            eos_piece=eos,
            control_symbols=others,
            unk_id=UNK_ID,
            minloglevel=2,
            num_threads=2,  # a constant: it is recorded in the model's bytes
        )
    except RuntimeError as error:
        limit = re.search(r"set it to a value <= (\d+)", str(error))
        least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if limit:
            fix = f"the corpus has too little text for so many pieces; use at most {limit[1]}"
        elif least:
            fix = f"bytes and the corpus's characters alone need more; use at least {int(least[1]) + 1}"
        else:
            raise
        raise ConfigError(f"--vocab-size {vocab_size}: {fix}") from error
    return model.getvalue()


cli = command(main, __name__)
