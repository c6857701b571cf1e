"""How many examples of the labelled and the zero-shot sets occur in a training text, for `eval`."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import fingerprint, local_shards, open_streams
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed.console import progress, say
from gpt1_ds.reports.overlap import OVERLAP_FILE, SetOverlap, overlap_table
from gpt1_ds.runs.predictions import BLANKS, write_out
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import DataConfig, FinetuneConfig
from gpt1_ds.settings.shipped import CONFIGS, FINETUNE
from gpt1_ds.tasks import TASKS, Example, build_task
from gpt1_ds.tasks.benchmarks import PLACES, first_there
from gpt1_ds.tasks.blimp import read_blimp
from gpt1_ds.tasks.cloze import LAMBADA_COLUMNS, lambada_file, read_cloze
from gpt1_ds.tasks.overlap import NGRAM_WORDS, Overlap
from gpt1_ds.tasks.pronouns import read_dpr
from gpt1_ds.tasks.splits import read_splits

BLOCK_TOKENS = 1 << 20
"""Tokens of the training text in memory, with their words some 0.2 GB."""
SHARED_TOKENS = 256
"""Two neighbouring blocks have so many tokens in common: more than any 13 words."""
BATCH_TEXTS = 10_000


class Texts(NamedTuple):
    """The examples of one split of a set, each with the texts of its fields."""

    name: str
    split: str
    examples: list[tuple[str, ...]]


def measure_overlap(shards: str, data: Path, out: Path | None) -> None:
    """Print the table for the sets below `data`, and keep it in SHARDS/overlap.json.

    `out`: a table of the examples that occur. The shards are read in blocks, so the memory depends
    on the sets alone.
    """
    found = list(_sets(data))
    if not found:
        places = ", ".join([*_task_folders().values(), *(names[0] for names in PLACES.values())])
        raise DataError(f"--data {data}: none of the sets is there; expected some of {places}")
    settings = DataConfig(shards=shards)
    root = local_shards(settings)
    manifest = read_manifest(root)
    streams = open_streams(settings, manifest, "train")
    tokenizer = load_tokenizer(root / "tokenizer")
    overlap = Overlap(_normalised(found, tokenizer))
    tokens = sum(stream.tokens for stream in streams.values())
    with progress("reading the training text", tokens, "token") as bar:
        for stream in streams.values():
            for block in _blocks(stream):
                overlap.look_through(_documents(block, tokenizer))
                bar.update(len(block))
    rows = _rows(found, overlap, out)
    _keep(root, fingerprint(manifest), rows)
    print(overlap_table(rows), end="")


def _task_folders() -> dict[str, str]:
    """The folder of each labelled set, as its shipped YAML names it."""
    folders = {}
    for task in TASKS:
        config = load(FinetuneConfig, CONFIGS / f"{FINETUNE}{task}.yaml", [])
        folders[task] = Path(config.task.data).name
    return folders


def _sets(data: Path) -> Iterator[Texts]:
    """All sets whose folder or file is below `data`."""
    for task, folder in _task_folders().items():
        if not (data / folder).exists():
            continue
        config = load(FinetuneConfig, CONFIGS / f"{FINETUNE}{task}.yaml", []).task
        built = build_task(config)
        for split, examples in read_splits(built, data / folder).items():
            yield Texts(task, split, [_fields(built.kind, example) for example in examples])
    blimp, lambada, dpr = (first_there(data, PLACES[name]) for name in ("blimp", "lambada", "dpr"))
    if blimp.exists():
        pairs = read_blimp(blimp).pairs
        yield Texts("blimp", "all", [(pair.good, pair.bad) for pair in pairs])
    if lambada.exists():
        passages = read_cloze(lambada_file(lambada), LAMBADA_COLUMNS)
        whole = [f"{passage.context} {passage.word}" for passage in passages]
        yield Texts("lambada", "all", [(text,) for text in whole])
    if dpr.exists():
        groups = read_dpr(dpr).groups
        yield Texts("dpr", "all", [tuple(map("".join, group)) for group in groups])


def _fields(kind: str, example: Example) -> tuple[str, ...]:
    """The texts of an example; words of which each has a label are one text."""
    return (" ".join(example.texts),) if kind == "token_classification" else example.texts


def _normalised(sets: Sequence[Texts], tokenizer: Tokenizer) -> Iterator[str]:
    """Each different text, encoded and decoded. It takes the place of the text in `sets`."""
    known: dict[str, str] = {}
    for found in sets:
        new = set(chain.from_iterable(found.examples)) - set(known)
        texts = sorted(new)
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = texts[start : start + BATCH_TEXTS]
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                known[text] = tokenizer.decode(ids)
                yield known[text]
        found.examples[:] = [tuple(map(known.__getitem__, texts)) for texts in found.examples]


def _blocks(stream: TokenStream) -> Iterator[np.ndarray]:
    """The tokens of a stream, each once but for what neighbouring blocks share."""
    for start in range(0, stream.tokens, BLOCK_TOKENS):
        begin = max(0, start - SHARED_TOKENS)
        end = min(start + BLOCK_TOKENS, stream.tokens)
        yield stream.read_packed(np.array([begin]), end - begin)[0]


def _documents(ids_T: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    ends = np.flatnonzero(ids_T == tokenizer.special_ids["eot"])
    for ids in np.split(ids_T, ends):
        yield tokenizer.decode(ids.tolist())


def _rows(sets: Sequence[Texts], overlap: Overlap, out: Path | None) -> list[SetOverlap]:
    """A row for each set and split; the examples that occur go to the file `out`."""
    measured, occurs = overlap.results()
    rows, lines = [], ["set\tsplit\tindex\ttext"]
    for found in sets:
        numbers = [list(map(overlap.number_of.__getitem__, texts)) for texts in found.examples]
        hits = [place for place, of_example in enumerate(numbers) if occurs[of_example].any()]
        n_measured = sum(bool(measured[of_example].any()) for of_example in numbers)
        rows.append(SetOverlap(found.name, found.split, len(numbers), n_measured, len(hits)))
        for place in hits:
            text = next(t for t in found.examples[place] if occurs[overlap.number_of[t]])
            lines.append(f"{found.name}\t{found.split}\t{place}\t{text.translate(BLANKS)}")
    if out is not None:
        write_out(out, "\n".join(lines) + "\n")
        say(f"{out}: {len(lines) - 1:,} examples that occur")
    return rows


def _keep(root: Path, prints: dict[str, str], rows: Sequence[SetOverlap]) -> None:
    """overlap.json beside the manifest, for reports; rows of other sets of these shards stay."""
    path = root / OVERLAP_FILE
    kept: list[Json] = []
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        names = {row.name for row in rows}
        if earlier["data"] == prints:
            kept = [row for row in earlier["sets"] if row["name"] not in names]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or a damaged one: it is made anew
    sets = [*kept, *(row._asdict() for row in rows)]
    content = {"words": NGRAM_WORDS, "data": prints, "sets": sets}
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        say(f"warning: {path}: {error.strerror}; reports will not have this table")
