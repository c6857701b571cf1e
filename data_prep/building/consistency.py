"""Whether a manifest agrees with itself, with its tokenizer and with the files of its folder.

`read_manifest` has refused what no reader could use before. What lies in the shards is compared
with the manifest by `verify_shards`.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data_prep.building.earlier import manifest_sha256
from data_prep.building.word_budget import MAX_WORDS
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import MANIFEST, SAMPLE_TOKENS, SPLITS, CorpusEntry, Manifest
from gpt1_ds.data.tokenizer import SPECIAL_NAMES, load_tokenizer


class Kind(NamedTuple):
    """What a value may be."""

    name: str
    fits: Callable[[object], object]


class Every(NamedTuple):
    """An object of any keys (`dict`) or a list, whose values have the shape `of`."""

    holder: type
    of: "Shape"


Shape = Kind | Every | Mapping[str, "Shape"]
"""A mapping stands for an object that has these keys at least."""


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(str(value)) <= 1


COUNT = Kind("a whole number from 0 on", _is_count)
SHA256 = Kind("a SHA-256 in hexadecimal", _is_sha256)
SHARE = Kind("a number between 0 and 1", _is_share)
NAME = Kind("a text", lambda value: isinstance(value, str) and value)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
RULE = Kind("given, published or hash", lambda value: value in ("given", "published", "hash"))
DOCUMENT_REASONS = ("empty", "bad_text", "duplicate", "near_duplicate")
TOKENIZER: Shape = {
    "kind": NAME,
    "files": Every(list, NAME),
    "sha256": SHA256,
    "vocab_size": COUNT,
    "special_ids": dict.fromkeys(SPECIAL_NAMES, COUNT),
}
PREPARATION: Shape = {
    "settings": {
        "tokenizer": SHA256,
        "by_the_tokenizer": Every(dict, TRUTH),
        "normalization": {
            "steps": Every(dict, Every(list, NAME)),
            "versions": Every(dict, NAME),
            "bad_text": NAME,
        },
        **dict.fromkeys(("duplicate_paragraphs", "block_lines", "sample_tokens"), COUNT),
        "shard_tokens": COUNT,
        **dict.fromkeys(("near_duplicates", "validation_fraction"), SHARE),
    },
    "corpora": Every(
        dict,
        {
            "split": RULE,
            "documents_read": COUNT,
            "mended": Every(dict, COUNT),
            "dropped": dict.fromkeys((*DOCUMENT_REASONS, "duplicate_paragraphs"), COUNT),
            "text": dict.fromkeys(SPLITS, dict.fromkeys(("text_bytes", "unknown"), COUNT)),
            "sources": Every(
                list, {"file": NAME, "bytes": COUNT, "sha256": SHA256, "validation": TRUTH}
            ),
        },
    ),
}


def find_contradictions(root: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the manifest, one line each; only its form if that is wrong."""
    path = root / MANIFEST
    problems = list(_malformed(manifest.tokenizer, TOKENIZER, "tokenizer"))
    problems += _malformed(manifest.preparation, PREPARATION, "preparation")
    if type(manifest.version) is not int:
        problems.append(f"version is {manifest.version!r}")
    problems += [f"splits.{split} is missing" for split in SPLITS if split not in manifest.splits]
    for split, corpora in manifest.splits.items():
        for corpus, entry in corpora.items():
            problems += _entry_problems(entry, split, corpus)
    if not problems:
        problems += [*_preparation_problems(manifest), *_word_problems(manifest.preparation)]
    sealed = manifest_sha256(root)
    if sealed not in (None, file_sha256(path)):
        problems.append("is not the one that build_shards wrote there (its sha256 differs)")
    problems = [f"{path}: {problem}" for problem in problems]
    return problems + _tokenizer_problems(root, manifest) + _unlisted_files(root, manifest)


def _malformed(value: object, shape: Shape, place: str) -> Iterator[str]:
    if isinstance(shape, Kind):
        if not shape.fits(value):
            yield f"{place} is {value!r}, but must be {shape.name}"
    elif isinstance(shape, Every):
        if not isinstance(value, dict | list) or not isinstance(value, shape.holder):
            yield f"{place} is {value!r}, but must be a {shape.holder.__name__}"
            return
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _malformed(part, shape.of, f"{place}.{name}")
    elif isinstance(value, dict):
        for name, part_shape in shape.items():
            if name in value:
                yield from _malformed(value[name], part_shape, f"{place}.{name}")
            else:
                yield f"{place}.{name} is missing"
    else:
        yield f"{place} is {value!r}, but must be a dict"


def _entry_problems(entry: CorpusEntry, split: str, corpus: str) -> Iterator[str]:
    place = f"splits.{split}.{corpus}"
    if not entry.shards:
        yield f"{place} has no shards"
    for number, shard in enumerate(entry.shards):
        file = f"{split}/{corpus}/{corpus}-{number:06d}.tar"
        if shard.file != file:
            yield f"{place}.shards.{number}.file is {shard.file}, but must be {file}"
    if sum(shard.documents for shard in entry.shards) != entry.documents:
        yield f"{split}/{corpus}: the shards' documents do not add up to {entry.documents}"


def _preparation_problems(manifest: Manifest) -> Iterator[str]:
    settings, corpora = manifest.preparation["settings"], manifest.preparation["corpora"]
    for name, value in (
        ("tokenizer", manifest.tokenizer["sha256"]),
        ("sample_tokens", SAMPLE_TOKENS),
    ):
        if settings[name] != value:
            yield f"preparation.settings.{name} is {settings[name]}, but must be {value}"
    for corpus in sorted(set().union(*manifest.splits.values()) - set(corpora)):
        yield f"preparation.corpora.{corpus} is missing"
    for corpus, record in corpora.items():
        place = f"preparation.corpora.{corpus}"
        entries = {split: manifest.splits[split].get(corpus) for split in SPLITS}
        for split, entry in entries.items():
            if (entry is not None) != (record["text"][split]["text_bytes"] > 0):
                yield f"{place}.text.{split}.text_bytes does not fit splits.{split}"
        kept = sum(entry.documents for entry in entries.values() if entry)
        reasons = (*DOCUMENT_REASONS, *({MAX_WORDS} & record["dropped"].keys()))
        dropped = sum(record["dropped"][reason] for reason in reasons)
        if kept + dropped != record["documents_read"]:
            yield (
                f"{place}: {record['documents_read']} documents were read, but {kept} are in the"
                f" shards and {dropped} were dropped"
            )
        given = any(source["validation"] for source in record["sources"])
        if given != (record["split"] == "given"):
            yield f"{place}.split is {record['split']}, which does not fit its sources"


def _word_problems(preparation: Json) -> Iterator[str]:
    """Manifests of an early version have neither words nor a limit of them."""
    total = 0
    for corpus, record in preparation["corpora"].items():
        for split in SPLITS:
            words = record["text"][split].get("words", 0)
            if not _is_count(words):
                place = f"preparation.corpora.{corpus}.text.{split}.words"
                yield f"{place} is {words!r}, but must be {COUNT.name}"
            elif split == "train":
                total += words
    limit = preparation["settings"].get(MAX_WORDS)
    if limit is not None and (not _is_count(limit) or limit < total):
        yield f"preparation.settings.{MAX_WORDS} is {limit!r}, but {total} words are in the shards"


def _tokenizer_problems(root: Path, manifest: Manifest) -> list[str]:
    folder, recorded = root / "tokenizer", manifest.tokenizer
    digest = hashlib.sha256()
    for name in recorded["files"]:
        if not (folder / name).is_file():
            return [f"{folder / name}: missing"]
        digest.update((folder / name).read_bytes())
    if digest.hexdigest() != recorded.get("sha256"):
        return [f"{folder}: not the tokenizer of the manifest (sha256 differs)"]
    try:
        tokenizer = load_tokenizer(folder)
    except DataError as error:
        return [str(error)]
    problems = []
    for name in ("kind", "files", "vocab_size", "special_ids"):
        own, said = getattr(tokenizer, name), recorded.get(name)
        if own != said:
            problems.append(f"{root / MANIFEST}: tokenizer.{name} is {said}, but its own is {own}")
    return problems


def _unlisted_files(root: Path, manifest: Manifest) -> list[str]:
    listed = {root / shard.file for shard in manifest.shards()}
    problems = []
    for split in SPLITS:
        found = sorted((root / split).glob("*/*.tar"))
        problems += [f"{path}: is not in the manifest" for path in found if path not in listed]
    return problems
