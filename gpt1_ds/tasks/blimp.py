"""BLiMP (Warstadt et al. 2020): 67 paradigms of 1,000 minimal pairs of English grammar.

The publisher gives BLiMP.zip with `data/PARADIGM.jsonl`, and BLiMP_models_summary.jsonl, which
has the accuracy of four models on each paradigm. Two paradigms have the term `s-selection` in the
data; the paper and the summary count them as argument structure, and so does this file.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import DataError, near
from gpt1_ds.tasks.minimal_pairs import Levels, Pair, Published
from gpt1_ds.tasks.tables import Line, Row, json_rows, refuse_broken_characters

ARCHIVE = "BLiMP.zip"
SUMMARY = "BLiMP_models_summary.jsonl"
NO_PARADIGMS = (SUMMARY, "lambada", ".")
"""How the names of other files begin that lie beside; `._NAME` is what macOS adds to an archive."""
PARADIGMS = 67
MODELS = {"ngram": "n-gram", "lstm": "LSTM", "txl": "Transformer-XL", "gpt2": "GPT-2"}
"""The keys of the summary, and the models."""
GOOD, BAD = "sentence_good", "sentence_bad"
PHENOMENA = {"s-selection": "argument_structure"}
FIELDS = {"syntax/semantics": "syntax_semantics"}
"""Terms of the data, and the name under which they count."""


class Blimp(NamedTuple):
    """The pairs as published, the rows of the table, and the scores of other models."""

    pairs: list[Pair]
    levels: Levels
    published: Published
    notes: list[str]


def read_blimp(path: Path) -> Blimp:
    """Reads BLiMP.zip, its folder `data`, or a folder that holds one of them.

    DataError if there is none, or if a file is damaged. Missing paradigms are told.
    """
    files, place = _files(path)
    pairs: list[Pair] = []
    by_phenomenon: dict[str, list[str]] = {}
    by_field: dict[str, list[str]] = {}
    for name, content in sorted(files.items()):
        rows = list(json_rows(Path(name), _lines(name, content)))
        if not rows:
            raise DataError(f"{name}: no pairs; restore the file")
        paradigm = Path(name).stem
        pairs += [Pair(_text(row, GOOD), _text(row, BAD), paradigm) for row in rows]
        term, field = _text(rows[0], "linguistics_term"), _text(rows[0], "field")
        by_phenomenon.setdefault(PHENOMENA.get(term, term), []).append(paradigm)
        by_field.setdefault(FIELDS.get(field, field), []).append(paradigm)
    paradigms = [Path(name).stem for name in sorted(files)]
    published, notes = _published(place)
    levels = {
        "phenomenon": dict(sorted(by_phenomenon.items())),
        "field": dict(sorted(by_field.items())),
        "paradigm": {paradigm: [paradigm] for paradigm in paradigms},
    }
    return Blimp(pairs, levels, published, [*notes, *_missing(paradigms, published)])


def _files(path: Path) -> tuple[dict[str, bytes], Path]:
    """The content of each paradigm's file by its name, and the folder of the summary."""
    archive = path / ARCHIVE if path.is_dir() else path
    if archive.is_file():
        return _unpacked(archive), archive.parent
    for folder in (path / "data", path):
        found = sorted(folder.glob("*.jsonl"))
        found = [file for file in found if not file.name.startswith(NO_PARADIGMS)]
        if found:
            beside = (folder, folder.parent)
            place = next((place for place in beside if (place / SUMMARY).exists()), folder)
            return {str(file): file.read_bytes() for file in found}, place
    what = "no BLiMP here" if path.exists() else "not there"
    raise DataError(
        f"{path}: {what}; give {ARCHIVE}, its folder data/ with a .jsonl for each paradigm, or the "
        "folder of one of them"
    )


def _unpacked(archive: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [
                name
                for name in opened.namelist()
                if name.endswith(".jsonl") and not name.startswith("__MACOSX/")
            ]
            found = {f"{archive}/{name}": opened.read(name) for name in names}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive}: not a sound {ARCHIVE} ({error}); restore it") from error
    if not found:
        raise DataError(f"{archive}: no .jsonl in it; give the publisher's {ARCHIVE}")
    return found


def _lines(name: str, content: bytes) -> list[Line]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 (byte {error.start}); restore the file") from error
    return [Line(row, line) for row, line in enumerate(text.split("\n"), 1)]


def _text(row: Row, column: str) -> str:
    if column not in row.columns:
        raise DataError(f"{row.where}: no column '{column}'; {near(column, row.columns)}")
    text = str(row.columns[column]).strip()
    if not text:
        raise DataError(f"{row.where}: column '{column}' is empty; restore the file")
    refuse_broken_characters(text, row.where)
    return text


def _published(folder: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Accuracy of each published model on each paradigm, and what to tell if there is none."""
    path = folder / SUMMARY
    if not path.exists():
        return {}, [f"{path} is not there: no published scores beside these"]
    found: dict[str, dict[str, float]] = {name: {} for name in MODELS.values()}
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            for key, name in MODELS.items():
                # The other rows are means over phenomena.
                if entry["UID"] != "overall":
                    found[name][entry["UID"]] = float(entry[key])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} row {row}: not the publisher's ({error!r})") from error
    return found, []


def _missing(paradigms: Sequence[str], published: Mapping[str, Mapping[str, float]]) -> list[str]:
    known = next(iter(published.values()), {})
    missing = sorted(set(known) - set(paradigms))
    if not missing and len(paradigms) >= PARADIGMS:
        return []
    which = f" ({', '.join(missing)})" if missing else ""
    return [
        f"{PARADIGMS - len(paradigms)} of BLiMP's {PARADIGMS} paradigms are missing{which}; all "
        "means are over the others, the published ones too"
    ]
