r"""OpenAI's released BPE (layer 0, a part of `tokenizer.py`): 40,478 pieces, two ways from text to words.

`pipeline.json` beside the two files, `{"openai_pipeline": "original"}`, chooses the way; without it, `transformers`.

transformers: ids equal those of its OpenAIGPTTokenizer (5.23) for the same files. Quirks kept:
- Newlines vanish like all white space, so `\n</w>`, id 40477, never occurs. A literal "<unk>" is id 0.
- Accents are stripped ("café" is "cafe") though the vocabulary has "é"; control, format and private-use characters
  vanish though it has some of these; every punctuation mark and Chinese character is a word ("don't": "don ' t").
- No ftfy: curly quotes and dashes are as good as unknown, unless mended before.
- Its Unicode tables are older than Python's: some 560 characters of Unicode 9 and later, all outside the vocabulary,
  are unknown to one where they vanish or stand alone for the other.

original: `text_utils.py` of openai/finetune-transformer-lm, with today's ftfy and spaCy. Quirks kept:
- ftfy, dashes and "…´" to ASCII, spaces around runs of one mark; a regular expression there that is no raw string
  leaves backslashes as they are.
- spaCy's English rules part words ("don't": "do n't"), by `spacy.blank("en")`: the rules need no model.
- White space with a newline in it is the one token `\n</w>`. (Shards have none: documents are encoded line by line.)
- Each word is put in lower case only then, so a capital sigma at its end becomes "ς".

both: each character outside the vocabulary is id 0, `<unk>`, and lost; decoding turns every `</w>` but the last into a
space, so that "it's." comes back as "it ' s ."; upper case is lost.
"""

import functools
import heapq
import itertools
import json
import re
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy

from gpt1_ds.base.errors import ConfigError, DataError

OPENAI_FILES = ("encoder_bpe_40000.json", "vocab_40000.bpe")
PIPELINE_FILE = "pipeline.json"
OPENAI_PIPELINES = ("transformers", "original")


class OpenAIBPE:
    """Reads the files of `folder`; DataError where one is missing or damaged."""

    def __init__(self, folder: Path):
        self.contents: dict[str, bytes] = {}
        """What makes this codec. The pipeline is part of it, and so of its hash: the ids of one are not the other's."""
        try:
            for name in OPENAI_FILES:
                self.contents[name] = (folder / name).read_bytes()
            self._ids: dict[str, int] = json.loads(self.contents[name := OPENAI_FILES[0]])
            pieces = sorted(self._ids, key=self._ids.__getitem__)
            if [self._ids[piece] for piece in pieces] != list(range(len(pieces))) or pieces[
                0
            ] != "<unk>":
                raise ValueError("ids are not 0, 1, 2 .. from <unk> on")
            lines = self.contents[name := OPENAI_FILES[1]].decode().split("\n")[1:]
            self._rank = {tuple(line.split(" ")): rank for rank, line in enumerate(lines) if line}
            strange = [
                pair for pair in self._rank if len(pair) != 2 or "".join(pair) not in self._ids
            ]
            if strange:
                raise ValueError(f"'{' '.join(strange[0])}' makes no piece")
            made = sum(len(piece.removesuffix("</w>")) > 1 for piece in pieces[1:])
            if len(self._rank) != made:
                raise ValueError(f"{len(self._rank)} merges, but {made} pieces to make")
            path = folder / (name := PIPELINE_FILE)
            self.pipeline = (
                json.loads(path.read_bytes())["openai_pipeline"]
                if path.exists()
                else OPENAI_PIPELINES[0]
            )
            if self.pipeline not in OPENAI_PIPELINES:
                raise ValueError(f"openai_pipeline is none of {', '.join(OPENAI_PIPELINES)}")
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            fault = f"not as OpenAI released it, beside {' and '.join(OPENAI_FILES)} ({error})"
            raise DataError(f"{folder / name}: {fault}; restore it") from error
        self.contents[PIPELINE_FILE] = json.dumps({"openai_pipeline": self.pipeline}).encode()
        self.size = len(pieces)
        self._text = [piece.replace("</w>", " ") for piece in pieces]
        # What the word cache above has as "sailor", "sailor," and "(Sailor" is one word here.
        self._merged = functools.lru_cache(1 << 16)(self._merge)

    def prepare(self, text: str) -> str:
        """The text of which the parts between spaces go to `encode_words`."""
        return _standardized(text) if self.pipeline == "original" else text.replace("\n", " ")

    def encode_words(self, parts: list[str]) -> list[list[int]]:
        words_of = self._spacy_words if self.pipeline == "original" else _bert_words
        return [
            [token for word in words_of(part) for token in self._merged(word)] for part in parts
        ]

    def decode(self, ids: list[int]) -> str:
        return "".join([self._text[token] for token in ids]).removesuffix(" ")

    def _merge(self, word: str) -> list[int]:
        """Ids of a word: of all neighbours the pair of lowest rank is merged first, the leftmost of equals."""
        if word == "<unk>" and self.pipeline == "transformers":
            return [0]
        symbols = [*word[:-1], word[-1] + "</w>"]
        before, after = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
        heap = [
            (self._rank[p], i) for i, p in enumerate(itertools.pairwise(symbols)) if p in self._rank
        ]
        heapq.heapify(heap)
        while heap:
            rank, i = heapq.heappop(heap)
            j = after[i]
            if j == len(symbols) or self._rank.get((symbols[i], symbols[j])) != rank:
                continue  # one of the two has been merged since
            symbols[i], symbols[j], after[i] = symbols[i] + symbols[j], "", after[j]
            if after[i] < len(symbols):
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if (
                    left >= 0
                    and right < len(symbols)
                    and (symbols[left], symbols[right]) in self._rank
                ):
                    heapq.heappush(heap, (self._rank[symbols[left], symbols[right]], left))
        return [self._ids.get(symbol, 0) for symbol in symbols if symbol]

    def _spacy_words(self, part: str) -> list[str]:
        return ["\n"] if part == "\n" else [token.text.lower() for token in self._spacy(part)]

    @functools.cached_property
    def _spacy(self) -> Callable[[str], Any]:
        try:
            import spacy
        except ImportError as error:
            raise ConfigError(
                "openai_pipeline 'original' needs spaCy: pip install 'gpt1-ds[openai]'"
            ) from error
        return spacy.blank("en").tokenizer


_CHINESE = re.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
    "\U0002f800-\U0002fa1f])"
)


def _bert_words(part: str) -> list[str]:
    """Words as transformers' BertNormalizer and BertPreTokenizer make them; a literal "<unk>" stays whole."""
    if "<unk>" in part:
        return [
            w
            for text in re.split("(<unk>)", part)
            for w in ([text] if text == "<unk>" else _bert_words(text))
        ]
    kept = []
    for character in part:
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
            spread.append(
                character.lower()
            )  # by itself: a capital sigma at a word's end becomes "σ"
    return "".join(spread).split()


_FOR_FTFY = re.compile("[^\n\t -%'-~]")
"""What is left has nothing to mend, and ftfy reads 2 MB/s."""
_TO_ASCII = str.maketrans(
    {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
)
_RUN_OF_ONE_MARK = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")


def _standardized(text: str) -> str:
    """The released code's text ahead of spaCy."""
    text = (ftfy.fix_text(text) if _FOR_FTFY.search(text) else text).translate(_TO_ASCII)
    text = re.sub(r"\s*\n\s*", " \n ", _RUN_OF_ONE_MARK.sub(r" \g<0> ", text))
    return re.sub(r"[^\S\n]+", " ", text).strip()
