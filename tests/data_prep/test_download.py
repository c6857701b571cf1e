"""Tests of data_prep/download.py, from a server on loopback that fails in many ways."""

import hashlib
import io
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

import pytest

from data_prep import download
from data_prep.download import SETS, File, main
from data_prep.reading.corpus import find_sources
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.tasks import TASKS
from tests.conftest import run
from tests.support.loopback import serve

LM1B = "1-billion-word-language-modeling-benchmark-r13output"
TRAIN = "training-monolingual.tokenized.shuffled/news.en-00001-of-00100"
LINES = b"The cat sat on the mat .\n" * 20_000


def tar_of(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return file.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch):
    """A server with small archives in the publishers' layout. The table gets their hashes."""
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    folder = tmp_path / "mirror"
    folder.mkdir()
    sst2 = b"sentence\tlabel\n" + b"".join(b"a fine film %d\t%d\n" % (n, n % 2) for n in range(40))
    published = {
        f"{LM1B}.tar.gz": tar_of({f"{LM1B}/{TRAIN}": LINES, f"{LM1B}/README": b"read me"}),
        "SST-2.zip": zip_of(
            {"SST-2/train.tsv": sst2, "SST-2/dev.tsv": sst2, "__MACOSX/SST-2/._x": b""}
        ),
        **{Path(file.gives).name: b"@paulwalk\tB-person\n" * 99 for file in SETS["wnut17"]},
    }
    for name, data in published.items():
        (folder / name).write_bytes(data)
    for name in ("lm1b", "sst2"):
        (file,) = SETS[name]
        digest = hashlib.sha256(published[file.url.rpartition("/")[2]]).hexdigest()
        monkeypatch.setitem(SETS, name, [file._replace(sha256=digest)])
    with serve(folder) as server:
        yield server


def get(server, out: Path, *names: str) -> None:
    main([*names, "--out", str(out), "--url", server.url])


def test_sets_arrive_in_the_layout_that_the_readers_take(mirror, tmp_path, capsys):
    out = tmp_path / "data"
    get(mirror, out, "lm1b", "sst2", "wnut17")
    assert (out / LM1B / TRAIN).read_bytes() == LINES
    (source,) = find_sources([f"lm1b={out / LM1B}"], [])
    assert source.name == TRAIN
    assert len(TASKS["sst2"].read(out / "SST-2", "train")) == 40
    assert TASKS["wnut17"].read(out / "WNUT17", "dev")
    assert capsys.readouterr().out.splitlines()[:2] == [str(out / LM1B), str(out / "SST-2")]
    assert sorted(path.name for path in out.iterdir()) == [
        ".download.lock",
        LM1B,
        "SST-2",
        "WNUT17",
    ]
    count = len(mirror.requests)
    get(mirror, out, "lm1b", "sst2", "wnut17")
    assert len(mirror.requests) == count  # nothing is fetched twice


@pytest.mark.parametrize("fault", ["drop", "stall", "503"])
def test_a_broken_download_goes_on_where_it_broke(mirror, tmp_path, fault):
    mirror.faults[f"{LM1B}.tar.gz"] = [fault, fault, "503"]
    get(mirror, tmp_path / "data", "lm1b")
    assert (tmp_path / "data" / LM1B / TRAIN).read_bytes() == LINES
    firsts = [int((range_ or "bytes=0-")[6:-1]) for _, range_ in mirror.requests]
    assert len(firsts) == 4 and firsts == sorted(firsts) and (fault == "503") == (firsts[-1] == 0)


def test_the_next_run_goes_on_too(mirror, tmp_path):
    whole = (mirror.folder / f"{LM1B}.tar.gz").read_bytes()
    (tmp_path / "data").mkdir()
    for there in (whole[:100], whole):
        (tmp_path / "data" / f".{LM1B}.tar.gz.part").write_bytes(there)
        get(mirror, tmp_path / "data", "lm1b")
        assert mirror.requests[-1][1] == f"bytes={len(there)}-"
        (tmp_path / "data" / LM1B).rename(tmp_path / f"{len(there)}")


def test_a_server_without_range_starts_over(mirror, tmp_path):
    mirror.faults[f"{LM1B}.tar.gz"] = ["drop", "all"]
    get(mirror, tmp_path / "data", "lm1b")
    assert (tmp_path / "data" / LM1B / TRAIN).read_bytes() == LINES


def test_what_was_not_published_is_refused(mirror, tmp_path):
    mirror.faults["SST-2.zip"] = ["flip"]
    with pytest.raises(
        DataError, match=f"{mirror.url}/SST-2.zip: sha256 is not that of the published file"
    ):
        get(mirror, tmp_path / "data", "sst2")
    assert not (tmp_path / "data" / "SST-2").exists()
    get(mirror, tmp_path / "data", "sst2")  # and a second try starts anew


def test_a_missing_file_and_a_dead_server_are_one_line(mirror, tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match="RACE.tar.gz: cannot be fetched .the server says 404.*--url"
    ):
        get(mirror, tmp_path / "data", "race")
    assert len(mirror.requests) == 1
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with pytest.raises(DataError, match="127.0.0.1:9/RACE.tar.gz: cannot be fetched .*refused"):
        main(["race", "--out", str(tmp_path / "data"), "--url", "http://127.0.0.1:9"])


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-a-test", "RACE/../../evil"])
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_no_member_leaves_the_folder(mirror, tmp_path, name, kind):
    members = {"RACE/train/middle/1.txt": b"{}", name: b"evil"}
    (mirror.folder / f"RACE.{kind}").write_bytes(
        tar_of(members) if kind == "tar.gz" else zip_of(members)
    )
    with pytest.raises(DataError, match=f"RACE.{kind}: member .* leads out of the folder"):
        download.obtain(File(f"{mirror.url}/RACE.{kind}", "RACE"), tmp_path / "data")
    assert not (tmp_path / "data" / "RACE").exists()
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil-of-a-test").exists()


def test_links_are_left_out(mirror, tmp_path):
    members = {
        "RACE/out": link("RACE/out", str(tmp_path)),
        "RACE/out/evil": b"evil",
        "RACE/dev/1.txt": b"{}",
    }
    (mirror.folder / "RACE.tar.gz").write_bytes(tar_of(members))
    download.obtain(File(f"{mirror.url}/RACE.tar.gz", "RACE"), tmp_path / "data")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "data" / "RACE" / "out").is_symlink()


@pytest.mark.parametrize(
    "data", [b"no archive", tar_of({"RACE/x": LINES})[:-200], tar_of({"other/x": b""})]
)
def test_a_bad_archive_leaves_nothing_under_the_final_name(mirror, tmp_path, data):
    (mirror.folder / "RACE.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match="RACE.tar.gz: (cannot be unpacked|holds no folder RACE)"):
        download.obtain(File(f"{mirror.url}/RACE.tar.gz", "RACE"), tmp_path / "data")
    assert not (tmp_path / "data" / "RACE").exists()


def test_the_table_is_whole():
    names = {"CoLA", "SST-2", "STS-B", "QQP", "MNLI", "QNLI", "RTE"}
    assert {file.gives for file in SETS["glue"]} >= names
    for file in chain.from_iterable(SETS.values()):
        assert file.url.startswith("http") and len(file.sha256) in (0, 24)
        assert file.url.endswith((".zip", ".tar.gz")) or file.gives.count("/") == 1
    assert set(TASKS) - {"storycloze", "conll2003"} <= set(SETS)


def test_what_must_be_asked_for_says_where(tmp_path):
    command = ("python", "-m", "data_prep.download", "books", "storycloze", "--out", tmp_path)
    done = run(*command, timeout_seconds=60)
    assert done.returncode == 0
    assert "books_large_p1.txt" in done.stdout and "rochester.edu" in done.stdout
    with pytest.raises(ConfigError, match="lm1c: no such set; did you mean 'lm1b'"):
        main(["lm1c", "--out", str(tmp_path)])


def plain(server, name: str = "emerging.dev.conll") -> File:
    return File(f"{server.url}/{name}", f"WNUT17/{name}")


@pytest.mark.parametrize("careless", [False, True])
def test_two_versions_of_a_file_are_never_joined(mirror, tmp_path, careless):
    old = (mirror.folder / "emerging.dev.conll").read_bytes()
    new = old.replace(b"paulwalk", b"mollywlk")
    mirror.careless, mirror.tags = careless, {"emerging.dev.conll": '"old"'}
    served = mirror.folder / "emerging.dev.conll"
    mirror.faults[served.name] = ["drop", "503"]

    def change(seconds: float) -> None:  # between the first and the second attempt
        if mirror.requests:
            served.write_bytes(new)
            mirror.tags[served.name] = '"new"'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.time, "sleep", change)
        download.obtain(plain(mirror), tmp_path / "data")
    assert (tmp_path / "data" / "WNUT17" / served.name).read_bytes() == new
    assert f"bytes={len(old) // 2}-" in [range_ for _, range_ in mirror.requests]


def test_a_part_of_unknown_version_is_kept_only_where_a_hash_will_tell(mirror, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".emerging.dev.conll.part").write_bytes(b"of another year")
    download.obtain(plain(mirror), tmp_path / "data")
    assert b"year" not in (tmp_path / "data" / "WNUT17" / "emerging.dev.conll").read_bytes()
    assert [range_ for _, range_ in mirror.requests] == [None]
    assert [path.name for path in (tmp_path / "data").glob(".e*")] == []


def test_a_login_page_is_never_kept(mirror, tmp_path, capsys):
    for file in (plain(mirror), File(f"{mirror.url}/SST-2.zip", "SST-2", "0" * 24)):
        mirror.faults[file.name] = ["portal"]
        with pytest.raises(DataError, match="a web page came in its place.*login"):
            download.obtain(file, tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.part"))
    for junk in (b" \n", b"\0\1", b'{"error": "log in"}'):
        (mirror.folder / "emerging.dev.conll").write_bytes(junk)
        with pytest.raises(DataError, match="empty, or is no text of the set"):
            download.obtain(plain(mirror), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_file()] == [
        ".download.lock"
    ]
    assert "warning" not in capsys.readouterr().err


def test_a_set_without_a_known_hash_says_so_and_no_message_has_a_secret(
    mirror, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    secret = mirror.url.replace("http://", "http://user:sesame@")
    main(["wnut17", "--out", str(tmp_path / "data"), "--url", f"{secret}/?token=sesame"])
    said = capsys.readouterr()
    assert said.err.count("warning: ") == 3 and "only length and form" in said.err
    assert (tmp_path / "data" / "WNUT17" / "emerging.dev.conll").exists()
    failed = []
    for url in (f"{secret}?token=sesame", "ssh://user:sesame@host", "http://u:sesame@[", "mirror"):
        with pytest.raises((ConfigError, DataError)) as error:
            main(["race", "--out", str(tmp_path / "data"), "--url", url])
        failed.append(str(error.value))
    assert "sesame" not in said.err + said.out + " ".join(failed), failed
    assert "the server says 404" in failed[0] and all("--url" in line for line in failed)


def test_a_bad_out_is_one_line_at_once(mirror, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".SST-2.zip.part").mkdir()
    for out in (tmp_path / "file", tmp_path / "data", "/proc"):
        with pytest.raises(DataError, match=f"--out {out}: .*another folder"):
            get(mirror, Path(out), "sst2")
    assert len(mirror.requests) <= 1, "no second attempt"
