"""BPE codecs (layer 0): text in, token ids out.

`load_tokenizer` picks the codec by the files it finds: `tokenizer.model` (SentencePiece, trained here) or OpenAI's two
released files (`openai_bpe.py`). Each does what normalisation its vocabulary needs, so that text met in fine-tuning or
sampling is treated as in the shards. Control ids (`pad s e delim eot`) no text can produce. A word's ids do not depend
on its neighbours; so both codecs encode through `WordCache`, several times as fast as SentencePiece itself.
"""

import functools
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
"""SentencePiece's control pieces; the index is the id. With OpenAI's vocabulary their ids follow its last."""
SPECIAL_NAMES = ("pad", "s", "e", "delim", "eot")
MODEL_FILE = "tokenizer.model"
BLOCK_WORDS = 1 << 18
"""Words looked up at once; one in a list takes some 60 bytes."""


class Tokenizer(ABC):
    """A codec between text and ids, with the files it was read from."""

    kind: str
    """Name in the manifest: `sentencepiece` or `openai`."""
    pipeline: str | None = None
    """OpenAI's codec only: `transformers` or `original`."""
    vocab_size: int
    """Ids run from 0 to vocab_size - 1, control ids included."""
    special_ids: dict[str, int]
    """Ids of `pad s e delim eot`."""
    fallback_ids: frozenset[int]
    """Ids that stand for a byte (or a character) outside the vocabulary."""

    def __init__(self, contents: dict[str, bytes]):
        self._contents = contents
        self.files = list(contents)
        """Names of the files that make this tokenizer."""
        self.sha256 = hashlib.sha256(b"".join(contents.values())).hexdigest()
        """Hash of the files' bytes, in the order of `files`."""
        self._cache = WordCache(self._encode_words)

    @abstractmethod
    def _encode_words(self, words: list[str]) -> list[list[int]]:
        """Ids of each word."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids that hold no control id."""

    def _prepare(self, text: str) -> str:
        """The text of which the parts between spaces are the words."""
        return text.replace("\n", " ")

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The texts' ids (T,) uint32, one text after the other, and how many each has (N,); the fastest way in."""
        blocks, words = [], []
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
        """ConfigError where the run's `tokenizer` section asks for another codec; None is content with any."""
        for key, wanted, here in (
            ("kind", kind, self.kind),
            ("openai_pipeline", openai_pipeline, self.pipeline),
        ):
            if wanted not in (None, here):
                raise ConfigError(
                    f"tokenizer.{key} is '{wanted}', but the data's or checkpoint's is '{here}'; "
                    "drop the option or choose others"
                )

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())


class WordCache(dict[str, bytes]):
    """Word -> its ids, as the bytes of a uint32 array: the ids of many words are one `bytes.join` over one `map`.

    A word met for the first time is entered under a mark of its own; the new words of a block are encoded in one call
    and the marks among the block's ids replaced.
    """

    END, END_ID = " ", 0x7FFFFFFF
    """A word that no splitting at spaces yields, and its one id: callers end texts with it."""
    MARK = 0x80000000
    MAX_WORDS = 1 << 19
    """About 100 MB. What is more is forgotten and learned anew: seldom, so it costs little."""
    MAX_CHARACTERS = 64
    """Longer words are not kept: they seldom recur, and would break the bound above."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]):
        self._encode = encode
        self._forget()

    def __missing__(self, word: str) -> bytes:
        mark = self[word] = array("I", [self.MARK + len(self._new)]).tobytes()
        self._new.append(word)
        return mark

    def ids(self, words: list[str]) -> np.ndarray:
        """Ids (T,), uint32, of the words."""
        ids_T = np.frombuffer(b"".join(map(self.__getitem__, words)), np.uint32)
        return self._resolved(ids_T) if self._new else ids_T

    def _resolved(self, ids_T: np.ndarray) -> np.ndarray:
        """The ids with those of the new words, now learned, in place of their marks."""
        try:
            new = [array("I", ids).tobytes() for ids in self._encode(self._new)]
        except BaseException:
            self._forget()  # no mark may outlive its block
            raise
        is_mark_T = ids_T >= self.MARK
        marks = (ids_T[is_mark_T] - self.MARK).tolist()
        tokens_T = np.ones(len(ids_T), np.int64)
        tokens_T[is_mark_T] = np.array([len(ids) // 4 for ids in new])[marks]
        ids_T = np.repeat(ids_T, tokens_T)
        ids_T[ids_T >= self.MARK] = np.frombuffer(b"".join(map(new.__getitem__, marks)), np.uint32)
        self.update(zip(self._new, new, strict=True))
        for word in [word for word in self._new if len(word) > self.MAX_CHARACTERS]:
            del self[word]
        self._new = []
        if len(self) > self.MAX_WORDS:
            self._forget()
        return ids_T

    def _forget(self) -> None:
        self.clear()
        self._new: list[str] = []
        self[self.END] = array("I", [self.END_ID]).tobytes()


class SentencePieceTokenizer(Tokenizer):
    """A BPE model of `python -m data_prep.train_tokenizer`, with byte fallback.

    The ids are always those of `SentencePieceProcessor.encode`; they come from the word cache where the model's own
    settings prove that this is so. Its `nmt_nfkc_cf` does GPT-1's normalisation: NFKC, case folding, every run of white
    space, newlines included, becomes one space.
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
        first = tuple(
            self._model.id_to_piece(i) for i in range(min(len(CONTROL_PIECES), self.vocab_size))
        )
        if first != CONTROL_PIECES or not all(
            self._model.is_control(i) for i in range(len(CONTROL_PIECES))
        ):
            fault = f"ids 0 to 4 are {' '.join(first)}, but must be the control pieces {' '.join(CONTROL_PIECES)}"
            raise DataError(f"{path}: {fault}; train it with `python -m data_prep.train_tokenizer`")
        self.special_ids = dict(zip(SPECIAL_NAMES, range(len(CONTROL_PIECES)), strict=True))
        self.fallback_ids = frozenset(i for i in range(self.vocab_size) if self._model.is_byte(i))

    @cached_property
    def _by_words(self) -> bool:
        return words_are_independent(self._contents[MODEL_FILE])

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._by_words:
            return super().encode_ragged(texts)
        encoded = self._encode_words(list(texts))
        tokens_N = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(
            itertools.chain.from_iterable(encoded), np.uint32, int(tokens_N.sum())
        ), tokens_N

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        # One thread: its default takes every core, which MPI ranks and loader workers already share.
        return self._model.encode(words, num_threads=1)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def words_are_independent(model: bytes) -> bool:
    """Whether the ids of any text are those of its parts between spaces and newlines, one after the other.

    True of a SentencePiece BPE whose normaliser puts "\u2581" before every word and has no rule that reads across a
    space; whose pieces hold "\u2581" at most in front; and that spells the unknown in bytes, since <unk>s would fuse.
    """
    from sentencepiece import sentencepiece_model_pb2  # slow, and only encoding comes here

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    # The rules are a Darts trie: its size, then units of 4 bytes, each with the character of its edge in the low byte.
    trie = rules.precompiled_charsmap[
        4 : 4 + int.from_bytes(rules.precompiled_charsmap[:4], "little")
    ]
    return (
        rules.name == "nmt_nfkc_cf"  # which makes a newline, and a "\u2581" of the text, a space
        and not (np.frombuffer(trie, "<u4") & 0x800000FF == ord(" ")).any()
        and (rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces)
        and (
            trainer.model_type == trainer.BPE
            and trainer.byte_fallback
            and not trainer.treat_whitespace_as_suffix
        )
        and not any(
            "\u2581" in piece.piece[1:] or piece.type == piece.USER_DEFINED
            for piece in proto.pieces
        )
    )


class OpenAITokenizer(Tokenizer):
    """OpenAI's released BPE; what is particular about its ids is told in `openai_bpe.py`."""

    kind = "openai"
    fallback_ids = frozenset([0])

    def __init__(self, folder: Path):
        self._bpe = OpenAIBPE(folder)
        super().__init__(self._bpe.contents)
        self.pipeline = self._bpe.pipeline
        self.special_ids = {name: self._bpe.size + i for i, name in enumerate(SPECIAL_NAMES)}
        self.vocab_size = self._bpe.size + len(SPECIAL_NAMES)

    def _prepare(self, text: str) -> str:
        return self._bpe.prepare(text)

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        return self._bpe.encode_words(words)

    def _decode(self, ids: list[int]) -> str:
        return self._bpe.decode(ids)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer in `folder`, by the files there. DataError where it is missing or damaged."""
    folder = Path(folder)
    is_openai = any((folder / name).exists() for name in OPENAI_FILES)
    if is_openai == (folder / MODEL_FILE).is_file():
        fault = "stands beside" if is_openai else "no such tokenizer, nor"
        fix = (
            "keep one of the two"
            if is_openai
            else "make one with `python -m data_prep.train_tokenizer`"
        )
        raise DataError(
            f"{folder / MODEL_FILE}: {fault} OpenAI's {' and '.join(OPENAI_FILES)}; {fix}"
        )
    return OpenAITokenizer(folder) if is_openai else SentencePieceTokenizer(folder)
