"""What an earlier build left in the output folder: all, a part, or something else."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from data_prep.reading.corpus import Source
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256, write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import MANIFEST, SPLITS, Manifest, read_manifest

WORK = ".work"
PLAN = ".plan.json"
"""What the directory is built from, with the sources' times. It stays there, so that a rerun needs
not read them again. At the end, the manifest's hash is added."""
LOCK = ".lock"
WORK_FORMAT = 3
"""Of the files in `WORK`. An unfinished build of another format is built anew."""
_OTHER_FOLDER = "choose another folder or delete this one"


def is_finished(out: Path, settings: Mapping[str, object], sources: list[Source]) -> bool:
    """Whether the directory holds just what these settings and sources give.

    DataError if it holds something else. An unfinished build of the same options is left to be
    continued. If its sources have changed, it is removed.
    """
    listed = [[s.corpus, s.name, s.validation, s.bytes, s.mtime_ns] for s in sources]
    plan: Json = {"settings": settings, "sources": listed, "work_format": WORK_FORMAT}
    before = _read_plan(out)
    finished = (out / MANIFEST).exists()
    if finished:
        manifest = read_manifest(out)
        if before is None or before.get("sources") != listed:
            _refuse_other_sources(out, sources, manifest)
        _refuse_other_settings(out, settings, manifest.preparation.get("settings", {}))
        shutil.rmtree(out / WORK, ignore_errors=True)  # left by a kill right after the manifest
    elif before is None:
        if any(path.name != LOCK for path in out.iterdir()):
            raise DataError(
                f"--out {out}: is neither empty nor a shard directory; choose another folder"
            )
    elif before.get("sources") != listed or before.get("work_format") != WORK_FORMAT:
        print(
            f"{out}: the sources, or this program, have changed since the unfinished build there;"
            " starting anew"
        )
        for folder in (WORK, *SPLITS):
            shutil.rmtree(out / folder, ignore_errors=True)
    else:
        _refuse_other_settings(out, settings, before["settings"])
    if finished and before and "manifest" in before:
        plan["manifest"] = before["manifest"]
    write_atomically(out / PLAN, json.dumps(plan))
    return finished


def note_manifest(out: Path, text: str) -> None:
    """Note the hash of a manifest that is about to be written, so that any change is found."""
    plan = _read_plan(out) or {}
    plan["manifest"] = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(out / PLAN, json.dumps(plan))


def manifest_sha256(out: Path) -> str | None:
    """The noted hash; None if there is none, as in a copy without hidden files."""
    return (_read_plan(out) or {}).get("manifest")


def _read_plan(out: Path) -> Json | None:
    """The plan of the earlier build; None if there is none, empty if it is damaged."""
    try:
        plan = json.loads((out / PLAN).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}


def _refuse_other_settings(
    out: Path, now: Mapping[str, object], before: Mapping[str, object]
) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise DataError(
                f"--out {out}: built with {name} {before.get(name)}, now {value}; {_OTHER_FOLDER}"
            )


def _refuse_other_sources(out: Path, sources: list[Source], manifest: Manifest) -> None:
    built = {}
    try:
        for corpus, record in manifest.preparation["corpora"].items():
            for source in record["sources"]:
                key = (corpus, source["file"], source["validation"], source["bytes"])
                built[key] = source["sha256"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{out / MANIFEST}: does not say what it was built from ({error!r}); {_OTHER_FOLDER}"
        ) from error
    now = {(s.corpus, s.name, s.validation, s.bytes): s.path for s in sources}
    differing = sorted(built.keys() ^ now.keys())
    if not differing:
        differing = [key for key in now if file_sha256(now[key]) != built[key]]
    for corpus, name, *_ in differing[:1]:
        what = f"'{name}' of corpus '{corpus}' differs, is new or is gone"
        raise DataError(f"--out {out}: built from other sources ({what}); {_OTHER_FOLDER}")
