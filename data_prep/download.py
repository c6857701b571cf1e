"""Fetches public corpora and labelled sets from their publishers, into the layout that the readers
take.

    python -m data_prep.download lm1b glue race --out data/

Then give `--corpus lm1b=data/1-billion-word-..`, `task.data=data/SST-2`, `task.data=data/RACE`, ..

A broken download is resumed, at once and on the next run. Hashes are checked, and no archive member
leaves its folder. What is complete is not fetched again. BooksCorpus and Story Cloze must be
requested from their authors: for these names, the command prints where.
"""

import contextlib
import fcntl
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.base.files import file_sha256
from gpt1_ds.base.options import Parser, path, summary
from gpt1_ds.base.streams import keep_going_without_output

ATTEMPTS = 6
STALL_SECONDS = 60.0
_UNPACK_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
_MRPC = "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase"
_STATMT = "https://www.statmt.org/lm-benchmark"
_LM1B = "1-billion-word-language-modeling-benchmark-r13output"
_SNLI = "https://nlp.stanford.edu/projects/snli/snli_1.0.zip"
_SCITAIL = "http://data.allenai.org.s3.amazonaws.com/downloads/SciTailV1.1.zip"
_RACE = "http://www.cs.cmu.edu/~glai1/data/race/RACE.tar.gz"
_DPR = "http://www.hlt.utdallas.edu/~vince/data/emnlp12"
_WNUT17 = "https://raw.githubusercontent.com/leondz/emerging_entities_17/master"


class File(NamedTuple):
    """One published file."""

    url: str
    gives: str
    """Path below --out: the folder that an archive holds, or the file itself."""
    sha256: str = ""
    """The first digits of the published file's hash; empty if it is not known."""


SETS = {
    "lm1b": [File(f"{_STATMT}/{_LM1B}.tar.gz", _LM1B, "01ba60381110baf7f189dfd2")],
    "cola": [File(_GLUE + "CoLA.zip", "CoLA", "f212fcd832b8f7b435fb991f")],
    "sst2": [File(_GLUE + "SST-2.zip", "SST-2", "d67e16fb55739c1b32cdce98")],
    "rte": [File(_GLUE + "RTE.zip", "RTE", "6bf86de103ecd335f3441bd4")],
    "qnli": [File(_GLUE + "QNLIv2.zip", "QNLI", "e634e78627a29adaecd4f955")],
    "mnli": [
        File(_GLUE + "MNLI.zip", "MNLI", "e7c1d896d26ed6caf7001106"),
        File(_GLUE + "AX.tsv", "MNLI/diagnostic.tsv", "0e13510b1bb14436ff7e2ee8"),
    ],
    "wnli": [File(_GLUE + "WNLI.zip", "WNLI", "ae0e8e4d16f4d46d4a0a566e")],
    "stsb": [File(_GLUE + "STS-B.zip", "STS-B", "e60a6393de5a8b5b9bac5020")],
    "qqp": [File(_GLUE + "QQP-clean.zip", "QQP", "40e7c862c04eb26ee04b67fd")],
    "mrpc": [
        File(f"{_MRPC}_train.txt", "MRPC/msr_paraphrase_train.txt", "60a9b09084528f0673eedee2"),
        File(f"{_MRPC}_test.txt", "MRPC/msr_paraphrase_test.txt", "a04e271090879aaba6423d65"),
    ],
    "snli": [File(_SNLI, "snli_1.0", "afb3d70a5af5d8de0d9d81e2")],
    "scitail": [File(_SCITAIL, "SciTailV1.1", "3fccd37350a94ca280b75998")],
    "race": [File(_RACE, "RACE", "b2769cc9fdc5c546a693300e")],
    "dpr": [
        File(f"{_DPR}/train.c.txt", "DPR/train.c.txt"),
        File(f"{_DPR}/test.c.txt", "DPR/test.c.txt"),
    ],
    "wnut17": [
        File(f"{_WNUT17}/wnut17train.conll", "WNUT17/wnut17train.conll"),
        File(f"{_WNUT17}/emerging.dev.conll", "WNUT17/emerging.dev.conll"),
        File(f"{_WNUT17}/emerging.test.annotated", "WNUT17/emerging.test.annotated"),
    ],
}
_GLUE_SETS = ("cola", "sst2", "rte", "qnli", "mnli", "wnli", "stsb", "qqp", "mrpc")
SETS["glue"] = list(chain.from_iterable(SETS[name] for name in _GLUE_SETS))
ON_REQUEST = {
    "books": "BooksCorpus is no longer given out by its authors (https://yknzhu.wixsite.com/mbweb)."
    " Give a copy that you have (books_large_p1.txt and _p2.txt), or a folder of books, to"
    " `build_shards --corpus books=PATH`.",
    "storycloze": "Story Cloze is given out on request: fill in the form at"
    " https://cs.rochester.edu/nlp/rocstories/, put the csv files into one folder and name it in"
    " task.data.",
}


def main(argv: list[str]) -> None:
    keep_going_without_output()
    parser = Parser(prog="python -m data_prep.download", description=summary(__doc__))
    parser.add_argument(
        "sets", nargs="+", metavar="SET", help=f"{', '.join(SETS)}; or {', '.join(ON_REQUEST)}"
    )
    parser.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder to put the sets into"
    )
    parser.add_argument(
        "--url", metavar="URL", help="a mirror: take URL/FILE instead of the publisher's file"
    )
    args = parser.parse_args(argv)
    for name in args.sets:
        if name not in SETS | ON_REQUEST:
            raise ConfigError(f"{name}: no such set; {near(name, [*SETS, *ON_REQUEST])}")
    for name in args.sets:
        if name in ON_REQUEST:
            print(ON_REQUEST[name])
        for file in SETS.get(name, []):
            if args.url:
                file = file._replace(url=f"{args.url.rstrip('/')}/{file.url.rpartition('/')[2]}")
            obtain(file, args.out)
            print(f"{args.out / file.gives}")


def obtain(file: File, out: Path) -> None:
    """Have `out/file.gives`, complete or not at all.

    DataError for a bad address, hash or archive, or if another download is writing to `out`.
    """
    target, name = out / file.gives, file.url.rpartition("/")[2]
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part, unpacked = out / f".{name}.part", out / f".{name}.unpacked"
    with open(out / ".download.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"--out {out}: another download is writing there; wait for it"
            ) from None
        fetch(file.url, part)
        if not file_sha256(part).startswith(file.sha256):
            part.unlink()
            raise DataError(
                f"{file.url}: sha256 is not that of the published file; try again, or another --url"
            )
        if not name.endswith((".zip", ".tar.gz")):
            os.replace(part, target)
            return
        shutil.rmtree(unpacked, ignore_errors=True)
        unpack(part, unpacked, file.url)
        if not (unpacked / file.gives).is_dir():
            raise DataError(f"{file.url}: holds no folder {file.gives}; try another --url")
        os.replace(unpacked / file.gives, target)
        shutil.rmtree(unpacked)
        part.unlink()


def fetch(url: str, part: Path) -> None:
    """Put all bytes of `url` into `part`, which may hold the first ones from an earlier attempt.

    DataError after several attempts without progress.
    """
    attempt = 0
    while attempt < ATTEMPTS:
        have = _size(part)
        try:
            time.sleep(min(STALL_SECONDS, 2**attempt - 1))
            _continue(url, part, have)
            return
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            if error.code == 416:  # Nothing is left, or the published file has changed.
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return
                part.unlink()
            elif error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error)
        attempt = 1 if _size(part) > have else attempt + 1
    raise DataError(
        f"{url}: cannot be fetched ({reason}); try again later, or give a mirror with --url"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, have: int) -> None:
    """Fetch what follows the first `have` bytes; ValueError if less arrives than was announced."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with contextlib.closing(urllib.request.urlopen(request, timeout=STALL_SECONDS)) as response:
        goes_on = (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=part.name[1:-5],
            disable=None,
        )
        with open(part, "ab" if goes_on else "wb") as file, bar:
            while block := response.read1(1 << 18):
                file.write(block)
                bar.update(len(block))
    if total not in (None, part.stat().st_size):
        raise ValueError(f"{part.stat().st_size} of {total} bytes arrived")


def unpack(archive: Path, folder: Path, url: str) -> None:
    """Write the plain files of a zip or tar below `folder`.

    Links and devices are left out. DataError for a path that leads out of the folder.
    """
    members = _zip_members if url.endswith(".zip") else _tar_members
    try:
        for name, content in members(archive):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DataError(
                    f"{url}: member '{path}' leads out of the folder; nothing of it is kept"
                )
            if content is None:
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with content, open(folder / path, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
    except _UNPACK_ERRORS as error:
        raise DataError(
            f"{url}: cannot be unpacked ({error}); delete {archive} and try again"
        ) from error


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, content) of each member; no content for what is not a plain file."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            yield member.filename, None if member.is_dir() else packed.open(member)


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with tarfile.open(archive, "r|gz") as packed:
        for member in packed:
            yield member.name, packed.extractfile(member) if member.isreg() else None


cli = command(main, __name__, "the same command continues where it was")
