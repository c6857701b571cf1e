"""Writes and reads corpora of every format, for the tests of data_prep/reading."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import zstandard

from data_prep.reading.cleaning import DEFAULT_STEPS, Cleaning
from data_prep.reading.corpus import Fragment, Source, SourceReader, find_sources


def reader(source: Source, bad_text: str = "mend") -> SourceReader:
    return SourceReader(source, Cleaning({"c": DEFAULT_STEPS}, bad_text))


def documents_of(source_reader: SourceReader) -> list[Fragment]:
    """Whole documents, each as one fragment."""
    documents, parts = [], []
    for fragment in source_reader.fragments():
        parts.append(fragment.text)
        if fragment.last:
            documents.append(fragment._replace(text="\n".join(part for part in parts if part)))
            parts = []
    assert not parts, "a document was not ended"
    return documents


def read(path: Path) -> list[Fragment]:
    documents = []
    for source in find_sources([f"c={path}"], []):
        documents += documents_of(reader(source))
    return documents


def texts(path: Path) -> dict[str, str]:
    return {document.id: document.text for document in read(path)}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TARS = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst"]


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """An archive; its name determines the format."""
    if path.suffix == ".zip":
        return zipped(path, members)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    kind = {".tgz": ".gz", ".txz": ".xz"}.get(path.suffix, path.suffix)
    path.write_bytes(PACK[kind](data.getvalue()) if kind in PACK else data.getvalue())
    return path
