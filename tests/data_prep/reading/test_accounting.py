"""All of a source is read, or cut and counted, or passed over with its name, or refused."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.reading.corpus import SourceReader, find_sources
from gpt1_ds.base.errors import DataError
from tests.support.cases_corpus import PACK, documents_of, packed, reader

TEXTS = {f"{n}.txt": "-".join(f"d{n}w{n * 7919 + i}" for i in range(40)) for n in range(3)}
MEMBERS = {name: text.encode() for name, text in TEXTS.items()}
ARCHIVES = (".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip")
HEAD, LICENCE = "*** START OF THE PROJECT GUTENBERG EBOOK A ***", "Licence."
END = "*** END OF THE PROJECT GUTENBERG EBOOK A ***"
FRAME = len(HEAD + END + LICENCE)


def source_of(path: Path) -> tuple[SourceReader, str]:
    """A reader that has read the file, and all texts together."""
    (source,) = find_sources([f"c={path}"], [])
    source_reader = reader(source)
    found = "".join(document.text for document in documents_of(source_reader))
    return source_reader, "".join(found.split())


def intact(folder: Path) -> dict[str, bytes]:
    """A file of each format, with all of `TEXTS`."""
    files = {}
    for suffix in ARCHIVES:
        files[f"all{suffix}"] = packed(folder / f"all{suffix}", MEMBERS).read_bytes()
    checked = zstandard.ZstdCompressor(write_checksum=True).compress
    files["all.tar.zst"] = checked(files["all.tar"])
    plain = "\n".join(TEXTS.values()).encode()
    for suffix, pack in {**PACK, ".zst": checked}.items():
        files[f"a.txt{suffix}"] = pack(plain)
    rows = pyarrow.table({"text": list(TEXTS.values())})
    pyarrow.parquet.write_table(rows, folder / "r.parquet", write_page_checksum=True)
    files["r.parquet"] = (folder / "r.parquet").read_bytes()
    return files


CONTENTS: dict[str, Callable[[str], str]] = {
    "a.txt": lambda text: text,
    "books_large_p1.txt": lambda text: text,
    "news.en-1": lambda text: text,
    "r.jsonl": lambda text: f'{{"text": "{text}"}}\n',
}


@pytest.mark.parametrize("suffix", ["", *PACK, *ARCHIVES])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_character_is_read_or_cut_and_counted(tmp_path: Path, name: str, suffix: str) -> None:
    parts = ["One", HEAD, "Two", END, LICENCE, HEAD, "Three"]
    is_framed = name in ("a.txt", "r.jsonl")
    text = ("\\n\\n" if name == "r.jsonl" else "\n\n").join(parts)
    data = CONTENTS[name](text).encode()
    if suffix in ARCHIVES:
        path = packed(
            tmp_path / f"all{suffix}", {name: data, "b.md": b"#", ".h": b"", "c.zip": b""}
        )
    else:
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(PACK[suffix](data) if suffix else data)
    source_reader, found = source_of(path)
    assert source_reader.bytes_read == path.stat().st_size
    cut = source_reader.cut["gutenberg"]
    if is_framed:
        assert found == "OneTwoThree" and cut >= FRAME + len(HEAD)
        blanks = cut - FRAME - len(HEAD)
        assert len(found) + cut == sum(map(len, parts)) + blanks and 0 <= blanks <= 2 * len(parts)
    else:
        assert cut == 0 and found == "".join("".join(parts).split())
    named = [("other_format", "b.md"), ("hidden", ".h"), ("other_format", "c.zip")]
    passed_over = [(reason, Path(member).name) for reason, member in source_reader.passed_over]
    assert passed_over == (named if suffix in ARCHIVES else [])


def test_a_damaged_file_is_refused_or_loses_nothing(tmp_path: Path) -> None:
    """Cut anywhere, or with a changed bit, or with bytes that belong to nothing."""
    whole = "".join(TEXTS.values())
    for name, data in intact(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        assert source_of(tmp_path / name)[1] == whole

        def lost(damaged: bytes, path: Path = tmp_path / name) -> bool:
            path.write_bytes(damaged)
            try:
                source_reader, found = source_of(path)
            except DataError as error:
                assert str(path) in str(error)
                return False
            return len(found) < len(whole) and not source_reader.passed_over

        for end in range(1, len(data), 97):
            assert not lost(data[:end]), f"{name}: cut at {end}"
        for place in range(0, len(data), 41):
            flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            assert not lost(flipped), f"{name}: byte {place}"
        assert _is_refused(tmp_path / name, data + b"some bytes that belong to nothing")
        assert _is_refused(tmp_path / name, b"PK" * 20 + data)


def _is_refused(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        source_of(path)
    except DataError as error:
        return f"{path}: " in str(error) and "\n" not in str(error)
    return False


def tar_of(**members: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{name}.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("suffix", PACK)
def test_later_streams_and_archives_are_read(tmp_path: Path, suffix: str) -> None:
    pack = PACK[suffix]
    padding = b"" if suffix == ".zst" else bytes(8)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(b"one ") + padding + pack(b"two ") + pack(b"three") + padding)
    assert source_of(path)[1] == "onetwothree"
    tars = tar_of(a=b"one") + bytes(1024) + tar_of(b=b"two")
    inner = pack(tar_of(c=b"three"))
    outer = packed(tmp_path / "outer.tar", {f"in.tar{suffix}": inner}).read_bytes()
    path = tmp_path / f"all.tar{suffix}"
    path.write_bytes(pack(tars) + pack(outer))
    assert source_of(path)[1] == "onetwothree"
    outer = packed(tmp_path / "outer.tar", {f"in.tar{suffix}": inner[: len(inner) // 2]})
    assert _is_refused(outer, outer.read_bytes())
    if suffix == ".xz":
        assert _is_refused(tmp_path / "a.txt.xz", pack(b"one") + bytes(3) + pack(b"two"))


def test_a_second_directory_is_refused(tmp_path: Path) -> None:
    """It would hide the members, or rows, of the file in front of it."""
    first = packed(tmp_path / "a.zip", {"1.txt": b"one"}).read_bytes()
    second = packed(tmp_path / "a.zip", {"2.txt": b"two"}).read_bytes()
    assert _is_refused(tmp_path / "a.zip", first + second)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "r.parquet")
    assert _is_refused(tmp_path / "r.parquet", (tmp_path / "r.parquet").read_bytes() * 2)


def test_the_largest_window_of_zstandard_is_read(tmp_path: Path) -> None:
    options = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(stream.compress(b"one") + stream.flush())
    assert source_of(tmp_path / "a.txt.zst")[1] == "one"
