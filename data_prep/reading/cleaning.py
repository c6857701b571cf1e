"""The text of a file becomes the text that is tokenised, by the steps that `--clean` chooses.

| step         | does                                                                           |
|--------------|--------------------------------------------------------------------------------|
| `gutenberg`  | removes Project Gutenberg's headers and licences, at their marks               |
| `unwrap`     | joins hard-wrapped lines into paragraphs, one a line (never in sentence files) |
| `detokenize` | joins tokenised text by sacremoses: "do n't , he" becomes "don't, he"          |
| `ftfy`       | repairs mojibake, HTML entities, curly quotes, ligatures, control characters   |
| `nfkc lower` | Unicode's NFKC; lower case. The SentencePiece model does both by default       |

They run in this order. Runs of white space always become one space. The manifest records what was
done. A document comes in fragments of some MB, cut between paragraphs, so its size does not matter.
"""

import functools
import importlib.metadata
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import ftfy

from data_prep.reading.gutenberg import FrameCutter
from gpt1_ds.base.errors import ConfigError, near

STEPS = ("gutenberg", "unwrap", "detokenize", "ftfy", "nfkc", "lower")
DEFAULT_STEPS = ("gutenberg", "unwrap", "ftfy")
BAD_TEXT = ("mend", "drop", "refuse")
_BLANK_LINES = re.compile(r"\n\s*\n")
_PLAIN = "\n\t -%'-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
"""Printable ASCII without "&", dashes, ellipses and curly quotes.

ftfy changes nothing in a text of these characters but its curly quotes, which become straight."""
_NOT_PLAIN = re.compile(f"[^{_PLAIN}]")
_ACCENTED = "\u00e0-\u00f6\u00f8-\u00ff"
_NEEDS_FTFY = re.compile(f"[^{_PLAIN}{_ACCENTED}]|(?<![ -~])[{_ACCENTED}]|[{_ACCENTED}](?![ -~])")
"""Characters that ftfy may change. It also leaves small accented letters between ASCII alone.

This search is the second one, since it is slower; ftfy itself reads only 2 MB/s."""
_MOST_MARKS = 50
"""Runs of twice as many combining marks, which no text has, are broken up as in Unicode's annex 15.

To put such a run in order takes the square of its length."""


@dataclass(frozen=True)
class Cleaning:
    """The options of cleaning, as the manifest records them."""

    steps: dict[str, tuple[str, ...]]
    """By corpus."""
    bad_text: str = "mend"
    """What becomes of a document whose bytes are not UTF-8 text, one of `BAD_TEXT`."""

    def record(self) -> dict[str, object]:
        """The manifest's record, with the versions of the libraries that take part."""
        used = set(chain.from_iterable(self.steps.values()))
        libraries = {"ftfy": "ftfy", "detokenize": "sacremoses"}
        names = [name for step, name in libraries.items() if step in used]
        versions = {name: importlib.metadata.version(name) for name in names}
        if "nfkc" in used:
            versions["unicode"] = unicodedata.unidata_version
        steps = {corpus: list(chosen) for corpus, chosen in self.steps.items()}
        return {"steps": steps, "bad_text": self.bad_text, "versions": versions}


def add_option(add: Callable[..., object]) -> None:
    """Add `--clean` with `add`, an `add_argument`."""
    add(
        "--clean",
        action="append",
        default=[],
        metavar="[NAME=]STEP,STEP",
        help=f"steps of cleaning, of all corpora or of one, out of {' '.join(STEPS)}, or none;"
        " detokenize is for tokenised text such as 1B Word's; repeatable"
        f" (default: {','.join(DEFAULT_STEPS)})",
    )


def parse_steps(values: list[str], corpora: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The steps of each corpus, in the order they run, from the values of `--clean`.

    A value for one corpus overrides a value for all. ConfigError for an unknown step or corpus.
    """
    steps: dict[str, tuple[str, ...]] = dict.fromkeys(corpora, DEFAULT_STEPS)
    for value in sorted(values, key=lambda value: "=" in value):
        name, equals, listed = value.rpartition("=")
        chosen = set() if listed == "none" else set(listed.split(","))
        unknown = sorted(chosen - set(STEPS))
        if unknown:
            fix = near(unknown[0], (*STEPS, "none"))
            raise ConfigError(f"--clean {value}: no step '{unknown[0]}'; {fix}")
        if equals and name not in steps:
            raise ConfigError(f"--clean {value}: no --corpus {name}=PATH goes with it")
        for corpus in [name] if equals else list(steps):
            steps[corpus] = tuple(step for step in STEPS if step in chosen)
    if any("detokenize" in chosen for chosen in steps.values()):
        _detokenizer()
    return steps


class Cleaner:
    """Cleans the documents of one file, fragment by fragment.

    `wrapped` says whether the file's lines may be hard-wrapped.
    """

    def __init__(self, steps: Iterable[str], wrapped: bool):
        chosen = set(steps)
        self._unwrap = wrapped and "unwrap" in chosen
        self._gutenberg = wrapped and "gutenberg" in chosen
        functions: dict[str, Callable[[str], str]] = {
            "detokenize": _detokenize,
            "ftfy": _repair,
            "nfkc": _nfkc,
            "lower": str.lower,
        }
        self._functions = [function for step, function in functions.items() if step in chosen]
        self._only_ftfy = self._functions == [_repair]
        self._frames = FrameCutter()

    @property
    def cut(self) -> int:
        """Characters that the step `gutenberg` has cut so far."""
        return self._frames.cut

    def __call__(self, text: str, first: bool, last: bool = True) -> str:
        """The clean text of a document's next fragment, one paragraph or sentence a line.

        It may be empty. `first` and `last` say whether a document begins or ends here.
        """
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self._gutenberg:
            text = self._frames(text, first, last)
        if self._only_ftfy:  # The usual case: few paragraphs need more than straight quotes.
            text = _straighten_quotes(text)
            parts = self._split(text)
            if _NOT_PLAIN.search(text):
                parts = [_repair_odd(part) for part in parts]
        else:
            parts = self._split(text)
            for function in self._functions:
                parts = [function(part) for part in parts]
        lines = [" ".join(part.split()) for part in parts]
        return "\n".join([line for line in lines if line])

    def _split(self, text: str) -> list[str]:
        return _BLANK_LINES.split(text) if self._unwrap else text.split("\n")


def _straighten_quotes(text: str) -> str:
    if text.isascii():
        return text
    text = text.replace("\u2018", "'").replace("\u2019", "'")
    return text.replace("\u201c", '"').replace("\u201d", '"')


def _repair_odd(part: str) -> str:
    if _NOT_PLAIN.search(part) and _NEEDS_FTFY.search(part):
        return ftfy.fix_text(_short_runs(part))
    return part


def _repair(text: str) -> str:
    # ftfy reads about 2 MB/s, SentencePiece 6 MB/s. Most paragraphs of most corpora are plain.
    return ftfy.fix_text(_short_runs(text)) if _NOT_PLAIN.search(text) else _straighten_quotes(text)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", _short_runs(text))


def _short_runs(text: str) -> str:
    """The text with a combining grapheme joiner behind every `_MOST_MARKS` combining marks."""
    if text.isascii():
        return text
    # A search through all of the text would take longer than ftfy.
    for place in range(0, len(text), _MOST_MARKS):
        if unicodedata.combining(text[place]) and _run_of_marks().match(text, place):
            return _run_of_marks().sub("\\g<0>\u034f", text)
    return text


@functools.cache
def _run_of_marks() -> re.Pattern[str]:
    marks = "".join(mark for mark in map(chr, range(sys.maxunicode)) if unicodedata.combining(mark))
    return re.compile(f"[{marks}]{{{_MOST_MARKS}}}")


def _detokenize(text: str) -> str:
    # BooksCorpus has Penn Treebank's quotes and negations, which Moses does not know.
    text = text.replace("``", '"').replace("''", '"').replace(" n't", "n't")
    return "\n".join(_detokenizer()(line.split(), unescape=False) for line in text.split("\n"))


@functools.cache
def _detokenizer() -> Callable[..., str]:
    try:
        from sacremoses import MosesDetokenizer
    except ImportError as error:
        raise ConfigError(
            "--clean detokenize needs sacremoses: pip install 'gpt1-ds[detokenize]'"
        ) from error
    return MosesDetokenizer(lang="en").detokenize
