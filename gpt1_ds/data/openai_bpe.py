r"""OpenAI's released BPE: 40,478 pieces, and two pipelines from text to words.

`pipeline.json` in the same folder chooses the pipeline: `{"openai_pipeline": "original"}`. Without
this file, the pipeline is `transformers`. The BPE model of the `tokenizers` library merges the
pieces of a word. It gives the same ids as OpenAI's code.

transformers: the ids are the same as from its OpenAIGPTTokenizer (5.23) with the same files:
- Newlines are removed like all white space, so `\n</w>`, id 40477, never occurs. A literal "<unk>"
  is id 0.
- Accents are removed ("café" becomes "cafe"), although the vocabulary has "é". Control, format
  and private-use characters are removed, although the vocabulary has some of them. Every
  punctuation mark and every Chinese character is a word ("don't": "don ' t").
- ftfy is not used: most curly quotes and dashes are unknown, unless they were replaced before.
- Its Unicode tables are older than Python's. About 560 characters of Unicode 9 and later differ,
  all of them outside the vocabulary. For example, transformers gives `<unk>` for such a character,
  but it is removed or becomes a word of its own here, or the reverse.

original: `text_utils.py` of openai/finetune-transformer-lm, with current ftfy and spaCy:
- ftfy repairs the text. Dashes and "…´" become ASCII. A run of one punctuation mark gets spaces
  around it. The original regular expression is not a raw string, so backslashes get no spaces.
- spaCy's English rules split words ("don't": "do n't"). `spacy.blank("en")` has these rules and
  needs no model.
- White space that contains a newline becomes the single token `\n</w>`, but not at the beginning
  or the end of a text. Shards have it too.
- ftfy repairs each line by itself, so that the ids do not depend on how a text is divided. (In the
  released code a "<" also keeps the HTML entities of all later lines.)
- Words are lower-cased after that, so a capital sigma at the end of a word becomes "ς".

Both: each character outside the vocabulary becomes id 0, `<unk>`, and is lost. Upper case is lost.
Decoding turns every `</w>` except the last into a space, so "it's." becomes "it ' s .".
"""

import contextlib
import functools
import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import ftfy

from gpt1_ds.base.errors import ConfigError, DataError

OPENAI_FILES = ("encoder_bpe_40000.json", "vocab_40000.bpe")
VOCABULARY_FILE, MERGES_FILE = OPENAI_FILES
PIPELINE_FILE = "pipeline.json"
OPENAI_PIPELINES = ("transformers", "original")
END_OF_WORD = "</w>"
UNKNOWN = "<unk>"


class _Token(Protocol):
    text: str


class OpenAIBPE:
    """Reads the files in `folder`; raises DataError if one is missing or damaged."""

    def __init__(self, folder: Path):
        self.contents: dict[str, bytes] = {}
        """The contents of the files, by name. They include the pipeline, because the two pipelines
        give different ids and need different hashes of the tokenizer."""
        from tokenizers.models import BPE  # imported here: SentencePiece does not need it

        for name in OPENAI_FILES:
            with _data_error_for(folder / name):
                self.contents[name] = (folder / name).read_bytes()
        with _data_error_for(folder / VOCABULARY_FILE):
            self._ids = _vocabulary(self.contents[VOCABULARY_FILE])
        with _data_error_for(folder / MERGES_FILE):
            self._merges = _merges(self.contents[MERGES_FILE], self._ids)
        self.pipeline = chosen_pipeline(folder) or OPENAI_PIPELINES[0]
        self.contents[PIPELINE_FILE] = json.dumps({"openai_pipeline": self.pipeline}).encode()
        self.size = len(self._ids)
        self.newline_id: int | None = None
        """Id of a line break; None if it is white space, as in the pipeline `transformers`."""
        if self.pipeline == "original":
            self.newline_id = self._ids.get(f"\n{END_OF_WORD}")
        pieces = sorted(self._ids, key=self._ids.__getitem__)
        self._text = [piece.replace(END_OF_WORD, " ") for piece in pieces]
        self._model = BPE(
            vocab=self._ids,
            merges=self._merges,
            unk_token=UNKNOWN,
            end_of_word_suffix=END_OF_WORD,
        )

    def prepare(self, text: str) -> str:
        """The text to split at spaces into the parts that `encode_words` takes."""
        return _standardized(text) if self.pipeline == "original" else text.replace("\n", " ")

    def encode_words(self, parts: list[str]) -> list[list[int]]:
        """Ids of each part."""
        words_of = self._spacy_words if self.pipeline == "original" else _bert_words
        encoded = []
        for part in parts:
            ids: list[int] = []
            for word in words_of(part):
                ids += self._word_ids(word)
            encoded.append(ids)
        return encoded

    def decode(self, ids: list[int]) -> str:
        return "".join([self._text[token] for token in ids]).removesuffix(" ")

    def _word_ids(self, word: str) -> list[int]:
        if word == UNKNOWN and self.pipeline == "transformers":
            return [0]
        return [token.id for token in self._model.tokenize(word)]

    def _spacy_words(self, part: str) -> list[str]:
        return ["\n"] if part == "\n" else [token.text.lower() for token in self._spacy(part)]

    @functools.cached_property
    def _spacy(self) -> Callable[[str], Iterable[_Token]]:
        try:
            import spacy
        except ImportError as error:
            raise ConfigError(
                "openai_pipeline 'original' needs spaCy: pip install 'gpt1-ds[openai]'"
            ) from error
        return spacy.blank("en").tokenizer


@contextlib.contextmanager
def _data_error_for(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        fault = f"not as OpenAI released it, beside {' and '.join(OPENAI_FILES)} ({error})"
        raise DataError(f"{path}: {fault}; restore it") from error


def _vocabulary(data: bytes) -> dict[str, int]:
    """Piece -> id."""
    ids = json.loads(data)
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))) or pieces[0] != UNKNOWN:
        raise ValueError("ids are not 0, 1, 2 .. from <unk> on")
    return ids


def _merges(data: bytes, ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces that are merged, in order of priority."""
    merges = []
    for line in data.decode().split("\n")[1:]:
        if not line:
            continue
        first, *rest = line.split(" ")
        if len(rest) != 1 or first + rest[0] not in ids:
            raise ValueError(f"'{line}' makes no piece")
        merges.append((first, rest[0]))
    made = sum(len(piece.removesuffix(END_OF_WORD)) > 1 for piece in ids if piece != UNKNOWN)
    if len(merges) != made:
        raise ValueError(f"{len(merges)} merges, but {made} pieces to make")
    return merges


def chosen_pipeline(folder: Path) -> str | None:
    """The pipeline that `pipeline.json` in the folder names; None without this file."""
    path = folder / PIPELINE_FILE
    if not path.exists():
        return None
    with _data_error_for(path):
        pipeline: str = json.loads(path.read_bytes())["openai_pipeline"]
        if pipeline not in OPENAI_PIPELINES:
            raise ValueError(f"openai_pipeline is none of {', '.join(OPENAI_PIPELINES)}")
    return pipeline


_CHINESE = re.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f])"
)


def _bert_words(part: str) -> list[str]:
    """The same words as from transformers' BertNormalizer and BertPreTokenizer.

    A literal "<unk>" is one word.
    """
    words: list[str] = []
    for text in re.split(f"({UNKNOWN})", part):
        words += [text] if text == UNKNOWN else _without_unknown(text)
    return words


def _without_unknown(text: str) -> list[str]:
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category[0] == "Z":
            kept.append(" ")
        elif category not in ("Cc", "Cf", "Co", "Cs") and character != "\ufffd":
            kept.append(character)
    spread = []
    for character in unicodedata.normalize("NFD", _CHINESE.sub(r" \1 ", "".join(kept))):
        category = unicodedata.category(character)
        if category[0] == "P" or character in string.punctuation:
            spread.append(f" {character} ")
        elif category != "Mn":
            # One character at a time, so a capital sigma at the end of a word becomes "σ".
            spread.append(character.lower())
    return "".join(spread).split()


_FOR_FTFY = re.compile("[^\n\t -%'-~]")
"""Characters that ftfy may change. ftfy is slow (2 MB/s), so texts without them skip it."""
_TO_ASCII = str.maketrans(
    {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
)
_RUN_OF_ONE_MARK = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")


def _standardized(text: str) -> str:
    """The text that the released code passes to spaCy: that of each line, newlines between them."""
    lines = map(_standardized_line, text.split("\n"))
    return " \n ".join(line for line in lines if line)


def _standardized_line(text: str) -> str:
    if _FOR_FTFY.search(text):
        text = ftfy.fix_text(text)  # it turns some characters into newlines
    text = _RUN_OF_ONE_MARK.sub(r" \g<0> ", text.translate(_TO_ASCII))
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()
