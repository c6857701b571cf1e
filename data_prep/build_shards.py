"""Tokenises corpora into WebDataset shards.

    mpirun -n 2 python -m data_prep.build_shards --tokenizer tok \\
        --corpus books=PATH --out shards

It runs alone, under `mpirun -n N`, or under `srun`. The output is the same, byte for byte, for any
number of ranks. If it is killed at any moment, the same command continues: it does not repeat
tokenised units and finished shards. A rank needs some 300 MB of memory, whatever the size of the
corpora. A row of a jsonl or parquet file is read whole, which takes up to 11 times its size, and a
.zst takes the window that it was made with, up to 2 GiB.

1. Plan: rank 0 lists the sources, which become units of work
   (`reading/corpus.py`, `encoding.py`).
2. Tokenise: the ranks share the units, and write their tokens to `OUT/.work/`.
3. Compare: the ranks look for equal texts, bucket by bucket
   (`duplicates.py`); rank 0 decides which of them stays (`survivors.py`).
4. Lay out: rank 0 divides the documents into splits, samples and shards
   (`layout.py`).
5. Write: the ranks share the shards; rank 0 writes the manifest last, and
   prints a table.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from data_prep.building.corpus_table import print_corpus_table, warn_of_splits
from data_prep.building.duplicates import bands
from data_prep.building.earlier import LOCK, WORK, is_finished, note_manifest
from data_prep.building.encoding import Encoder, Unit, plan_units
from data_prep.building.layout import Layout, ShardBuilder, plan_shards
from data_prep.building.parts import Parts
from data_prep.building.ranks import CLAIM, Ranks
from data_prep.building.survivors import decide
from data_prep.building.word_budget import MAX_WORDS, WordBudget
from data_prep.reading.cleaning import BAD_TEXT, Cleaning, add_option, parse_steps
from data_prep.reading.corpus import Source, find_sources, in_ranges, is_divisible
from data_prep.reading.formats import BLOCK_LINES
from gpt1_ds.base.errors import MPI_RANKS, ConfigError, DataError, command
from gpt1_ds.base.files import lock_file
from gpt1_ds.base.options import Parser, path
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.data.manifest import (
    MANIFEST,
    NEWLINE_TOKEN,
    SAMPLE_TOKENS,
    SPLITS,
    CorpusEntry,
    Manifest,
    manifest_text,
    read_manifest,
    write_manifest,
)
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer

LONGEST_NAME = 75
"""Characters of a corpus's name: a tar has room for 100 of NAME-000000-000000.tokens.npy."""


def main(argv: list[str]) -> None:
    keep_going_without_output()
    args = _parser().parse_args(argv)
    ranks = Ranks()
    with contextlib.ExitStack() as held:
        sources = ranks.from_first(lambda: _prepare(args, held))
        if sources is not None:
            _build(args, ranks, sources)


def _prepare(args: argparse.Namespace, held: contextlib.ExitStack) -> list[Source] | None:
    """The sources, or None if all is done already. The output's lock is added to `held`."""
    with _writing(args.out):
        _check(args)
        tokenizer = load_tokenizer(args.tokenizer)
        sources = find_sources(args.corpus, args.validation)
        held.enter_context(_lock(args.out))
        if is_finished(args.out, _settings(args, tokenizer), sources):
            print(
                f"{args.out}: finished before, from the same sources, options and tokenizer;"
                " nothing to do"
            )
            warn_of_splits(read_manifest(args.out))
            return None
        tokenizer.copy_to(args.out / "tokenizer")
        (args.out / WORK).mkdir(exist_ok=True)
        for pattern in (f"{WORK}/.*.tmp", "*/*/.*.tmp", f"{WORK}/{CLAIM}*"):
            for left_by_a_kill in args.out.glob(pattern):
                left_by_a_kill.unlink()
        return sources


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    option = parser.add_argument_group("texts and shards").add_argument
    option(
        "--tokenizer",
        type=path,
        required=True,
        metavar="DIR",
        help="folder of train_tokenizer, or OpenAI's files",
    )
    option(
        "--corpus",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="text, a file or a folder; repeatable, also for one NAME",
    )
    option(
        "--validation",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="held-out text of that corpus, of which then nothing else is held out; repeatable"
        " (default: --validation-fraction)",
    )
    option(
        "--validation-fraction",
        type=float,
        default=0.005,
        metavar="FRACTION",
        help="share of documents, chosen by their hash, that corpora without a held-out part give"
        " to validation; one document at least (default: 0.005)",
    )
    option(
        "--shard-tokens",
        type=int,
        default=1 << 24,
        metavar="TOKENS",
        help="most tokens in one shard (default: 16777216, 32 MiB)",
    )
    option(
        "--max-words",
        type=int,
        metavar="N",
        help="at most so many words of training text, between white space and over all corpora:"
        " whole documents in a random order, until the next one would exceed it (default: all)",
    )
    option(
        "--seed",
        type=int,
        default=42,
        metavar="N",
        help="seed of that order, which depends on nothing else but the texts (default: 42)",
    )
    option("--out", type=path, required=True, metavar="DIR", help="shard directory to make")
    option = parser.add_argument_group("cleaning and duplicates").add_argument
    add_option(option)
    option(
        "--bad-text",
        choices=BAD_TEXT,
        default="mend",
        help="what becomes of documents that are not clean UTF-8: converted (UTF-16, Latin-1) or"
        " mended, dropped, or refused, which ends the job; the first two are counted"
        " (default: mend)",
    )
    option(
        "--duplicate-paragraphs",
        type=int,
        default=200,
        metavar="CHARACTERS",
        help="least length of paragraphs that are dropped where they occurred before, in any"
        " corpus; 0 drops none; duplicate documents are always dropped (default: 200)",
    )
    option(
        "--near-duplicates",
        type=float,
        default=0.0,
        metavar="SIMILARITY",
        help="drop documents too whose five-word runs are those of an earlier one to this share"
        " (Jaccard, by MinHash; 0.8, say); 0: off (default: 0)",
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    """ConfigError for a number out of its bounds, or a name that no tar can hold."""
    fraction, near = args.validation_fraction, args.near_duplicates
    shard_tokens, paragraphs = args.shard_tokens, args.duplicate_paragraphs
    least = f"at least {SAMPLE_TOKENS}, a sample"
    for option, value, fits, bounds in (
        ("--validation-fraction", fraction, 0 <= fraction < 1, "at least 0 and below 1"),
        ("--near-duplicates", near, 0 <= near <= 1, "between 0 and 1"),
        ("--shard-tokens", shard_tokens, shard_tokens >= SAMPLE_TOKENS, least),
        ("--duplicate-paragraphs", paragraphs, paragraphs >= 0, "at least 0"),
        ("--max-words", args.max_words, args.max_words is None or args.max_words > 0, "above 0"),
        ("--seed", args.seed, 0 <= args.seed < 2**63, "at least 0 and below 2^63"),
    ):
        if not fits:
            raise ConfigError(f"{option} {value:g}: must be {bounds}")
    if near:
        bands(near)
    for name in (value.partition("=")[0] for value in args.corpus):
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                f"--corpus {name}: its name has {len(name)} characters, but at most {LONGEST_NAME}"
                " fit into a tar; shorten it"
            )


def _cleaning(args: argparse.Namespace) -> Cleaning:
    corpora = [value.partition("=")[0] for value in args.corpus]
    return Cleaning(parse_steps(args.clean, corpora), args.bad_text)


def _build(args: argparse.Namespace, ranks: Ranks, sources: list[Source]) -> None:
    tokenizer = load_tokenizer(args.tokenizer)
    work = args.out / WORK
    units = _plan_units(ranks, work, sources)
    _tokenise(args, ranks, tokenizer, units)
    line_breaks = tokenizer.newline_id is not None
    parts = Parts(units, work, args.near_duplicates, args.bad_text == "drop", line_breaks)
    _compare(args, ranks, parts)
    layout = ranks.from_first(lambda: _plan_shards(args, parts))
    builder = ShardBuilder(parts, layout, args.out, tokenizer.vocab_size)
    _write(args, ranks, layout, builder)
    ranks.from_first(lambda: _finish(args, tokenizer, layout, builder))


def _plan_units(ranks: Ranks, work: Path, sources: list[Source]) -> list[Unit]:
    """The units of work. The ranks share the search for ranges in large plain files."""
    ranges = [[source] for source in sources]
    large = [number for number, source in enumerate(sources) if is_divisible(source)]
    sizes = [sources[number].bytes for number in large]
    mine = {}
    with ranks.progress("looking into large files", sum(sizes), work) as progress:
        for job in ranks.claim_jobs(work, "source", sizes):
            source = sources[large[job]]
            progress.doing = str(source.path)
            mine[large[job]] = in_ranges(source)
            progress.add(source.bytes, 0)
    for found in ranks.gather(mine):
        for number, source_ranges in found.items():
            ranges[number] = source_ranges
    return plan_units(chain.from_iterable(ranges))


def _tokenise(
    args: argparse.Namespace, ranks: Ranks, tokenizer: Tokenizer, units: list[Unit]
) -> None:
    work, cleaning = args.out / WORK, _cleaning(args)
    least_characters = args.duplicate_paragraphs or sys.maxsize
    encoder = Encoder(work, tokenizer, cleaning, least_characters, args.near_duplicates)
    with ranks.progress("tokenising", sum(unit.bytes for unit in units), work) as progress:
        for number in ranks.claim_jobs(work, "unit", [unit.cost for unit in units]):
            with _writing(args.out):
                encoder.encode(units[number], progress)


def _compare(args: argparse.Namespace, ranks: Ranks, parts: Parts) -> None:
    work, found = args.out / WORK, parts.duplicates
    with ranks.progress("comparing", found.bytes, work) as progress:
        for bucket in ranks.claim_jobs(work, "bucket", [1] * found.buckets):
            progress.doing = f"duplicates, bucket {bucket}"
            with _writing(args.out):
                found.find(bucket)
            progress.add(found.bytes // found.buckets, 0)


def _plan_shards(args: argparse.Namespace, parts: Parts) -> Layout:
    with _writing(args.out):
        decide(parts)
    budget = WordBudget(args.max_words, args.seed) if args.max_words else None
    return plan_shards(parts, args.validation_fraction, args.shard_tokens, budget)


def _write(args: argparse.Namespace, ranks: Ranks, layout: Layout, builder: ShardBuilder) -> None:
    work, sizes = args.out / WORK, [plan.tokens for plan in layout.shards]
    with ranks.progress("writing shards", sum(sizes), work, "token") as progress:
        for number in ranks.claim_jobs(work, "shard", sizes):
            plan = layout.shards[number]
            progress.doing = plan.file
            with _writing(args.out):
                builder.build(plan)
            progress.add(plan.tokens, plan.tokens)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Errors of the operating system inside become a DataError of the output directory."""
    try:
        yield
    except OSError as error:
        where = error.filename or out
        raise DataError(
            f"{where}: cannot be written ({error.strerror}); mend it and run again"
        ) from error


def _lock(out: Path) -> IO[str]:
    """The open lock file. DataError if another process holds the lock."""
    out.mkdir(parents=True, exist_ok=True)
    file = lock_file(out / LOCK, "start one build at a time")
    if file is None:
        raise DataError(
            f"--out {out}: another build is writing there; wait for it, or choose another folder"
        )
    return file


def _settings(args: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, object]:
    # Whatever its kind, a tokenizer that maps both to the same ids does NFKC or lower case.
    same_ids = {
        "nfkc": tokenizer.encode("\uff11") == tokenizer.encode("1"),
        "lower": tokenizer.folds_case,
    }
    has_newline = tokenizer.newline_id is not None
    return {
        **({NEWLINE_TOKEN: tokenizer.newline_id} if has_newline else {}),
        "tokenizer": tokenizer.sha256,
        "by_the_tokenizer": same_ids,
        "normalization": _cleaning(args).record(),
        "duplicate_paragraphs": args.duplicate_paragraphs,
        "near_duplicates": args.near_duplicates,
        "block_lines": BLOCK_LINES,
        "sample_tokens": SAMPLE_TOKENS,
        "shard_tokens": args.shard_tokens,
        "validation_fraction": args.validation_fraction,
        MAX_WORDS: args.max_words,
        "max_words_seed": args.seed if args.max_words else None,
    }


def _finish(
    args: argparse.Namespace, tokenizer: Tokenizer, layout: Layout, builder: ShardBuilder
) -> None:
    """Write the manifest, remove the work folder, print the table."""
    splits: dict[str, dict[str, CorpusEntry]] = {split: {} for split in SPLITS}
    names = ("kind", "files", "sha256", "vocab_size", "special_ids")
    record = {name: getattr(tokenizer, name) for name in names}
    preparation = {"settings": _settings(args, tokenizer), "corpora": layout.corpora}
    manifest = Manifest(record, preparation, splits)
    with _writing(args.out):
        for plan in layout.shards:
            shard = builder.finished(plan)
            assert shard, plan.file  # The ranks have built all of them.
            entry = splits[plan.split].setdefault(plan.corpus, CorpusEntry(0, 0, []))
            entry.shards.append(shard)
            entry.documents += shard.documents
            entry.tokens += shard.tokens
        note_manifest(args.out, manifest_text(manifest))
        write_manifest(args.out, manifest)
        shutil.rmtree(args.out / WORK)
    print_corpus_table(manifest)
    warn_of_splits(manifest)
    print(f"{args.out / MANIFEST}: check it with `python -m data_prep.verify_shards {args.out}`")


cli = command(main, __name__, "the same command continues where it was", MPI_RANKS)
