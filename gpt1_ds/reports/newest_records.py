"""The newest records of a metrics.jsonl, from its end: the file of a long run is large.

What is read at first has a bound; later looks read what was added.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.checking import is_number

BLOCK_BYTES = 1 << 18
MOST_BLOCKS = 4
"""How much of the end of the file the first look reads, in blocks."""
SCORED = re.compile(rb'"(valid|task)"')


class Records:
    """The newest records of the metrics.jsonl at `path`, and the place up to which it is read."""

    def __init__(self, path: Path, inode: int):
        self.path = path
        self.inode = inode
        self.offset = 0
        self.train: Json = {}
        self.valid: dict[str, Json] = {}
        self.task: Json = {}
        self.pace = 0.0
        """The longest time between two records that were read one after the other."""
        self.damaged = 0
        """How many lines that were read are no records."""

    def goes_on(self, now: os.stat_result) -> bool:
        """Whether the file has only grown. A start that resumes may have written it anew."""
        return now.st_ino == self.inode and now.st_size >= self.offset

    def update(self) -> None:
        """Read what was added; if that is much, only its end."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size - self.offset > BLOCK_BYTES:
                self._read_end(file, size)
                return
            file.seek(self.offset)
            content = file.read(BLOCK_BYTES)
        end = content.rfind(b"\n") + 1  # the rest is half a line
        self.offset += end
        self._take(content[:end])

    def _read_end(self, file: BinaryIO, size: int) -> None:
        """Read blocks from the end, until there is a record of training and one of a score."""
        train, valid, task = self.train, self.valid, self.task
        self.train, self.valid, self.task = {}, {}, {}
        for block in range(1, MOST_BLOCKS + 1):
            begin = max(self.offset, size - block * BLOCK_BYTES)
            file.seek(begin)
            content = file.read(BLOCK_BYTES)
            # The first line of a block is cut off, unless a line begins there.
            head = 0 if begin == self.offset else content.find(b"\n") + 1
            end = content.rfind(b"\n") + 1
            self._take(content[head:end], is_older=block > 1)
            if block == 1:
                read_to = begin + end
            if begin == self.offset or (self.train and (self.valid or self.task)):
                break
        self.offset = read_to
        self.train, self.valid, self.task = (
            self.train or train,
            valid | self.valid,
            self.task or task,
        )

    def _take(self, content: bytes, is_older: bool = False) -> None:
        seconds: float | None = None
        lines = content.split(b"\n")
        for line in reversed(lines) if is_older else lines:
            if not line.strip() or is_older and self.train and not SCORED.search(line):
                continue  # parsing is what takes time
            record = _parsed(line)
            if record is None:
                self.damaged += not is_older
                continue
            self._keep(record, is_older)
            now = number(record.get("elapsed_seconds"))
            if now is not None and seconds is not None:
                self.pace = max(self.pace, abs(now - seconds))
            seconds = now

    def _keep(self, record: Json, is_older: bool) -> None:
        split, corpus = record["split"], str(record.get("corpus", ""))
        if split == "train" and not (is_older and self.train):
            self.train = record
        elif split == "task" and not (is_older and self.task):
            self.task = record
        elif split == "valid" and not (is_older and corpus in self.valid):
            self.valid[corpus] = record

    def score(self) -> str:
        """The last score of the task with its name, or the last loss on each corpus."""
        for name, value in self.task.items():
            if name not in ("step", "split", "elapsed_seconds") and is_number(value):
                return f"{name} {value:.4f}"
        losses = {}
        for corpus, record in self.valid.items():
            if is_number(record.get("loss")):
                losses[corpus] = f"{record['loss']:.4f}"
        if len(losses) < 2:
            return "".join(losses.values())
        return ", ".join(f"{corpus} {loss}" for corpus, loss in losses.items())


def _parsed(line: bytes) -> Json | None:
    try:
        record = json.loads(line.strip(b"\0").decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("split"), str)
    return record if is_record else None


def number(*values: Any) -> float | None:
    """The first of `values` that is a finite number."""
    return next((float(value) for value in values if is_number(value)), None)
