"""Cuts Project Gutenberg's headers, licences and small print out of a text, and counts the cut.

A file may hold several books or volumes, and each has marks of its own. Only what looks like
Gutenberg's own words is cut. Text between two frames, or in front of a late mark, stays.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto

_HEADER_CHARACTERS = 30_000
"""A header is shorter: the longest have the small print of the 1990s."""
_TAIL_CHARACTERS = 40_000
"""So is what stands behind a book; today's licence has 19,000."""
_PARAGRAPH_CHARACTERS = 2000
"""A longer paragraph is none of Gutenberg's."""
_TITLE = (
    r"Project Gutenberg(?:-tm|\(tm\)|\u2122)?"
    r"(?:(?:['\u2019]s)? (?i:e-?texts?|e-?books?|edition)(?= of\b| [A-Z\d\"\u201c_]|[^\w\n]*$)"
    r"|['\u2019]s (?=[A-Z\d\"\u201c_\u00c0-\u00de]))"
)
"""A book's name as Gutenberg writes it. A sentence about Gutenberg has other words behind it."""
_MARK = re.compile(
    r"(?P<start>^[ \t]*\*{3,} ?START OF TH(?:E|IS) PROJECT GUTENBERG[^*]{0,300}\*\*\*)"
    r"|(?P<small_print>\*END\* ?THE SMALL PRINT!.{0,100}\*END\*.*)"
    r"|(?P<end>^[ \t]*(?:\*{3,} ?END OF TH(?:E|IS) PROJECT GUTENBERG.*"
    rf"|End of (?:[Tt]h(?:e|is) )?{_TITLE}.*))"
    r"|(?P<licence>^\*\*\* ?END: FULL LICENSE.*|hear about new e[Bb]ooks\.)",
    re.MULTILINE,
)
_BEGINS_HEADER = re.compile(rf"[^\w\n]{{0,20}}(?:The |This is the )?{_TITLE}", re.MULTILINE)
_BEGINS_SMALL_PRINT = re.compile(r"[ \t]*\*+START\*+ ?THE SMALL PRINT")
_GUTENBERGS_WORDS = re.compile(
    r"(?i:gutenberg|\be-?texts?\b|\be-?books?\b|licen[sc]e|donat|copyright|public domain|trademark"
    r"|small print|warrant|disclaim|updated editions|this file should be named|https?:|www\.|ftp\b)"
)
_METADATA = re.compile(
    r"[^\w\n]*(?:(?:Title|Author|Editor|Translator|Illustrator|Release [Dd]ate|Posting [Dd]ate"
    r"|Language|Last [Uu]pdated|Most recently updated|Character set|Credits|Original publication)"
    r"[^:\n]*:|Produced by)"
)
_BLANK_LINES = re.compile(r"\n\s*\n")
_NOT_BLANK = re.compile(r"\S")


class _Place(Enum):
    TEXT = auto()
    BEHIND_END = auto()
    """Behind the mark of a book's end; the next paragraph decides what follows."""
    TAIL = auto()
    """In the words that Gutenberg puts between the end of a book and the next one."""


class FrameCutter:
    """Cuts the frames out of one document after the other, piece by piece."""

    def __init__(self) -> None:
        self.cut = 0
        """Characters cut so far, of all documents."""
        self._begin()
        self._has_text = True  # A piece that begins no document has something in front of it.

    def _begin(self) -> None:
        self._place = _Place.TEXT
        self._held = ""
        """The end of the last piece, which may be a header: its mark would stand in the next."""
        self._has_text = False
        self._tail = 0
        """Characters since the mark of the end."""

    def __call__(self, text: str, first: bool, last: bool) -> str:
        """What stays of a document's next piece, and of what was held back before."""
        if first:
            self._begin()
        text, self._held = self._held + text, ""
        names = ("Gutenberg", "GUTENBERG", "SMALL PRINT")
        if self._place is _Place.TEXT and not any(name in text for name in names):
            self._has_text = self._has_text or bool(text.strip())
            return text
        kept: list[str] = []
        position = 0
        step = {
            _Place.TEXT: self._in_text,
            _Place.BEHIND_END: self._behind_end,
            _Place.TAIL: self._in_tail,
        }
        while position < len(text):
            position = step[self._place](text, position, kept)
        if kept and self._place is _Place.TEXT and not last:
            self._held = kept[-1][_possible_header(kept[-1]) :]
            kept[-1] = kept[-1].removesuffix(self._held)
        found = "".join(kept)
        self.cut += len(text) - len(found) - len(self._held)
        return found

    def _in_text(self, text: str, position: int, kept: list[str]) -> int:
        for mark in _MARK.finditer(text, position):
            if mark.lastgroup == "licence":
                continue
            is_end = mark.lastgroup == "end"
            stop = mark.start() if is_end else self._header(text, position, mark)
            self._keep(text[position:stop], kept)
            return self._end(text, mark) if is_end else mark.end()
        self._keep(text[position:], kept)
        return len(text)

    def _keep(self, text: str, kept: list[str]) -> None:
        kept.append(text)
        self._has_text = self._has_text or bool(text.strip())

    def _end(self, text: str, mark: re.Match[str]) -> int:
        """Behind the paragraph of the mark of an end, or in front of another mark there."""
        self._place, self._tail = _Place.BEHIND_END, 0
        end = _paragraph_end(text, mark.end())
        if end - mark.end() > _PARAGRAPH_CHARACTERS:
            return mark.end()
        following = _MARK.search(text, mark.end(), end)
        return following.start() if following else end

    def _behind_end(self, text: str, position: int, kept: list[str]) -> int:
        begin = _NOT_BLANK.search(text, position)
        if begin is None:
            return len(text)
        end = _paragraph_end(text, begin.start())
        is_theirs = _is_theirs(text, begin.start(), end)
        self._place = _Place.TAIL if is_theirs else _Place.TEXT
        return text.rfind("\n", position, begin.start()) + 1 or begin.start()

    def _in_tail(self, text: str, position: int, kept: list[str]) -> int:
        room = position + _TAIL_CHARACTERS - self._tail
        mark = _MARK.search(text, position, room)
        if mark:
            if mark.lastgroup in ("end", "licence"):
                return self._end(text, mark)
            self._place = _Place.TEXT
            return mark.end()
        if len(text) > room:
            self._place = _Place.TEXT
            return room
        self._tail += len(text) - position
        return len(text)

    def _header(self, text: str, position: int, mark: re.Match[str]) -> int:
        """Where the header begins that ends with `mark`; `position` is the first that may be."""
        window = max(position, mark.start() - _HEADER_CHARACTERS)
        begins = list(_paragraphs(text, window, mark.start()))
        if not begins:
            return mark.start()
        ends = [*begins[1:], mark.start()]
        first = len(begins)  # of the header's paragraphs
        if not _BLANK_LINES.search(text, begins[-1], mark.start()):
            # Lines stand right in front of the mark. They may be all that the text begins with.
            is_only = first == 1 and not self._has_text
            is_short = mark.start() - begins[-1] <= _PARAGRAPH_CHARACTERS
            if not (is_short and (is_only or _is_theirs(text, begins[-1], mark.start()))):
                return mark.start()
            first -= 1
        while first > 0 and _METADATA.match(text, begins[first - 1]):
            first -= 1
        theirs = [_is_theirs(text, *place) for place in zip(begins, ends, strict=True)]
        for number in range(first - 1, -1, -1):
            if mark.lastgroup == "small_print" and _BEGINS_SMALL_PRINT.match(text, begins[number]):
                first = number
            elif _BEGINS_HEADER.match(text, begins[number]):
                between = theirs[number + 1 : first]
                if 2 * sum(between) <= len(between) and between:
                    break
                first = number
        return begins[first] if first < len(begins) else mark.start()


def _is_theirs(text: str, begin: int, end: int) -> bool:
    """Whether the paragraph text[begin:end] has words of Gutenberg's own texts."""
    if end - begin > _PARAGRAPH_CHARACTERS:
        return False
    found = _GUTENBERGS_WORDS.search(text, begin, end) or _METADATA.match(text, begin, end)
    return found is not None


def _paragraph_end(text: str, begin: int) -> int:
    """Where the paragraph ends, or a place beyond `_PARAGRAPH_CHARACTERS`."""
    beyond = min(len(text), begin + _PARAGRAPH_CHARACTERS + 1)
    blank = _BLANK_LINES.search(text, begin, beyond)
    return blank.start() if blank else beyond


def _paragraphs(text: str, begin: int, end: int) -> Iterator[int]:
    """Where each paragraph of text[begin:end] begins."""
    first = _NOT_BLANK.search(text, begin, end)
    if first is None:
        return
    yield text.rfind("\n", begin, first.start()) + 1 or begin
    for blank in _BLANK_LINES.finditer(text, first.start(), end):
        if blank.end() < end:
            yield blank.end()


def _possible_header(text: str) -> int:
    """Where a header may begin whose mark is not in `text` yet; else the text's length."""
    window = max(0, len(text) - _HEADER_CHARACTERS)
    for begin in _paragraphs(text, window, len(text)):
        if _BEGINS_HEADER.match(text, begin) or _BEGINS_SMALL_PRINT.match(text, begin):
            return begin
    return len(text)
