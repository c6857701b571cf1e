"""Texts to score: a shard directory, a file, or a folder of files, as documents of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import DataError, near
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import tell_of_line_breaks
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import Tokenizer


class Source(NamedTuple):
    """Where a document comes from."""

    name: str
    """The file below --data; with --lines its line, after a colon if there are several files."""
    text: str


@dataclass(frozen=True)
class Text:
    """Documents to score, and the counts of their words, ends and bytes."""

    name: str
    documents: list[np.ndarray]
    """The ids of each document. The first id is only context and has no score."""
    words: int | None
    """None if the words cannot be counted from the tokens."""
    ends: int
    """Number of predicted tokens that end a document."""
    bytes: int
    sources: tuple[Source, ...] = ()
    """Of each document; empty for shards."""


def read_shards(root: Path, corpus: str | None, tokenizer: Tokenizer) -> Iterator[Text]:
    """Yields each corpus of the validation split, or only `corpus`."""
    manifest = read_manifest(root)
    corpora = manifest.splits.get("valid", {})
    if corpus and corpus not in corpora:
        raise DataError(
            f"--corpus {corpus}: not in the validation split of {root}; {near(corpus, corpora)}"
        )
    if tokenizer.sha256 != manifest.tokenizer.get("sha256"):
        raise DataError(
            f"--data {root}: made with another tokenizer than the run's; build shards with that one"
        )
    tell_of_line_breaks(f"--data {root}", manifest, tokenizer)
    wanted = [corpus] if corpus else list(corpora)
    names = [name for name in wanted if corpora[name].tokens > 1]
    if not names:
        raise DataError(
            f"--data {root}: no tokens in the validation split; build shards with --validation"
        )
    for name in names:
        stream = TokenStream(root, manifest, "valid", name)
        ids_T = stream.read(np.zeros(1, np.int64), stream.tokens)[0]
        is_end_T = ids_T == tokenizer.special_ids["eot"]
        yield Text(
            name=f"{name} (validation split of {root})",
            documents=[ids_T],
            words=count_words(ids_T, is_end_T, tokenizer),
            ends=int(is_end_T[1:].sum()),
            bytes=manifest.preparation["corpora"][name]["text"]["valid"]["text_bytes"],
        )


def count_words(ids_T: np.ndarray, is_end_T: np.ndarray, tokenizer: Tokenizer) -> int | None:
    """Number of words of the decoded tokens.

    None for OpenAI's BPE, which decodes "it's." as "it ' s .".
    """
    if tokenizer.kind != "sentencepiece":
        return None
    documents = np.split(ids_T, np.flatnonzero(is_end_T))
    return sum(len(tokenizer.decode(ids.tolist()).split()) for ids in documents)


def read_text(path: Path, lines: bool, tokenizer: Tokenizer) -> Text:
    """A file, or the .txt files below a folder, none hidden; with `lines`, of lines each alone."""
    files = sorted(path.rglob("[!.]*.txt")) if path.is_dir() else [path]
    texts = {file: read_file(file) for file in files}
    sources: list[Source] = []
    for file, text in texts.items():
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        sources += _lines(name, text, len(files) > 1) if lines else [Source(name, text)]
    eot = [tokenizer.special_ids["eot"]]
    end = eot if lines else []
    encoded = tokenizer.encode_batch([source.text for source in sources])
    full = [(source, ids) for source, ids in zip(sources, encoded, strict=True) if ids]
    if not full:
        raise DataError(
            f"--data {path}: holds no text; give a shard directory, a text file "
            "or a folder of .txt files"
        )
    return Text(
        name=str(path),
        documents=[np.array(eot + ids + end) for _, ids in full],
        words=sum(len(text.split()) for text in texts.values()),
        ends=len(full) if lines else 0,
        bytes=sum(len(text.encode()) for text in texts.values()),
        sources=tuple(source for source, _ in full),
    )


def _lines(name: str, text: str, several_files: bool) -> Iterator[Source]:
    for number, line in enumerate(text.split("\n"), 1):
        yield Source(f"{name}:{number}" if several_files else str(number), line)


def read_file(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--data {file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"--data {file}: not UTF-8 text (byte {error.start}); convert it"
        ) from error
    if "\0" in text:
        raise DataError(f"--data {file}: binary, not UTF-8 text; give a text file")
    return text
