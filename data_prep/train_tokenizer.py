"""Trains a SentencePiece BPE tokenizer.

    python -m data_prep.train_tokenizer --corpus books=PATH --vocab-size 40000 \\
        --out tok

Takes about 4 seconds for 22 MB of books and 8,000 pieces. Writes `OUT/preparation.json` (corpora
with hashes, sampling, normalisation) and then `OUT/tokenizer.model`, each atomically. The model is
the same, byte for byte, for the same input and options.

The text is cleaned as for the shards (`--clean`). The model itself does NFKC and lower case, as
GPT-1 does. With `--case keep` capitals stay capitals, for comparisons with figures of cased text,
such as those of 1B Word.
White space: every run of it, line breaks included, becomes one space, which is the start of the
next piece. No piece crosses it.
Digits: a run of digits is separate from letters. The model learns pieces of one digit and of
several (years, for example).
The rarest characters (0.01 % of the text) have no piece of their own and are spelled as UTF-8
bytes, so no text is unknown. If there is more text than `--sample-bytes`, the model learns from a
seeded share of the lines. Memory is about 4 times that size.
"""

import argparse
import io
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from data_prep.inspect_shards import documents
from data_prep.reading.cleaning import Cleaning, add_option, parse_steps
from data_prep.reading.corpus import Source, SourceReader, find_sources
from data_prep.reading.folders import MOST_NAMES, PassedOver, shown
from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.options import Parser, path
from gpt1_ds.base.progress import Progress
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.tokenizer import CONTROL_PIECES, MODEL_FILE

CHUNK_CHARACTERS = 1000
"""SentencePiece skips training sentences of more than 4,192 bytes; a character has up to 4."""

RULES = ("nmt_nfkc_cf", "nmt_nfkc", "identity")
CASES = {"fold": "nmt_nfkc_cf", "keep": "nmt_nfkc"}
"""Values of --case, and the rule of each."""

UNK_ID = len(CONTROL_PIECES)
"""SentencePiece insists on such a piece; with byte fallback it never occurs."""
FEWEST_PIECES = UNK_ID + 1
MOST_PIECES = 2**31 - 1
"""SentencePiece counts pieces in 32 bits."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    option = parser.add_argument_group("text and result").add_argument
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
    option("--out", type=path, required=True, metavar="DIR", help="folder for tokenizer.model")
    option(
        "--documents-of",
        type=path,
        metavar="SHARDS",
        help="learn only from the documents that this shard directory trains on, of another"
        " tokenizer but the same --corpus; for build_shards --max-words (default: all)",
    )
    option = parser.add_argument_group("how it learns").add_argument
    option(
        "--sample-bytes",
        type=int,
        default=500_000_000,
        metavar="BYTES",
        help="text to learn from; of more, a seeded sample of lines is taken (default: 500000000)",
    )
    option("--seed", type=int, default=42, metavar="N", help="seed of that sample")
    option(
        "--case",
        choices=tuple(CASES),
        help="fold: capitals become lower case; keep: a cased vocabulary (default: fold)",
    )
    option(
        "--normalization-rule",
        choices=RULES,
        help="the model's: NFKC and lower case, NFKC alone, or neither, which encodes slowest"
        f" (default: that of --case, {RULES[0]})",
    )
    add_option(option)
    return parser


def main(argv: list[str]) -> None:
    keep_going_without_output()
    args = _parser().parse_args(argv)
    sources = find_sources(args.corpus, [])
    cleaning = Cleaning(parse_steps(args.clean, {source.corpus for source in sources}))
    for name, value, least, most in (
        ("--vocab-size", args.vocab_size, FEWEST_PIECES, MOST_PIECES),
        ("--sample-bytes", args.sample_bytes, 1, sys.maxsize),
    ):
        if value < 1:
            raise ConfigError(f"{name} {value}: must be at least 1")
        if not least <= value <= most:
            raise ConfigError(f"{name} {value}: must be at least {least} and at most {most}")
    rule = _rule(args.case, args.normalization_rule)
    chosen = _documents_of(args.documents_of, sources) if args.documents_of else None
    text = _TrainingText(sources, cleaning, args.sample_bytes, args.seed, chosen)
    model = _train(text, args.vocab_size, rule)
    record = {
        "normalization": cleaning.record(),
        "normalization_rule": rule,
        "sample_bytes": args.sample_bytes,
        "seed": args.seed,
        "sentencepiece": sentencepiece.__version__,
        "sources": text.sources_read,
        "vocab_size": args.vocab_size,
    }
    if chosen is not None:
        record["documents"] = {corpus: sorted(ids) for corpus, ids in chosen.items()}
    record_text = json.dumps(record, indent=1, ensure_ascii=False)
    path = args.out / MODEL_FILE
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out / "preparation.json", record_text)
        write_atomically(path, model)
    except OSError as error:
        raise DataError(f"--out {args.out}: cannot be written ({error.strerror})") from error
    if text.passed_over:
        reasons = Counter(reason for reason, _ in text.passed_over)
        print(shown(reasons, [name for _, name in text.passed_over[:MOST_NAMES]]))
    print(f"{path}: {args.vocab_size:,} pieces from {text.bytes / 1e6:,.1f} MB of text")


def _rule(case: str | None, rule: str | None) -> str:
    """The normalisation of the model; ConfigError if the two options contradict each other."""
    if case is not None and rule is not None and (rule == CASES["fold"]) != (case == "fold"):
        raise ConfigError(f"--case {case}: --normalization-rule {rule} does not; leave one out")
    return rule or CASES[case or "fold"]


def _documents_of(shards: Path, sources: list[Source]) -> dict[str, set[str]]:
    """By corpus: the ids of its training documents in a shard directory."""
    manifest = read_manifest(shards)
    corpora = list(dict.fromkeys(source.corpus for source in sources))
    chosen = {}
    for corpus in corpora:
        if corpus not in manifest.splits["train"]:
            raise ConfigError(
                f"--documents-of {shards}: it does not train on corpus {corpus}; "
                f"{near(corpus, manifest.splits['train'])}"
            )
        found = documents(shards, manifest, "train", corpus)
        chosen[corpus] = {spans[0].document for spans in found}
    return chosen


class _TrainingText:
    """The training lines: all of a small corpus, a seeded share of a large one.

    Of the `chosen` documents only, if they are given: ids by corpus.
    """

    def __init__(
        self,
        sources: list[Source],
        cleaning: Cleaning,
        sample_bytes: int,
        seed: int,
        chosen: dict[str, set[str]] | None = None,
    ):
        self._sources = sources
        self._cleaning = cleaning
        self._chosen = chosen
        text_bytes = sum(source.cost for source in sources)
        self._share = min(1.0, sample_bytes / text_bytes)
        self._random = random.Random(seed)
        self.bytes = 0
        """Of text given to the trainer so far."""
        self.sources_read: list[dict[str, str | int]] = []
        """Sources read to their end."""
        self.passed_over: list[PassedOver] = []
        self.fault: BaseException | None = None
        """What ended the reading early: SentencePiece turns it into an error of its own."""

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._lines()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.fault = error
            raise

    def _lines(self) -> Iterator[str]:
        total = sum(source.bytes for source in self._sources)
        with Progress("reading", total, "byte") as bar:
            before = 0  # bytes of the sources read to their end
            for source in self._sources:
                reader = SourceReader(source, self._cleaning)
                for fragment in reader.fragments():
                    if self._chosen and fragment.id not in self._chosen[source.corpus]:
                        continue
                    for line in fragment.text.split("\n"):
                        if self._share == 1 or self._random.random() < self._share:
                            self.bytes += len(line.encode())
                            yield from _chunks(line)
                    bar.update(before + reader.bytes_read - bar.done)
                before += source.bytes
                self.passed_over += reader.passed_over
                self.sources_read.append(
                    {
                        "corpus": source.corpus,
                        "file": source.name,
                        "bytes": source.bytes,
                        "sha256": reader.sha256,
                    }
                )


def _chunks(line: str) -> Iterator[str]:
    """The line in parts of at most `CHUNK_CHARACTERS`, cut between words."""
    while len(line) > CHUNK_CHARACTERS:
        cut = line.rfind(" ", 0, CHUNK_CHARACTERS) + 1 or CHUNK_CHARACTERS
        yield line[:cut]
        line = line[cut:]
    yield line


def _train(text: _TrainingText, vocab_size: int, rule: str) -> bytes:
    """The bytes of the model. ConfigError if the text is too small or rich for `vocab_size`.

    DataError if there is no text. What ends the reading of the text is raised as it is.
    """
    model = io.BytesIO()
    pad, bos, eos, *others = CONTROL_PIECES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
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
            num_threads=2,  # a constant, since the model's bytes record it
        )
    except Exception as error:  # SentencePiece raises several classes
        if text.fault is not None:
            raise text.fault from None
        most = re.search(r"set it to a value <= (\d+)", str(error))
        required = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if most:
            fix = f"the corpus has too little text for so many pieces; use at most {most[1]}"
        elif required:
            least = int(required[1]) + 1
            fix = f"bytes and the corpus's characters alone need more; use at least {least}"
        elif re.search("sentences_.empty|all_chars_count", str(error)):
            raise DataError(
                f"--corpus: no character to learn from in the {text.bytes:,} bytes of text that"
                " were taken; give other text, or a larger --sample-bytes"
            ) from error
        else:
            raise
        raise ConfigError(f"--vocab-size {vocab_size}: {fix}") from error
    return model.getvalue()


cli = command(main, __name__)
