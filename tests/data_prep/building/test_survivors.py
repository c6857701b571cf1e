"""Of equal texts exactly one stays: random small corpora against a model in plain Python."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from data_prep import build_shards
from data_prep.building.duplicates import Signatures
from gpt1_ds.data.manifest import read_manifest
from tests.conftest import run
from tests.support import cases_shards
from tests.support.cases_shards import assert_same_files, mpirun

LONG = 40
"""--duplicate-paragraphs of these builds."""


class Document(NamedTuple):
    corpus: str
    name: str
    heldout: bool
    bad: bool
    paragraphs: tuple[str, ...]


def survivors(documents: list[Document], drop_bad: bool, near: float) -> dict[str, list[str]]:
    """The model: the paragraphs that stay, by document. `documents` are in reading order."""
    stay: dict[str, list[str]] = {}
    texts: set[str] = set()
    signatures: list[tuple[np.ndarray, list[bytes]]] = []
    for document in sorted(documents, key=lambda document: not document.heldout):
        paragraphs = document.paragraphs
        whole = "\n".join(paragraphs)
        left = [
            text
            for number, text in enumerate(paragraphs)
            if len(text) < LONG or text not in texts | set(paragraphs[:number])
        ]
        if whole in texts or not left or (document.bad and drop_bad):
            continue
        if near:
            signed = signature(whole, near)
            if any(resembles(signed, band, signatures, near) for band in signed[1]):
                continue
            signatures.append(signed)
        texts |= {text for text in paragraphs if len(text) >= LONG} | {whole}
        stay[document.name] = left
    return stay


def signature(text: str, near: float) -> tuple[np.ndarray, list[bytes]]:
    signatures = Signatures(near)
    signatures.update(text)
    bands = signatures.end()
    return np.frombuffer(signatures.table(), "<u4"), bands


def resembles(
    signed: tuple[np.ndarray, list[bytes]],
    band: bytes,
    others: list[tuple[np.ndarray, list[bytes]]],
    near: float,
) -> bool:
    """Whether the first of the `others` with this band has enough equal values."""
    with_band = [values for values, bands in others if band in bands]
    return bool(with_band) and float(np.mean(with_band[0] == signed[0])) >= near


class Corpora:
    """Random documents of few paragraphs, in files of three corpora.

    Corpus `given` has a `--validation` part, `published` a file that its publisher holds out.
    """

    FILES = (
        ("given", "given", "a.jsonl", False),
        ("given", "given", "heldout-mono/b.jsonl", False),
        ("published", "published", "a.jsonl", False),
        ("published", "published", "heldout-mono/b.jsonl", True),
        ("published", "published", "z.jsonl", False),
        ("plain", "plain", "a.jsonl", False),
        ("given", "validation", "v.jsonl", True),
    )
    """Corpus, folder, file, and whether it is held out."""

    def __init__(self, root: Path, seed: int):
        self._rng = random.Random(seed)
        words = [9, 9, 9, 9, 3, 3, 200, 200]
        self._pool = [cases_shards.paragraph(self._rng, count) for count in words]
        self.documents: list[Document] = []
        for corpus, folder, file, heldout in self.FILES:
            path = root / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(self._row(corpus, file, heldout, row) for row in range(7)))
        self.options = ["--duplicate-paragraphs", str(LONG), "--clean", "none"]
        for corpus in ("given", "published", "plain"):
            self.options += ["--corpus", f"{corpus}={root / corpus}"]
        self.options += ["--validation", f"given={root / 'validation'}"]

    def _row(self, corpus: str, file: str, heldout: bool, number: int) -> str:
        rng = self._rng
        paragraphs = rng.choices([self._own(), *map(self._varied, self._pool)], k=rng.randint(1, 3))
        if number == 0:  # of each file, one document stays
            paragraphs = [self._own()]
        elif self.documents and rng.random() < 0.3:
            paragraphs = list(rng.choice(self.documents).paragraphs)
        bad = number > 0 and rng.random() < 0.3
        name = f"{corpus}/{file}#{number}"
        self.documents.append(Document(corpus, name, heldout, bad, tuple(paragraphs)))
        return json.dumps({"text": "\n\n".join(paragraphs) + "\0" * bad}) + "\n"

    def _own(self) -> str:
        return cases_shards.paragraph(self._rng, 12)

    def _varied(self, text: str) -> str:
        """The text or, of a long one, at times a version that is close to another one."""
        words = text.split()
        changed = self._rng.choice([0, 0, 4, 8, 12]) if len(words) > 100 else 0
        words[20 : 20 + changed * 5 : 5] = ["other"] * len(words[20 : 20 + changed * 5 : 5])
        return " ".join(words)


def built(out: Path) -> dict[str, str]:
    """The text of each document, by corpus and document; none in both splits."""
    found: dict[str, str] = {}
    for split, corpora in read_manifest(out).splits.items():
        for corpus in corpora:
            for name, text in cases_shards.documents(out, split, corpus).items():
                assert found.setdefault(f"{corpus}/{name}", text) == text
    return found


@pytest.mark.parametrize("bad_text", ["mend", "drop"])
@pytest.mark.parametrize("near", [0.0, 0.8])
def test_exactly_the_models_texts_stay(
    tokenizer: Path, tmp_path: Path, bad_text: str, near: float
) -> None:
    for seed in range(8):
        corpora = Corpora(tmp_path / f"in-{seed}", seed)
        out = tmp_path / f"out-{seed}"
        options = ["--bad-text", bad_text, "--near-duplicates", str(near), "--out", str(out)]
        build_shards.main(["--tokenizer", str(tokenizer), *corpora.options, *options])
        stay = survivors(corpora.documents, bad_text == "drop", near)
        texts = {name: " ".join(left).lower() for name, left in stay.items()}
        assert built(out) == texts, seed
        if not near:
            good = [text for text in corpora.documents if not (text.bad and bad_text == "drop")]
            long = {text for document in good for text in document.paragraphs if len(text) >= LONG}
            counts = Counter(text for left in stay.values() for text in left if len(text) >= LONG)
            assert counts == dict.fromkeys(long, 1), "the model itself"
        assert_splits(out, stay, corpora.documents)


def assert_splits(out: Path, stay: dict[str, list[str]], documents: list[Document]) -> None:
    """What is held out is validation, and nothing else of these corpora is."""
    splits = read_manifest(out).splits
    for corpus in ("given", "published"):
        found = cases_shards.documents(out, "valid", corpus)
        heldout = {d.name for d in documents if d.heldout and d.corpus == corpus}
        assert {f"{corpus}/{name}" for name in found} == heldout & stay.keys()
        assert splits["train"][corpus].documents > 0


def test_several_ranks_decide_the_same(tokenizer: Path, tmp_path: Path) -> None:
    """One file's name is not UTF-8."""
    corpora = Corpora(tmp_path / "in", 99)
    name = os.fsencode(tmp_path) + b"/in/plain/caf\xe9.jsonl"
    os.rename(tmp_path / "in" / "plain" / "a.jsonl", name)
    options = ["--tokenizer", str(tokenizer), *corpora.options, "--near-duplicates", "0.8"]
    options += ["--bad-text", "drop"]
    build_shards.main([*options, "--out", str(tmp_path / "one")])
    assert "plain/caf\ufffd.jsonl#0" in built(tmp_path / "one")
    done = run(*mpirun(2, *options, "--out", str(tmp_path / "two")))
    assert done.returncode == 0, done.stderr
    assert_same_files(tmp_path / "one", tmp_path / "two")
