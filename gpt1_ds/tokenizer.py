"""Text normalisation and BPE codecs (layer 0): text in, token ids out.

`normalize` runs once, when documents are prepared: ftfy mends mojibake, HTML entities and curly quotes, and hard-
wrapped lines are joined into paragraphs, one a line. The SentencePiece model itself does the rest of GPT-1's
normalisation (`nmt_nfkc_cf`: NFKC, case folding, every run of white space, newlines included, becomes one space), so
text met later, in fine-tuning or sampling, is treated alike without any care of the caller.

Ids 0 to 4 are control pieces that no text can produce; a character outside the vocabulary becomes its UTF-8 bytes.
"""

import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import ftfy
import sentencepiece

from gpt1_ds.errors import DataError
from gpt1_ds.files import write_atomically

CONTROL_PIECES = ("<pad>", "<s>", "<e>", "<delim>", "<eot>")
"""SentencePiece's control pieces; the index is the id."""

SPECIAL_NAMES = ("pad", "s", "e", "delim", "eot")

MODEL_FILE = "tokenizer.model"

_BLANK_LINES = re.compile(r"\n\s*\n")
_PLAIN = re.compile("[\n\t -%'-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026]*")
"""Printable ASCII without "&", dashes, ellipses and curly quotes: ftfy would straighten the quotes and no more."""

_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def normalize(text: str, *, unwrap: bool = True) -> str:
    """Mended text with one paragraph a line; `unwrap=False` keeps lines as they are (one sentence a line)."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    paragraphs = _BLANK_LINES.split(text) if unwrap else text.split("\n")
    return "\n".join(line for line in (" ".join(_mend(part).split()) for part in paragraphs) if line)


def _mend(text: str) -> str:
    # ftfy reads about 2 MB/s, SentencePiece 6 MB/s; most paragraphs of most corpora are plain.
    return text.translate(_STRAIGHT) if _PLAIN.fullmatch(text) else ftfy.fix_text(text)


def normalization_record() -> dict[str, str]:
    """What the manifest tells about the text's way into tokens."""
    return {
        "mend": f"ftfy {ftfy.__version__}",
        "lines": "hard-wrapped lines joined into paragraphs; sentence files keep their lines",
        "case_and_nfkc": "nmt_nfkc_cf, by the SentencePiece model; white space becomes one space",
    }


class Tokenizer(ABC):
    """A codec between text and ids, with the files it was read from."""

    kind: str
    """Name in the manifest: `sentencepiece`."""
    vocab_size: int
    """Ids run from 0 to vocab_size - 1, control ids included."""
    special_ids: dict[str, int]
    """Ids of `pad s e delim eot`."""
    fallback_ids: frozenset[int]
    """Ids that stand for a byte (or a character) outside the vocabulary."""

    def __init__(self, folder: Path, files: Sequence[str]):
        self.folder = folder
        self.files = list(files)
        """File names inside `folder`."""
        self.sha256 = hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()
        """Hash of the files' bytes, in the order of `files`."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; control ids never occur."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids that hold no control id."""

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control ids are skipped."""
        return self._decode([int(token) for token in ids if int(token) not in self._control])

    def copy_to(self, folder: Path | str) -> None:
        """Write the tokenizer's files into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.files:
            write_atomically(folder / name, (self.folder / name).read_bytes())

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())


class SentencePieceTokenizer(Tokenizer):
    """A BPE model of `python -m data_prep.train_tokenizer`, with byte fallback."""

    kind = "sentencepiece"

    def __init__(self, folder: Path):
        path = folder / MODEL_FILE
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer; make one with `python -m data_prep.train_tokenizer`")
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            super().__init__(folder, [MODEL_FILE])
            self._model.LoadFromSerializedProto(path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: cannot be read as a SentencePiece model; train it again") from error
        self.vocab_size = self._model.vocab_size()
        first = tuple(self._model.id_to_piece(i) for i in range(min(len(CONTROL_PIECES), self.vocab_size)))
        if first != CONTROL_PIECES or not all(self._model.is_control(i) for i in range(len(CONTROL_PIECES))):
            raise DataError(
                f"{path}: ids 0 to 4 are {' '.join(first)}, but must be the control pieces {' '.join(CONTROL_PIECES)};"
                " train it with `python -m data_prep.train_tokenizer`"
            )
        self.special_ids = dict(zip(SPECIAL_NAMES, range(len(CONTROL_PIECES)), strict=True))
        self.fallback_ids = frozenset(i for i in range(self.vocab_size) if self._model.is_byte(i))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # One thread: its default takes every core, which MPI ranks and loader workers already share.
        return self._model.encode(texts, num_threads=1)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer in `folder`. DataError where it is missing or damaged."""
    return SentencePieceTokenizer(Path(folder))
