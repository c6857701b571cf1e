"""Faults of data_prep/build_shards.py: killed ranks, a second writer, full disks, bad sources."""

import contextlib
import fcntl
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import build_shards
from data_prep.reading.corpus import SourceReader
from data_prep.verify_shards import verify
from gpt1_ds.base.errors import DataError
from gpt1_ds.data.manifest import read_manifest
from tests.conftest import ROOT, run
from tests.support.cases_shards import assert_same_files, mpirun


def stop(*_: object) -> None:
    raise DataError("stopped")


def test_finished_work_is_not_done_again(options, alone: Path, tmp_path: Path, monkeypatch) -> None:
    """Stopped before the manifest, as by a kill. The rerun writes no shard and reads no source."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(build_shards, "_finish", stop)
        with pytest.raises(DataError, match="stopped"):
            build_shards.main([*options, "--out", str(out)])
    assert not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix == ".tar"}
    (out / ".work" / ".unit-000000.1.tmp").write_text("partial")
    with monkeypatch.context() as patch:
        patch.setattr(
            SourceReader, "fragments", lambda self: pytest.fail(f"read {self.source} again")
        )
        build_shards.main([*options, "--out", str(out)])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same_files(alone, out)


def test_changed_sources_restart_an_unfinished_build(
    options, corpora: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(corpora, tmp_path / "corpora")
    moved = [word.replace(str(corpora), str(tmp_path / "corpora")) for word in options]
    with monkeypatch.context() as patch:
        patch.setattr(build_shards, "_finish", stop)
        with pytest.raises(DataError, match="stopped"):
            build_shards.main([*moved, "--out", str(tmp_path / "out")])
    (tmp_path / "corpora" / "books" / "00.txt").write_text("a short book now.")
    for out in ("out", "fresh"):
        build_shards.main([*moved, "--out", str(tmp_path / out)])
    assert_same_files(tmp_path / "fresh", tmp_path / "out")


def test_a_second_writer_is_locked_out(options, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing there"):
            build_shards.main([*options, "--out", str(tmp_path / "out")])
    build_shards.main([*options, "--out", str(tmp_path / "out")])


def processes_of(out: Path) -> list[int]:
    """The ranks that build shards in `out`, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_build = b"data_prep.build_shards" in words and str(out).encode() in words
            if is_build and b"-n" not in words:  # which mpirun itself has
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.parametrize(
    "stage, victim",
    [
        (".work", 1),
        (".work/.unit*.tmp", 0),
        (".work/unit*.npz", 1),
        ("train/*/.*.tmp", 0),
        ("train/*/*.tar", 1),
    ],
)
def test_killed_rank_leaves_nothing_partial_and_the_rerun_the_same_bytes(
    options, alone: Path, tmp_path: Path, stage: str, victim: int
) -> None:
    """SIGKILL to a rank as soon as the build shows that it has come to `stage`."""
    for attempt in range(5):
        out = tmp_path / f"out-{attempt}"
        command = mpirun(2, *options, "--out", str(out))
        job = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not any(out.glob(stage)) and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        victims = processes_of(out)
        if len(victims) == 2:
            os.kill(victims[victim], signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
        if not (out / "manifest.json").exists():
            break
    # Five builds that all ended before the signal came would mean that the stage is never seen.
    assert stage == ".work" or ("at work on rank 0: " in errors and "; rank 1: " in errors), errors
    assert job.returncode != 0 and not (out / "manifest.json").exists(), errors
    finished = [path for path in out.rglob("*.tar") if not path.name.startswith(".")]
    assert all(filecmp.cmp(path, alone / path.relative_to(out), shallow=False) for path in finished)
    assert run(*command, timeout_seconds=120).returncode == 0
    assert_same_files(alone, out)


def test_kill_right_after_the_manifest_is_put_right(options, alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "unit-000000.json").write_text("{}")
    build_shards.main([*options, "--out", str(tmp_path / "out")])
    assert_same_files(alone, tmp_path / "out")


def test_kills_at_random_moments_change_no_byte(options, alone: Path, tmp_path: Path) -> None:
    rng, out, kills = random.Random(5), tmp_path / "out", 0
    for attempt in range(12):
        ranks = rng.choice([1, 2, 3])
        job = subprocess.Popen(
            mpirun(ranks, *options, "--out", str(out)),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not (out / ".work").exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        # The first kill comes at once, so it is in time on any machine.
        time.sleep(rng.uniform(0.0, attempt / 4))
        victims = processes_of(out)
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(victims), signal.SIGKILL)
        job.wait(timeout=120)
        kills += job.returncode != 0
        # What has its final name is whole, at any moment.
        for path in out.glob("*/*/*.tar"):
            if not path.name.startswith("."):
                assert filecmp.cmp(path, alone / path.relative_to(out), shallow=False)
        if (out / "manifest.json").exists():
            break
    assert kills and run(*mpirun(2, *options, "--out", str(out))).returncode == 0
    assert_same_files(alone, out)


def test_failure_on_one_rank_ends_the_job_with_its_code_and_file(options, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.txt.gz").write_bytes(b"\x1f\x8b\x08 not gzip")
    command = mpirun(
        2, *options, "--corpus", f"broken={tmp_path / 'broken'}", "--out", str(tmp_path / "out")
    )
    done = run(*command)
    assert done.returncode == 3
    assert f"{tmp_path / 'broken' / 'a.txt.gz'}: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(
        *mpirun(2, *options, "--corpus", "gone=/no/such/path", "--out", str(tmp_path / "out"))
    )
    assert done.returncode == 3
    assert done.stderr.count("error: /no/such/path: corpus 'gone' is not there") == 1


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_full_disk_ends_the_job_and_room_lets_it_go_on(
    options, alone: Path, tmp_path: Path, ranks: int
) -> None:
    with mounted(tmp_path / "small", "size=1500k") as folder:
        out = folder / "out"
        done = run(*mpirun(ranks, *options, "--out", str(out)))
        assert done.returncode == 3 and "cannot be written (No space left on device)" in done.stderr
        assert "Traceback" not in done.stderr and not (out / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", folder], check=True)
        assert run(*mpirun(ranks, *options, "--out", str(out))).returncode == 0
        assert_same_files(alone, out)


def test_read_only_output_is_one_line(options, tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "size=1m,ro") as folder:
        done = run("python", "-m", "data_prep.build_shards", *options, "--out", folder / "out")
        assert done.returncode == 3 and done.stderr.count("\n") == 1
        assert f"{folder / 'out'}: cannot be written (Read-only file system)" in done.stderr


@pytest.mark.parametrize(
    "fault, message", [("unlink", "cannot be read"), ("append", "changed while it was read")]
)
def test_source_that_vanishes_or_changes_during_the_run(
    options, corpora: Path, tmp_path: Path, fault, message
) -> None:
    """The news are read last: they are changed as soon as the first text is tokenised."""
    shutil.copytree(corpora, tmp_path / "corpora")
    moved = [word.replace(str(corpora), str(tmp_path / "corpora")) for word in options]
    news, out = tmp_path / "corpora" / "news" / "news.en-00001-of-00100", tmp_path / "out"
    command = [sys.executable, "-m", "data_prep.build_shards", *moved, "--out", str(out)]
    job = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not any(out.glob(".work/.unit*")) and job.poll() is None:
        time.sleep(0.001)
    if fault == "unlink":
        news.unlink()
    else:
        with open(news, "a") as file:
            file.write("one line more\n")
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 3 and f"{news}: {message}" in errors
    assert not (out / "manifest.json").exists()
    news.write_text("quite another text .\n" + (corpora / "news" / news.name).read_text())
    assert run(*command).returncode == 0 and verify(out) == []


@pytest.mark.parametrize("policy", ["mend", "drop", "refuse"])
def test_bad_text_is_mended_dropped_or_refused_and_counted(
    corpora: Path, tokenizer: Path, tmp_path: Path, policy
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    text = "winter garden, captain. " * 30
    (bad / "a-good.txt").write_text(text + "café")
    (bad / "b-latin.txt").write_bytes((text + "naïf").encode("latin-1"))
    (bad / "c-utf16.txt").write_bytes((text + "rôle").encode("utf-16"))
    (bad / "d-nul.txt").write_bytes(text.encode() + b"\0\0 end")
    (bad / "e-broken.txt").write_bytes((text + "élan").encode() + b"\xff")
    (bad / "f-empty.txt").write_text(" \n\n")
    out = tmp_path / "out"
    command = ["--tokenizer", str(tokenizer), "--corpus", f"bad={bad}"]
    command += ["--bad-text", policy, "--out", str(out)]
    if policy == "refuse":
        with pytest.raises(DataError, match="b-latin.txt: document b-latin.txt is not clean UTF-8"):
            build_shards.main(command)
        return
    build_shards.main(command)
    manifest = read_manifest(out)
    record = manifest.preparation["corpora"]["bad"]
    assert record["mended"] == {"invalid_utf8": 1, "latin1": 1, "nul": 2, "utf16": 1}
    assert record["dropped"]["empty"] == 1
    assert record["dropped"]["bad_text"] == (4 if policy == "drop" else 0)
    kept = sum(shard.documents for shard in manifest.shards())
    assert kept == (1 if policy == "drop" else 5) and verify(out) == []
