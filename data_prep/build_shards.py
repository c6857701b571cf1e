"""Tokenises corpora into WebDataset shards with a manifest: alone, under `mpirun -n N`, or under `srun`.

    mpirun -n 2 python -m data_prep.build_shards --tokenizer tok/ --corpus books=PATH --corpus lm1b=PATH --out shards/

About 3 MB of text a second and core, normalisation included. The output is the same, byte for byte, for any number of
ranks. Killed at any moment, the same command continues: tokenised units and finished shards are not done again.

1. Plan: rank 0 lists the sources and groups them into units of work (`encoding.py`); the units are dealt to the ranks.
2. Tokenise: every rank writes the tokens of its units to `OUT/.work/`.
3. Lay out: rank 0 drops duplicates and divides documents into splits, samples and shards (`layout.py`).
4. Write: every rank writes its shards; rank 0 writes the manifest last, and prints a table.
"""

import argparse
import fcntl
import heapq
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_prep.corpus import BLOCK_LINES, Source, find_sources
from data_prep.encoding import Unit, encode_unit, plan_units
from data_prep.layout import Layout, ShardBuilder, plan_shards
from data_prep.ranks import Ranks
from gpt1_ds.errors import ConfigError, DataError, guard
from gpt1_ds.files import file_sha256, write_atomically
from gpt1_ds.shards import (
    MANIFEST,
    SAMPLE_TOKENS,
    SPLITS,
    CorpusEntry,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from gpt1_ds.tokenizer import Tokenizer, load_tokenizer, normalization_record

WORK = ".work"
PLAN = ".plan.json"
"""What the directory is built from, with the sources' times; kept, so that a rerun is answered at once."""
LOCK = ".lock"

T = TypeVar("T")


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    ranks = Ranks()
    units, lock = _first_holds_lock(ranks, args)
    if units is None:
        return
    try:
        _build(args, ranks, units)
    finally:
        if lock:
            lock.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep.build_shards", description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of train_tokenizer")
    parser.add_argument(
        "--corpus",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="text, a file or a folder; repeatable, also for one NAME",
    )
    parser.add_argument(
        "--validation",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="held-out text of that corpus, of which then nothing else is held out; repeatable",
    )
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.005,
        metavar="FRACTION",
        help="share of documents, chosen by their hash, that corpora without a held-out part give to"
        " validation; one document at least (default: 0.005)",
    )
    parser.add_argument(
        "--shard-tokens",
        type=int,
        default=1 << 24,
        metavar="TOKENS",
        help="most tokens in one shard (default: 16777216, 32 MiB)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shard directory to make")
    return parser


def _first_holds_lock(ranks: Ranks, args: argparse.Namespace) -> tuple[list[Unit] | None, Any]:
    """The units of work (None: all is done already), and on rank 0 the open lock file of the output directory."""
    lock = None

    def prepare() -> list[Unit] | None:
        nonlocal lock
        if not 0 <= args.validation_fraction < 1:
            raise ConfigError(f"--validation-fraction {args.validation_fraction:g}: must be at least 0 and below 1")
        if args.shard_tokens < SAMPLE_TOKENS:
            raise ConfigError(f"--shard-tokens {args.shard_tokens}: must be at least one sample, {SAMPLE_TOKENS}")
        tokenizer = load_tokenizer(args.tokenizer)
        sources = find_sources(args.corpus, args.validation)
        lock = _lock(args.out)
        if _is_finished(args, tokenizer, sources):
            print(f"{args.out}: finished before, from the same sources, options and tokenizer; nothing to do")
            return None
        tokenizer.copy_to(args.out / "tokenizer")
        (args.out / WORK).mkdir(exist_ok=True)
        for left_by_a_kill in [*args.out.glob(f"{WORK}/.*.tmp"), *args.out.glob("*/*/.*.tmp")]:
            left_by_a_kill.unlink()
        return plan_units(sources)

    return ranks.from_first(lambda: _writing(args.out, prepare)), lock


def _build(args: argparse.Namespace, ranks: Ranks, units: list[Unit]) -> None:
    tokenizer = load_tokenizer(args.tokenizer)
    work = args.out / WORK
    with ranks.progress("tokenising", sum(unit.bytes for unit in units)) as progress:
        for unit in _dealt(units, [unit.bytes for unit in units], ranks):
            _writing(args.out, lambda unit=unit: encode_unit(unit, work, tokenizer, progress))
    layout = ranks.from_first(lambda: plan_shards(units, work, args.validation_fraction, args.shard_tokens))
    builder = ShardBuilder(units, work, args.out, tokenizer.vocab_size)
    written: dict[str, Shard] = {}
    with ranks.progress("writing shards", sum(plan.tokens for plan in layout.shards)) as progress:
        for plan in _dealt(layout.shards, [plan.tokens for plan in layout.shards], ranks):
            progress.doing = plan.file
            written[plan.file] = _writing(args.out, lambda plan=plan: builder.build(plan))
            progress.add(plan.tokens, plan.tokens)
    everywhere = {file: shard for part in ranks.gather(written) for file, shard in part.items()}
    ranks.from_first(lambda: _writing(args.out, lambda: _finish(args, tokenizer, layout, everywhere)))


def _dealt(jobs: Sequence[T], costs: list[int], ranks: Ranks) -> list[T]:
    """This rank's jobs, in order: the largest first to whoever has least, so that ranks finish together."""
    loads = [(0, rank) for rank in range(ranks.size)]
    mine = []
    for job in sorted(range(len(jobs)), key=lambda job: -costs[job]):
        load, rank = heapq.heappop(loads)
        heapq.heappush(loads, (load + costs[job], rank))
        if rank == ranks.rank:
            mine.append(job)
    return [jobs[job] for job in sorted(mine)]


def _writing(out: Path, action: Callable[[], T]) -> T:
    """`action()`, its operating-system errors told as the output directory's."""
    try:
        return action()
    except OSError as error:
        where = error.filename or out
        raise DataError(f"{where}: cannot be written ({error.strerror}); mend it and run again") from error


def _lock(out: Path) -> Any:
    out.mkdir(parents=True, exist_ok=True)
    file = open(out / LOCK, "a")  # closed by `main`; the kernel drops the lock of a killed process
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"--out {out}: another build is writing there; wait for it, or choose another folder") from None
    except OSError as error:
        # Some cluster file systems are mounted without locks; building there is the user's choice.
        print(f"warning: {out} cannot be locked ({error.strerror}); start one build at a time", file=sys.stderr)
    return file


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "block_lines": BLOCK_LINES,
        "normalization": normalization_record(),
        "sample_tokens": SAMPLE_TOKENS,
        "shard_tokens": args.shard_tokens,
        "validation_fraction": args.validation_fraction,
    }


def _is_finished(args: argparse.Namespace, tokenizer: Tokenizer, sources: list[Source]) -> bool:
    """Whether the directory holds just what this command would build.

    DataError where it holds something else. An unfinished build of the same options is left to be continued, or, where
    its sources have changed, cleared away.
    """
    out = args.out
    plan = {
        "tokenizer": tokenizer.sha256,
        "settings": _settings(args),
        "sources": [[s.corpus, s.name, s.validation, s.bytes, s.mtime_ns] for s in sources],
    }
    before = json.loads((out / PLAN).read_text()) if (out / PLAN).exists() else None
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        _refuse_other(out, plan, manifest.tokenizer["sha256"], manifest.preparation["settings"])
        _refuse_other_sources(out, sources, manifest, before["sources"] if before else [])
        write_atomically(out / PLAN, json.dumps(plan))
        return True
    if before is None:
        if any(path.name != LOCK for path in out.iterdir()):
            raise DataError(f"--out {out}: is neither empty nor a shard directory; choose another folder")
    else:
        _refuse_other(out, plan, before["tokenizer"], before["settings"])
        if before["sources"] != plan["sources"]:
            print(f"{out}: the sources have changed since the unfinished build there; starting anew")
            for folder in (WORK, *SPLITS):
                shutil.rmtree(out / folder, ignore_errors=True)
    write_atomically(out / PLAN, json.dumps(plan))
    return False


def _refuse_other(out: Path, plan: dict[str, Any], tokenizer: str, settings: dict[str, Any]) -> None:
    if tokenizer != plan["tokenizer"]:
        raise DataError(
            f"--out {out}: built with another tokenizer (sha256 {tokenizer[:12]}.., --tokenizer has"
            f" {plan['tokenizer'][:12]}..); choose another folder or delete this one"
        )
    for name, value in plan["settings"].items():
        if settings.get(name) != value:
            raise DataError(
                f"--out {out}: built with {name} {settings.get(name)}, now {value};"
                " choose another folder or delete this one"
            )


def _refuse_other_sources(out: Path, sources: list[Source], manifest: Manifest, times: list[list[Any]]) -> None:
    built = {
        (corpus, source["validation"], source["file"]): source
        for corpus, entry in manifest.preparation["corpora"].items()
        for source in entry["sources"]
    }
    now = {(s.corpus, s.validation, s.name): s for s in sources}
    differing = sorted(built.keys() ^ now.keys())
    unchanged = {tuple(row) for row in times}
    for key in [] if differing else sorted(now):
        source = now[key]
        # A finished directory is recognised at once by sizes and times; only a touched file is hashed again.
        touched = (source.corpus, source.name, source.validation, source.bytes, source.mtime_ns) not in unchanged
        if source.bytes != built[key]["bytes"] or (touched and file_sha256(source.path) != built[key]["sha256"]):
            differing = [key]
            break
    if differing:
        corpus, _, name = differing[0]
        raise DataError(
            f"--out {out}: built from other sources ('{name}' of corpus '{corpus}' differs, is new or is gone);"
            " choose another folder or delete this one"
        )


def _finish(args: argparse.Namespace, tokenizer: Tokenizer, layout: Layout, written: dict[str, Shard]) -> None:
    splits: dict[str, dict[str, CorpusEntry]] = {split: {} for split in SPLITS}
    for plan in layout.shards:
        shard = written[plan.file]
        entry = splits[plan.split].setdefault(plan.corpus, CorpusEntry(0, 0, []))
        entry.shards.append(shard)
        entry.documents += shard.documents
        entry.tokens += shard.tokens
    record = {
        "kind": tokenizer.kind,
        "files": tokenizer.files,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": tokenizer.special_ids,
    }
    manifest = Manifest(record, {"settings": _settings(args), "corpora": layout.corpora}, splits)
    write_manifest(args.out, manifest)
    shutil.rmtree(args.out / WORK)
    _print_table(manifest)
    print(f"{args.out / MANIFEST}: check it with `python -m data_prep.verify_shards {args.out}`")


def _print_table(manifest: Manifest) -> None:
    print(f"{'corpus':<16}{'split':<7}{'documents':>12}{'tokens':>16}{'bytes/token':>13}{'unknown bytes':>15}")
    for corpus, record in manifest.preparation["corpora"].items():
        for split in SPLITS:
            entry = manifest.splits[split].get(corpus)
            if entry:
                text = record["text"][split]
                # The <eot> after each document stands for no text.
                per_token = text["text_bytes"] / max(1, entry.tokens - entry.documents)
                print(
                    f"{corpus:<16}{split:<7}{entry.documents:>12,}{entry.tokens:>16,}{per_token:>13.2f}"
                    f"{text['unknown']:>15,}"
                )
        notes = [f"{count:,} {reason}" for reason, count in record["dropped"].items() if count]
        notes += [f"{count:,} {reason} mended" for reason, count in record["mended"].items() if count]
        print(f"{'':<16}validation: {record['split']}; dropped: {', '.join(notes) or 'nothing'}")


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
