"""Fetches public corpora and labelled sets.

    python -m data_prep.download lm1b glue race --out data

They come from their publishers, in the layout that the readers take. Then give
`--corpus lm1b=data/1-billion-word-..`, `task.data=data/SST-2`, `task.data=data/RACE`, ..

A broken download is resumed, at once and on the next run, if the published file is still the same.
Hashes are checked; where none is known, the length and the form are, and a warning says so. No
archive member leaves its folder. What is complete is not fetched again. BooksCorpus and Story Cloze
must be requested from their authors: for these names, the command prints where.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from data_prep.published_sets import ON_REQUEST, SETS, File
from gpt1_ds.base.errors import ConfigError, DataError, command, near
from gpt1_ds.base.files import file_sha256, lock_file, write_atomically
from gpt1_ds.base.options import Parser, path
from gpt1_ds.base.progress import Progress
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.base.urls import below, hide_secrets, is_local_fault, is_web_page

ATTEMPTS = 6
STALL_SECONDS = 60.0
URL_SCHEMES = ("http", "https", "ftp", "file")
_UNPACK_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def main(argv: list[str]) -> None:
    keep_going_without_output()
    parser = Parser(description=__doc__)
    parser.add_argument(
        "sets", nargs="+", metavar="SET", help=f"{', '.join(SETS)}; or {', '.join(ON_REQUEST)}"
    )
    option = parser.add_argument_group("options").add_argument
    option("--out", type=path, required=True, metavar="DIR", help="folder to put the sets into")
    option(
        "--url",
        metavar="URL",
        help="a mirror: take URL/FILE (default: the publisher's file)",
    )
    args = parser.parse_args(argv)
    for name in args.sets:
        if name not in SETS | ON_REQUEST:
            raise ConfigError(f"{name}: no such set; {near(name, [*SETS, *ON_REQUEST])}")
    if args.url is not None:
        _check_url(args.url)
    for name in args.sets:
        if name in ON_REQUEST:
            print(ON_REQUEST[name])
        for file in SETS.get(name, []):
            if args.url is not None:
                file = file._replace(url=below(args.url, file.name))
            obtain(file, args.out)
            print(f"{args.out / file.gives}")


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in URL_SCHEMES and (parts.hostname or parts.scheme == "file")
        good = good and not parts.port == 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"--url {hide_secrets(url)}: no address of {', '.join(URL_SCHEMES)}; give"
            " https://HOST/FOLDER"
        )


def obtain(file: File, out: Path) -> None:
    """Have `out/file.gives`, complete or not at all.

    DataError for a bad address, hash or archive, if the disk cannot be written, or if another
    download is writing to `out`.
    """
    target = out / file.gives
    try:
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(out / ".download.lock", "start one download at a time")
        if lock is None:
            raise DataError(f"--out {out}: another download is writing there; wait for it")
        with lock:
            _obtain(file, out, target)
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        raise DataError(
            f"--out {out}:{where} {error.strerror or error}; free space there, or name another"
            " folder that can be written"
        ) from error


def _obtain(file: File, out: Path, target: Path) -> None:
    part, unpacked = out / f".{file.name}.part", out / f".{file.name}.unpacked"
    fetch(file, part)
    if not file_sha256(part).startswith(file.sha256):
        part.unlink()
        raise DataError(
            f"{file.shown}: sha256 is not that of the published file; try again, or another --url"
        )
    if not file.sha256:
        print(
            f"warning: {file.shown}: its published hash is not known; only length and form were"
            " checked",
            file=sys.stderr,
        )
    if not file.is_archive:
        os.replace(part, target)
        return
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(part, unpacked, file.url)
    if not (unpacked / file.gives).is_dir():
        raise DataError(f"{file.shown}: holds no folder {file.gives}; try another --url")
    os.replace(unpacked / file.gives, target)
    shutil.rmtree(unpacked)
    part.unlink()


class NotTheFileError(Exception):
    """Something else came in place of the file: a login page, an error message."""


def fetch(file: File, part: Path) -> None:
    """Put all bytes of `file` into `part`, which may hold the first ones from an earlier attempt.

    DataError after several attempts without progress. OSError if the local disk fails.
    """
    attempt = 0
    while attempt < ATTEMPTS:
        have = _size(part)
        try:
            time.sleep(min(STALL_SECONDS, 2**attempt - 1))
            _continue(file, part)
            _check_form(file, part)
            _version_path(part).unlink(missing_ok=True)
            return
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            if error.code == 416:  # Nothing is left, or the published file has changed.
                if error.headers.get("Content-Range") == f"bytes */{have}" and file.sha256:
                    return
                _forget(part)
            elif error.code < 500 and error.code != 429:
                break
        except (NotTheFileError, http.client.InvalidURL) as error:
            _forget(part)
            reason = str(error)
            break
        except (OSError, ValueError, http.client.HTTPException) as error:
            if is_local_fault(error, part):
                raise
            reason = str(error) or type(error).__name__
        attempt = 1 if _size(part) > have else attempt + 1
    raise DataError(
        f"{file.shown}: cannot be fetched ({hide_secrets(reason)}); try again later, or give a"
        " mirror with --url"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _version_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_path(part).unlink(missing_ok=True)


class Version(NamedTuple):
    """What a server says that tells one version of a file from another; empty if it does not."""

    etag: str
    modified: str
    length: str
    """Of the whole file."""

    @classmethod
    def of(cls, response: http.client.HTTPResponse) -> "Version":
        headers = response.headers
        _, _, total = (headers.get("Content-Range") or "").rpartition("/")
        length = total or headers.get("Content-Length") or ""
        return cls(headers.get("ETag") or "", headers.get("Last-Modified") or "", length)

    @classmethod
    def read(cls, path: Path) -> "Version":
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(*map(str, json.loads(path.read_text(encoding="utf-8"))))
        return cls("", "", "")

    @property
    def validator(self) -> str:
        """The value of If-Range. The standard excludes weak tags, which begin with W/."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def contradicts(self, other: "Version") -> bool:
        pairs = zip(self, other, strict=True)
        return any(mine and theirs and mine != theirs for mine, theirs in pairs)


def _continue(file: File, part: Path) -> None:
    """Fetch what `part` lacks; ValueError if less arrives than was announced.

    What `part` has is kept only if it is of the same version, or if a hash will tell.
    """
    before, have = Version.read(_version_path(part)), _size(part)
    if not (before.validator or file.sha256):
        have = 0
    request = _request(file.url, have, before.validator)
    with contextlib.closing(urllib.request.urlopen(request, timeout=STALL_SECONDS)) as response:
        goes_on = (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        now = Version.of(response)
        if goes_on and now.contradicts(before):
            _forget(part)
            raise ValueError("the published file has changed")
        if response.headers.get_content_type() == "text/html":
            raise NotTheFileError("a web page came in its place: does this network want a login?")
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        if not (length or file.sha256 or file.is_archive or getattr(response, "chunked", False)):
            raise NotTheFileError("the server tells neither its length nor is its hash known")
        total = have + int(length) if length else None
        if not goes_on:
            part.unlink(missing_ok=True)
            write_atomically(_version_path(part), json.dumps(now))
        _receive(response, part, have, total)
    if total not in (None, part.stat().st_size):
        raise ValueError(f"{part.stat().st_size} of {total} bytes arrived")


def _receive(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    with open(part, "ab") as received, Progress(part.name[1:-5], total, "byte", have) as bar:
        while block := response.read1(1 << 18):
            received.write(block)
            bar.update(len(block))


def _request(url: str, have: int, validator: str) -> urllib.request.Request:
    """A request for what follows the first `have` bytes, if `validator` still holds."""
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", validator)
    if login:  # which urllib does not understand; another host, after a redirect, must not get it
        token = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _check_form(file: File, part: Path) -> None:
    """NotTheFileError for a web page, and, where no hash will tell, for what is no text."""
    if is_web_page(part):
        raise NotTheFileError("a web page came in its place: does this network want a login?")
    if not (file.sha256 or file.is_archive):
        with open(part, "rb") as received:
            first = received.read(1 << 16)
        if not first.strip() or b"\0" in first or first.lstrip().startswith((b"{", b"<")):
            raise NotTheFileError("what came is empty, or is no text of the set")


def unpack(archive: Path, folder: Path, url: str) -> None:
    """Write the plain files of a zip or tar below `folder`.

    Links and devices are left out. DataError for a path that leads out of the folder.
    """
    is_zip = urllib.parse.urlsplit(url).path.endswith(".zip")
    members = _zip_members if is_zip else _tar_members
    url = hide_secrets(url)
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
            with content, open(folder / path, "wb") as unpacked:
                shutil.copyfileobj(content, unpacked, 1 << 20)
    except _UNPACK_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, and not the archive's
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
