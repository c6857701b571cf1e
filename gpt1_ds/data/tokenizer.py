"""The two BPE tokenizers: they encode text as token ids and decode ids to text.

`load_tokenizer` chooses the tokenizer by the files in the folder: `tokenizer.model` (SentencePiece,
trained by data_prep.train_tokenizer) or OpenAI's two released files (see `openai_bpe.py`). Each
tokenizer also normalises the text. So data preparation, fine-tuning and sampling treat text in the
same way. No text can produce the control ids (`pad s e delim eot`).

The ids of a word do not depend on its neighbours. So both tokenizers use a `WordCache`, which is
several times as fast as SentencePiece itself.
"""

import hashlib
import itertools
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.openai_bpe import OPENAI_FILES, OpenAIBPE

CONTROL_PIECES = ("<pad>", "<s>", "<e>", "<delim>", "<eot>")
"""The control pieces. In a SentencePiece model the index is the id. With OpenAI's vocabulary, their
ids follow its last id."""
SPECIAL_NAMES = ("pad", "s", "e", "delim", "eot")
MODEL_FILE = "tokenizer.model"
BLOCK_WORDS = 1 << 18
"""Number of words that are looked up together. A word in a list takes about 60 bytes."""


class Tokenizer(ABC):
    """Encodes and decodes text. It keeps the contents of the files that it was read from."""

    kind: str
    """Name in the manifest: `sentencepiece` or `openai`."""
    pipeline: str | None = None
    """Only for OpenAI's tokenizer: `transformers` or `original`."""
    newline_id: int | None = None
    """Id of a line break between two lines of text; None if line breaks are white space.

    `encode(text)` gives the ids of each line that has any, with this id between them.
    """
    vocab_size: int
    """Number of ids, including the control ids."""
    special_ids: dict[str, int]
    """Ids of `pad s e delim eot`."""
    fallback_ids: frozenset[int]
    """Ids that stand for a byte or a character outside the vocabulary."""

    def __init__(self, contents: dict[str, bytes]):
        self._contents = contents
        self.files = list(contents)
        """Names of the tokenizer's files."""
        self.sha256 = hashlib.sha256(b"".join(contents.values())).hexdigest()
        """Hash of the contents of all files, in the order of `files`."""
        self._cache = WordCache(self._encode_words)

    @abstractmethod
    def _encode_words(self, words: list[str]) -> list[list[int]]:
        """Ids of each word."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids, none of them a control id."""

    def _prepare(self, text: str) -> str:
        """The text to split at spaces into words."""
        return text.replace("\n", " ")

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids (T,) uint32 of all texts, one after the other, and the number of ids of each, (N,).

        This is the fastest method to encode.
        """
        blocks: list[np.ndarray] = []
        words: list[str] = []
        for text in texts:
            words += self._prepare(text).split(" ")
            words.append(WordCache.END)
            if len(words) >= BLOCK_WORDS:
                blocks.append(self._cache.ids(words))
                words = []
        ids_T = np.concatenate([*blocks, self._cache.ids(words)])
        is_end_T = ids_T == WordCache.END_ID
        return ids_T[~is_end_T], np.diff(np.flatnonzero(is_end_T), prepend=-1) - 1

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        ids_T, tokens_N = self.encode_ragged(texts)
        ids, ends = ids_T.tolist(), np.cumsum(tokens_N).tolist()
        return [ids[start:end] for start, end in itertools.pairwise([0, *ends])]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    @cached_property
    def folds_case(self) -> bool:
        """Whether a text and its capitals have the same ids."""
        return self.encode("B") == self.encode("b")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control ids are skipped."""
        return self._decode([int(token) for token in ids if int(token) not in self._control])

    def copy_to(self, folder: Path | str) -> None:
        """Write the tokenizer's files into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._contents.items():
            write_atomically(folder / name, data)

    def check_choice(self, kind: str | None, openai_pipeline: str | None) -> None:
        """ConfigError if the run's `tokenizer` section names another one; None accepts any."""
        choices = {
            "kind": (kind, self.kind),
            "openai_pipeline": (openai_pipeline, self.pipeline),
        }
        for key, (wanted, here) in choices.items():
            if wanted not in (None, here):
                raise ConfigError(
                    f"tokenizer.{key} is '{wanted}', but the data's or checkpoint's is '{here}'; "
                    "drop the option or choose others"
                )

    @cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())


class WordCache(dict[str, bytes]):
    """Maps a word to its ids, as the bytes of a uint32 array.

    In this form one `bytes.join` gives the ids of many words. A new word first gets a unique mark
    in place of its ids. At the end of a block all new words are encoded in one call, and their ids
    replace the marks.
    """

    END, END_ID = " ", 0x7FFFFFFF
    """The word that marks the end of a text, and its id. Callers add it after each text. No split
    at spaces gives this word."""
    MARK = 0x80000000
    """The mark of a block's first new word; the n-th new word has the mark MARK + n."""
    MAX_WORDS = 1 << 19
    """About 100 MB. A cache with more words is cleared, which is rare and costs little time."""
    MAX_CHARACTERS = 64
    """Longer words are not kept. They seldom occur again and would need too much memory."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]):
        self._encode = encode
        self._new: list[str] = []
        self._forget()

    def __missing__(self, word: str) -> bytes:
        mark = self[word] = array("I", [self.MARK + len(self._new)]).tobytes()
        self._new.append(word)
        return mark

    def ids(self, words: list[str]) -> np.ndarray:
        """Ids (T,), uint32, of the words."""
        ids_T = np.frombuffer(b"".join(map(self.__getitem__, words)), np.uint32)
        return self._with_new_words(ids_T) if self._new else ids_T

    def _with_new_words(self, marked_T: np.ndarray) -> np.ndarray:
        """Encode the new words, and replace each mark by the ids of its word."""
        try:
            new = [array("I", ids).tobytes() for ids in self._encode(self._new)]
        except BaseException:
            self._forget()  # no mark may stay after its block
            raise
        is_mark_T = marked_T >= self.MARK
        marks = (marked_T[is_mark_T] - self.MARK).tolist()
        repeats_T = np.ones(len(marked_T), np.int64)
        repeats_T[is_mark_T] = np.array([len(ids) // 4 for ids in new])[marks]
        ids_T = np.repeat(marked_T, repeats_T)
        replacement = b"".join(map(new.__getitem__, marks))
        ids_T[ids_T >= self.MARK] = np.frombuffer(replacement, np.uint32)
        self._keep(new)
        return ids_T

    def _keep(self, new: list[bytes]) -> None:
        """Store the ids of the new words in the cache."""
        for word, ids in zip(self._new, new, strict=True):
            if len(word) <= self.MAX_CHARACTERS:
                self[word] = ids
            else:
                del self[word]
        self._new = []
        if len(self) > self.MAX_WORDS:
            self._forget()

    def _forget(self) -> None:
        self.clear()
        self._new = []
        self[self.END] = array("I", [self.END_ID]).tobytes()


class SentencePieceTokenizer(Tokenizer):
    """A BPE model made by `python -m data_prep.train_tokenizer`, with byte fallback.

    The ids are always the same as from `SentencePieceProcessor.encode`. The word cache is used only
    if the settings of the model guarantee that. The model's normaliser `nmt_nfkc_cf` does GPT-1's
    normalisation: NFKC and case folding; a run of white space or newlines becomes one space.
    `nmt_nfkc` is the same without case folding.
    """

    kind = "sentencepiece"

    def __init__(self, folder: Path):
        path = folder / MODEL_FILE
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            super().__init__({MODEL_FILE: path.read_bytes()})
            self._model.LoadFromSerializedProto(self._contents[MODEL_FILE])
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{path}: cannot be read as a SentencePiece model; train it again"
            ) from error
        self.vocab_size = self._model.vocab_size()
        self._check_control_pieces(path)
        self.special_ids = dict(zip(SPECIAL_NAMES, range(len(CONTROL_PIECES)), strict=True))
        self.fallback_ids = frozenset(i for i in range(self.vocab_size) if self._model.is_byte(i))

    def _check_control_pieces(self, path: Path) -> None:
        ids = range(min(len(CONTROL_PIECES), self.vocab_size))
        first = tuple(self._model.id_to_piece(i) for i in ids)
        if first != CONTROL_PIECES or not all(self._model.is_control(i) for i in ids):
            raise DataError(
                f"{path}: ids 0 to 4 are {' '.join(first)}, but must be the control pieces "
                f"{' '.join(CONTROL_PIECES)}; train it with `python -m data_prep.train_tokenizer`"
            )

    @cached_property
    def _by_words(self) -> bool:
        return words_are_independent(self._contents[MODEL_FILE])

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._by_words:
            return super().encode_ragged(texts)
        encoded = self._encode_words(list(texts))
        tokens_N = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = itertools.chain.from_iterable(encoded)
        return np.fromiter(ids, np.uint32, int(tokens_N.sum())), tokens_N

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        # The default is one thread for each core, but MPI ranks and loaders already use the cores.
        return self._model.encode(words, num_threads=1)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def words_are_independent(model: bytes) -> bool:
    """Whether encoding a text word by word gives the same ids as encoding all of it.

    Words are the parts between spaces and newlines. For a SentencePiece BPE this is true if:
    - its normaliser puts "\u2581" before every word, and none of its rules contains a space;
    - its pieces have "\u2581" only at their start;
    - it encodes unknown characters as bytes, because neighbouring <unk>s would become one.
    """
    from sentencepiece import sentencepiece_model_pb2  # a slow import that only encoding needs

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.BPE or trainer.treat_whitespace_as_suffix:
        return False
    if not trainer.byte_fallback:
        return False
    if rules.name not in ("nmt_nfkc_cf", "nmt_nfkc"):  # newlines and "\u2581" become spaces
        return False
    if not (rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces):
        return False
    for piece in proto.pieces:
        if "\u2581" in piece.piece[1:] or piece.type == piece.USER_DEFINED:
            return False
    return not _has_rule_with_space(rules.precompiled_charsmap)


def _has_rule_with_space(charsmap: bytes) -> bool:
    """Whether a rule of the normaliser matches a text with a space.

    The rules are a Darts trie: its size in 4 bytes, then units of 4 bytes. The low byte of a unit
    is the character of its edge; a unit with bit 31 set holds a value and is no edge.
    """
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap[4 : 4 + size], "<u4")
    return bool((units & 0x800000FF == ord(" ")).any())


class OpenAITokenizer(Tokenizer):
    """OpenAI's released BPE; `openai_bpe.py` describes how it treats text."""

    kind = "openai"
    fallback_ids = frozenset([0])

    def __init__(self, folder: Path):
        self._bpe = OpenAIBPE(folder)
        super().__init__(self._bpe.contents)
        self.pipeline = self._bpe.pipeline
        self.newline_id = self._bpe.newline_id
        self.special_ids = {name: self._bpe.size + i for i, name in enumerate(SPECIAL_NAMES)}
        self.vocab_size = self._bpe.size + len(SPECIAL_NAMES)

    def _prepare(self, text: str) -> str:
        return self._bpe.prepare(text)

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        return self._bpe.encode_words(words)

    def _decode(self, ids: list[int]) -> str:
        return self._bpe.decode(ids)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer in `folder`. Raises DataError if it is missing or damaged."""
    folder = Path(folder)
    openai_files = " and ".join(OPENAI_FILES)
    is_openai = any((folder / name).exists() for name in OPENAI_FILES)
    is_sentencepiece = (folder / MODEL_FILE).is_file()
    if is_openai and is_sentencepiece:
        raise DataError(
            f"{folder / MODEL_FILE}: stands beside OpenAI's {openai_files}; keep one of the two"
        )
    if not is_openai and not is_sentencepiece:
        raise DataError(
            f"{folder / MODEL_FILE}: no such tokenizer, nor OpenAI's {openai_files}; make one with "
            "`python -m data_prep.train_tokenizer`"
        )
    return OpenAITokenizer(folder) if is_openai else SentencePieceTokenizer(folder)
