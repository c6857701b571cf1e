"""`verify_shards` finds a change of any value of a manifest, in one line."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import build_shards
from data_prep.building.consistency import _word_problems
from data_prep.building.earlier import PLAN
from data_prep.verify_shards import verify
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import MANIFEST


@pytest.fixture(scope="module")
def shards(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, one with a validation part, and a shard of two samples."""
    root = tmp_path_factory.mktemp("consistency")
    for folder, texts in (("a", ["one", "word " * 33_000]), ("v", ["two"]), ("b", ["three", "4"])):
        (root / folder).mkdir()
        for number, text in enumerate(texts):
            (root / folder / f"{number}.txt").write_text(text)
    options = ["--corpus", f"a={root / 'a'}", "--validation", f"a={root / 'v'}"]
    options += ["--corpus", f"b={root / 'b'}", "--tokenizer", str(tokenizer)]
    build_shards.main([*options, "--out", str(root / "out")])
    return root / "out"


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON value, objects and lists included."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, name))


def others(value: object) -> Iterator[object]:
    """Other values in its place: near ones, and some of other types."""
    yield from (-7, "x")
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, float(value) + 0.25, 10**30)
    elif isinstance(value, str):
        yield value + "x"
    elif isinstance(value, list):
        yield from ([*value, *value[-1:]] if value else [1], value[:-1] or None)
    elif isinstance(value, dict):
        yield []


def changed(manifest: Json) -> Iterator[tuple[str, Json]]:
    """What is changed, and the manifest with this one change."""
    for path in places(manifest):
        parent = manifest
        for name in path[:-1]:
            parent = parent[name]
        here, name = copy.deepcopy(manifest), path[-1]
        inside = here
        for step in path[:-1]:
            inside = inside[step]
        for other in others(parent[name]):
            if type(other) is not type(parent[name]) or other != parent[name]:
                inside[name] = other
                yield f"{'.'.join(map(str, path))} = {other!r}", here
        del inside[name]
        yield f"{'.'.join(map(str, path))} deleted", here


def problems(root: Path) -> list[str]:
    try:
        found = verify(root)
    except DataError as error:
        found = [str(error)]
    assert all("\n" not in problem for problem in found)
    return found


def test_every_changed_value_is_found(shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    shutil.copytree(shards, root)
    (root / PLAN).unlink()
    manifest = json.loads((root / MANIFEST).read_text())
    assert problems(root) == []
    unseen = {}
    for change, other in changed(manifest):
        (root / MANIFEST).write_text(json.dumps(other))
        if not problems(root):
            unseen[change] = json.dumps(other)
    # Only the folder's record of the build knows what else the preparation was.
    assert all(change.startswith("preparation.") for change in unseen)
    shutil.copy(shards / PLAN, root / PLAN)
    for change, text in unseen.items():
        (root / MANIFEST).write_text(text)
        assert problems(root), change


@pytest.mark.parametrize(
    "limit, words, problem",
    [
        (None, 70, None),
        (70, 70, None),
        (69, 70, "settings.max_words is 69, but 70 words are in the shards"),
        ("x", 70, "settings.max_words is 'x'"),
        (None, -1, "corpora.a.text.train.words is -1, but must be a whole number"),
        (None, "x", "corpora.a.text.train.words is 'x'"),
        (10, None, None),  # of an early version
    ],
)
def test_words_are_counts_within_their_limit(limit, words, problem) -> None:
    text = {"train": {} if words is None else {"words": words}, "valid": {"words": 1000}}
    preparation = {"settings": {"max_words": limit}, "corpora": {"a": {"text": text}}}
    found = list(_word_problems(preparation))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]
