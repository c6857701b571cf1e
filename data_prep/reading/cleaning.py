"""From the text of a file to the text that is tokenised: the steps that `--clean` switches.

| step         | does                                                                                              |
|--------------|---------------------------------------------------------------------------------------------------|
| `gutenberg`  | removes Project Gutenberg's header and footer, where its markers are found                        |
| `unwrap`     | joins hard-wrapped lines into paragraphs, one a line (never in sentence files)                    |
| `detokenize` | joins tokenised text: "do n't , he said" becomes "don't, he said" (sacremoses)                    |
| `ftfy`       | mends mojibake, HTML entities, curly quotes, ligatures, control characters                        |
| `nfkc lower` | Unicode's NFKC; lower case. The SentencePiece model does both by itself unless trained otherwise  |

They run in this order; runs of white space become one space in any case. What was done is recorded in the manifest.
A document comes in pieces of some MB, cut between paragraphs, so that its size does not matter.
"""

import argparse
import functools
import importlib.metadata
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ftfy

from gpt1_ds.base.errors import ConfigError, near

STEPS = ("gutenberg", "unwrap", "detokenize", "ftfy", "nfkc", "lower")
DEFAULT_STEPS = ("gutenberg", "unwrap", "ftfy")
BAD_TEXT = ("mend", "drop", "refuse")
_BLANK_LINES = re.compile(r"\n\s*\n")
_NOT_PLAIN = re.compile("[^\n\t -%'-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026]")
"""All but printable ASCII without "&", dashes, ellipses and curly quotes: ftfy straightens these quotes and no more."""
_L = "\u00e0-\u00f6\u00f8-\u00ff"
_ODD = re.compile(
    f"[^\n\t -%'-~\u2013\u2014\u2018\u2019\u201c\u201d\u2026{_L}]|(?<![ -~])[{_L}]|[{_L}](?![ -~])"
)
"""Of what is not plain, also all but small accented letters between ASCII: ftfy, at 2 MB/s, leaves these alone too."""
_GUTENBERG_START = re.compile(
    r"\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG[^*]{0,300}\*\*\*|\*END\* ?THE SMALL PRINT!.{0,100}\*END\*.*"
)
_GUTENBERG_END = re.compile(
    r"\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG|^\s*End of (?:[Tt]h(?:e|is) )?Project Gutenberg",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Cleaning:
    """What becomes of the text of each corpus; `bad_text` says what becomes of bytes that are not UTF-8 text."""

    steps: dict[str, tuple[str, ...]]
    bad_text: str = "mend"

    def record(self) -> dict[str, Any]:
        """What the manifest tells of it, the libraries' versions included."""
        used = {step for steps in self.steps.values() for step in steps}
        libraries = {"ftfy": "ftfy", "detokenize": "sacremoses"}
        versions = {
            name: importlib.metadata.version(name)
            for step, name in libraries.items()
            if step in used
        }
        if "nfkc" in used:
            versions["unicode"] = unicodedata.unidata_version
        return {
            "steps": {k: list(v) for k, v in self.steps.items()},
            "bad_text": self.bad_text,
            "versions": versions,
        }


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clean",
        action="append",
        default=[],
        metavar="[NAME=]STEP,STEP",
        help=f"steps of cleaning, of all corpora or of one, out of {' '.join(STEPS)}, or none; detokenize is for"
        f" tokenised text such as 1B Word's; repeatable (default: {','.join(DEFAULT_STEPS)})",
    )


def parse_steps(values: list[str], corpora: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The steps of each corpus, in the order they run, from `--clean`; ConfigError for an unknown step or corpus."""
    steps = dict.fromkeys(corpora, DEFAULT_STEPS)
    for value in sorted(
        values, key=lambda value: "=" in value
    ):  # what is said of one corpus outdoes what is of all
        name, equals, listed = value.rpartition("=")
        chosen = set() if listed == "none" else set(listed.split(","))
        if unknown := sorted(chosen - set(STEPS)):
            raise ConfigError(
                f"--clean {value}: no step '{unknown[0]}'; {near(unknown[0], (*STEPS, 'none'))}"
            )
        if equals and name not in steps:
            raise ConfigError(f"--clean {value}: no --corpus {name}=PATH goes with it")
        for corpus in [name] if equals else list(steps):
            steps[corpus] = tuple(step for step in STEPS if step in chosen)
    if any("detokenize" in chosen for chosen in steps.values()):
        _detokenizer()
    return steps


class Cleaner:
    """Cleans the documents of one file, piece by piece; `wrapped` says whether its lines may be hard-wrapped."""

    def __init__(self, steps: Iterable[str], wrapped: bool):
        chosen = set(steps)
        self._unwrap = wrapped and "unwrap" in chosen
        self._gutenberg = wrapped and "gutenberg" in chosen
        functions = {"detokenize": _detokenize, "ftfy": _mend, "nfkc": _nfkc, "lower": str.lower}
        self._functions = [function for step, function in functions.items() if step in chosen]
        self._only_ftfy = self._functions == [_mend]
        self._ended = False

    def __call__(self, text: str, first: bool) -> str:
        """The clean text of a document's next piece: one paragraph or sentence a line, perhaps none."""
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self._gutenberg:
            text = self._without_frame(text, first)
        if self._only_ftfy:  # the usual case; most pieces are plain but for a few paragraphs
            text = _straight(text)
            parts = _BLANK_LINES.split(text) if self._unwrap else text.split("\n")
            if _NOT_PLAIN.search(text):
                parts = [
                    ftfy.fix_text(p) if _NOT_PLAIN.search(p) and _ODD.search(p) else p
                    for p in parts
                ]
        else:
            parts = _BLANK_LINES.split(text) if self._unwrap else text.split("\n")
            for function in self._functions:
                parts = [function(part) for part in parts]
        return "\n".join([line for line in [" ".join(part.split()) for part in parts] if line])

    def _without_frame(self, text: str, first: bool) -> str:
        if first:
            self._ended = False
            if "GUTENBERG" in text or "SMALL PRINT" in text:
                text = text[match.end() :] if (match := _GUTENBERG_START.search(text)) else text
        if self._ended:
            return ""
        if "Gutenberg" in text or "GUTENBERG" in text:
            if match := _GUTENBERG_END.search(text):
                self._ended, text = True, text[: match.start()]
        return text


def _straight(text: str) -> str:
    if text.isascii():
        return text
    return (
        text.replace("\u2018", "'")
        .replace("\u2019", "'")
        .replace("\u201c", '"')
        .replace("\u201d", '"')
    )


def _mend(text: str) -> str:
    # ftfy reads about 2 MB/s, SentencePiece 6 MB/s; most paragraphs of most corpora are plain.
    return ftfy.fix_text(text) if _NOT_PLAIN.search(text) else _straight(text)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _detokenize(text: str) -> str:
    # Penn Treebank's quotes and negations, which BooksCorpus has, are not Moses'.
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
