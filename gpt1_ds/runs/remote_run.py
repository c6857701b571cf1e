"""A run or a checkpoint behind a URL: downloaded to a cache, each file checked by its hash.

A web server cannot list a folder. So the file `latest` names the checkpoint of a run, and its
MANIFEST.json names the files.
"""

import contextlib
import functools
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import file_sha256, lock_file
from gpt1_ds.base.urls import hide_secrets
from gpt1_ds.checkpoints.folder import LATEST, MANIFEST, STEP_FOLDER, read_checkpoint_manifest
from gpt1_ds.checkpoints.state import FileSeal
from gpt1_ds.data.openai_bpe import OPENAI_FILES, PIPELINE_FILE
from gpt1_ds.data.remote import REQUEST_SECONDS, MissingFile, Options, ShardCache
from gpt1_ds.data.tokenizer import MODEL_FILE
from gpt1_ds.runs.fine_tuned import CALIBRATION

ATTEMPTS = 3
IMPORTED = "step-00000000"
"""The only checkpoint of an imported folder, which has no file `latest`."""
OPTIONS = Options("the address", "cache")


@functools.cache  # all readers of a process see one checkpoint, though the run goes on
def local_run(run: str | Path, average: int | None = None) -> str | Path:
    """`run`, or if it is an address a copy of its checkpoint, in the folder of temporary files.

    The processes of a machine share the copy. ConfigError for an address if several checkpoints
    are to be averaged.
    """
    if not isinstance(run, str) or "://" not in run:
        return run
    if average:
        raise ConfigError(
            f"--average {average}: {hide_secrets(run)} is an address, of which one checkpoint is "
            "fetched; give a run folder"
        )
    return fetch_checkpoint(run, None)


def fetch_checkpoint(url: str, cache: str | None) -> Path:
    """The folder of a copy of the checkpoint at `url`: a run, its best/, or one of its checkpoints.

    Of a fine-tuned run it is the best one. Files that are there already are not downloaded again.
    """
    url, step = _run_and_step(url.rstrip("/"))
    folder = cache or f"{tempfile.gettempdir()}/gpt1-runs-{os.getuid()}"
    files = ShardCache(url, folder, 0, attempts=ATTEMPTS, options=OPTIONS)
    files.root.mkdir(parents=True, exist_ok=True)
    lock = lock_file(files.root / "lock", "processes may download a file twice", REQUEST_SECONDS)
    with lock or contextlib.nullcontext():
        return _fetch(files, url, step)


def _fetch(files: ShardCache, url: str, step: str) -> Path:
    home = "" if step else _home(files, url)
    step = step or _latest(files, home, url)
    _fetch_tokenizer(files, home)
    if home:
        with contextlib.suppress(MissingFile):
            files.copy(CALIBRATION)
    _fetch_files(files, f"{home}checkpoints/{step}", url)
    return files.root / home / "checkpoints" / step


def _run_and_step(url: str) -> tuple[str, str]:
    """The address of the run, and the name of the checkpoint if `url` is one."""
    parts = urlsplit(url)
    path, _, last = parts.path.rstrip("/").rpartition("/")
    if not STEP_FOLDER.fullmatch(last):
        return url, ""
    return urlunsplit(parts._replace(path=path.removesuffix("/checkpoints"))), last


def _home(files: ShardCache, url: str) -> str:
    """`best/` for a fine-tuned run, else nothing; DataError if no checkpoint is there."""
    for home in ("best/", ""):
        with contextlib.suppress(MissingFile):
            files.copy(f"{home}checkpoints/{LATEST}")
            return home
    with contextlib.suppress(MissingFile):
        files.copy(f"checkpoints/{IMPORTED}/{MANIFEST}")
        return ""
    raise DataError(
        f"{hide_secrets(url)}: no checkpoints/{LATEST} there; give the address of a run folder or "
        "of one of its checkpoints/step-*"
    )


def _latest(files: ShardCache, home: str, url: str) -> str:
    path = files.root / home / "checkpoints" / LATEST
    if not path.exists():
        return IMPORTED
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    if not STEP_FOLDER.fullmatch(name):
        raise DataError(
            f"{hide_secrets(url)}: checkpoints/{LATEST} names no checkpoint; restore it"
        )
    return name


def _fetch_tokenizer(files: ShardCache, home: str) -> None:
    with contextlib.suppress(MissingFile):
        files.copy(f"{home}tokenizer/{MODEL_FILE}")
        return
    for name in OPENAI_FILES:
        files.copy(f"{home}tokenizer/{name}")
    with contextlib.suppress(MissingFile):
        files.copy(f"{home}tokenizer/{PIPELINE_FILE}")


def _fetch_files(files: ShardCache, name: str, url: str) -> None:
    """Every file of the checkpoint `name`, as its manifest has it."""
    files.copy(f"{name}/{MANIFEST}")
    folder = files.root / name
    shown = f"{hide_secrets(url)}: {name}"
    try:
        seals = read_checkpoint_manifest(folder).files
    except DataError as error:
        raise DataError(f"{shown}/{error}; restore it there") from error
    for file, seal in seals.items():
        if Path(file).name != file:
            raise DataError(f"{shown}/{MANIFEST} names a file elsewhere, {file}; restore it there")
        if not _is_whole(folder / file, seal):
            files.copy(f"{name}/{file}")
        if not _is_whole(folder / file, seal):
            raise DataError(f"{shown}/{file} differs from its sha256; restore it there")


def _is_whole(path: Path, seal: FileSeal) -> bool:
    if not path.is_file() or path.stat().st_size != seal.bytes:
        return False
    return file_sha256(path) == seal.sha256
