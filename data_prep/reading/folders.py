"""The files below a corpus folder: which of them are read, and which are passed over and why."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.reading.formats import clean_name, is_corpus_file, is_hidden

MOST_NAMES = 20
"""Names of files passed over that a record keeps."""


class PassedOver(NamedTuple):
    """A file, or a member of an archive, that is not read."""

    reason: str
    """`hidden`, `other_format`, `link` (to nothing, or in an archive), `special` (no plain file) or
    `binary` (it has the name of a text)."""
    name: str


def shown(counts: dict[str, int], names: list[str]) -> str:
    """How many files were passed over for each reason, and the first names."""
    listed = [f"{count:,} {reason}" for reason, count in counts.items()]
    more = [".."] if len(names) < sum(counts.values()) else []
    return f"passed over: {', '.join(listed)} ({', '.join(names + more)})"


def unread(name: str) -> PassedOver:
    """A plain file of this name, which no reader takes."""
    return PassedOver("hidden" if is_hidden(name) else "other_format", name)


def files_below(root: Path) -> tuple[list[tuple[str, Path]], list[PassedOver]]:
    """(name below `root`, path) of each file that is read, by name; and the files that are not.

    Links to folders are followed after all real folders, and each folder is read once. So a loop
    ends, and no file has another name because of a link. OSError for a folder that cannot be read.
    """
    found: list[tuple[str, Path]] = []
    passed_over: list[PassedOver] = []
    seen: set[tuple[int, int]] = set()
    folders = [root]
    while folders:
        links: list[Path] = []
        for path, kind in _entries(folders, seen):
            name = path.relative_to(root).as_posix()
            if kind == "folder":
                links.append(path)
            elif kind != "file":
                passed_over.append(PassedOver(kind, clean_name(name)))
            elif is_corpus_file(path.name):
                found.append((name, path))
            else:
                passed_over.append(unread(clean_name(name)))
        folders = sorted(links)
    return sorted(found), sorted(passed_over)


def _entries(folders: list[Path], seen: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """What lies below real folders that are not `seen` yet: files, and links to folders."""
    waiting = folders[::-1]
    while waiting:
        folder = waiting.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    yield path, _kind(path)


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return "link"
        raise
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"
