"""Tests of data_prep/build_shards.py, of building/ through it, and of verify_shards.py."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import ftfy
import numpy as np
import pytest

from data_prep import build_shards, train_tokenizer, verify_shards
from data_prep.reading.corpus import find_sources, in_ranges
from data_prep.verify_shards import verify
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.manifest import SAMPLE_TOKENS, read_manifest
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import load_tokenizer
from tests.conftest import run
from tests.support.cases_shards import assert_same_files, documents, mpirun


def build(tokenizer: Path, out: Path, *options: str) -> None:
    build_shards.main(["--tokenizer", str(tokenizer), "--out", str(out), *options])


def test_every_document_comes_back_once(alone: Path, corpora: Path) -> None:
    train, valid = documents(alone, "train", "books"), documents(alone, "valid", "books")
    assert not train.keys() & valid.keys() and len(valid) == 1
    expected = {
        f"{i:02d}.txt": " ".join((corpora / "books" / f"{i:02d}.txt").read_text().split())
        for i in range(12)
    }
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
    none = dict.fromkeys(
        ("bad_text", "duplicate", "duplicate_paragraphs", "empty", "near_duplicate"), 0
    )
    assert books["dropped"] == none | {"empty": 1, "duplicate": 1} and books["documents_read"] == 14
    assert news["dropped"] == none | {"duplicate": 3} and news["split"] == "hash"
    assert len(books["sources"]) == 14
    assert set(books["sources"][0]) == {"file", "bytes", "sha256", "validation"}
    settings = manifest.preparation["settings"]
    assert settings["normalization"]["steps"] == dict.fromkeys(
        ("books", "news"), ["gutenberg", "unwrap", "ftfy"]
    )
    assert settings["normalization"]["versions"]["ftfy"] == ftfy.__version__
    assert settings["by_the_tokenizer"] == {"nfkc": True, "lower": True}
    train = manifest.splits["train"]["books"]
    assert len(train.shards) > 1 and all(shard.tokens <= 100_000 for shard in train.shards)
    assert all(max(shard.sample_tokens) <= SAMPLE_TOKENS for shard in train.shards)
    assert sum(manifest.splits[split]["news"].documents for split in ("train", "valid")) == 397
    assert verify(alone) == []
    assert not (alone / ".work").exists()


def test_a_rerun_says_so_and_touches_nothing(
    options, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*.tar")}
    build_shards.main([*options, "--out", str(alone)])
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("*.tar")} == before


def test_table_is_printed(options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_shards.main([*options, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "bytes/token" in out and "1 empty, 1 duplicate" in out and "verify_shards" in out


# What a validation split is made of.


def test_given_validation_is_kept_whole_and_out_of_training(
    corpora: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "held").mkdir()
    for name in ("01.txt", "02.txt"):
        shutil.copy(corpora / "books" / name, tmp_path / "held" / f"held-{name}")
    corpus = ["--corpus", f"books={corpora / 'books'}"]
    validation = ["--validation", f"books={tmp_path / 'held'}"]
    build(tokenizer, tmp_path / "out", *corpus, *validation)
    assert documents(tmp_path / "out", "valid", "books").keys() == {"held-01.txt", "held-02.txt"}
    train = documents(tmp_path / "out", "train", "books").keys()
    assert len(train) == 10 and not train & {"01.txt", "02.txt"}
    assert read_manifest(tmp_path / "out").preparation["corpora"]["books"]["split"] == "given"


def test_published_heldout_part_is_validation_only_beside_training_parts(
    tokenizer: Path, tmp_path: Path
) -> None:
    news = tmp_path / "news"
    news.mkdir()
    (news / "news.en.heldout-00000-of-00050").write_text(
        "".join(f"held {i} .\n" for i in range(300))
    )
    build(tokenizer, tmp_path / "alone", "--corpus", f"n={news}")
    lone = read_manifest(tmp_path / "alone")
    assert lone.preparation["corpora"]["n"]["split"] == "hash"
    assert 0 < lone.splits["valid"]["n"].documents < 20
    (news / "news.en-00001-of-00100").write_text("".join(f"train {i} .\n" for i in range(100)))
    build(tokenizer, tmp_path / "both", "--corpus", f"n={news}")
    both = read_manifest(tmp_path / "both")
    assert both.preparation["corpora"]["n"]["split"] == "published"
    assert (both.splits["train"]["n"].documents, both.splits["valid"]["n"].documents) == (100, 300)


def test_at_most_so_many_words_are_trained_on(
    corpora: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other documents for another seed; the same ones for two ranks, and for another tokenizer."""
    lines = (corpora / "news" / "news.en-00001-of-00100").read_text().splitlines()
    corpus = ["--corpus", f"n={corpora / 'news'}"]
    budget = [*corpus, "--max-words", "6000"]
    build(tokenizer, tmp_path / "one", *budget)
    texts = documents(tmp_path / "one", "train", "n")
    words = sum(len(text.split()) for text in texts.values())
    assert (
        6000 - 60 < words <= 6000
        and texts.items()
        <= {f"news.en-00001-of-00100#{i}": line for i, line in enumerate(lines)}.items()
    )
    assert f"; {words:,} words of training text" in capsys.readouterr().out
    record = read_manifest(tmp_path / "one").preparation
    settings, dropped = record["settings"], record["corpora"]["n"]["dropped"]
    assert (settings["max_words"], settings["max_words_seed"]) == (6000, 42)
    valid = read_manifest(tmp_path / "one").splits["valid"]["n"].documents
    assert dropped["max_words"] == 397 - valid - len(texts) and verify(tmp_path / "one") == []
    two = ["--tokenizer", str(tokenizer), *budget, "--out", str(tmp_path / "two")]
    assert run(*mpirun(2, *two)).returncode == 0
    assert_same_files(tmp_path / "one", tmp_path / "two")
    learn = ["--vocab-size", "300", "--documents-of", str(tmp_path / "one"), *corpus]
    train_tokenizer.main([*learn, "--out", str(tmp_path / "tok")])
    assert "documents" in json.loads((tmp_path / "tok" / "preparation.json").read_text())
    build(tmp_path / "tok", tmp_path / "three", *budget)
    assert documents(tmp_path / "three", "train", "n") == texts
    build(tokenizer, tmp_path / "other", *budget, "--seed", "1")
    assert len(documents(tmp_path / "other", "train", "n").keys() - texts.keys()) > 50
    with pytest.raises(DataError, match="built with max_words 6000, now None"):
        build(tokenizer, tmp_path / "one", *corpus)
    with pytest.raises(ConfigError, match="--documents-of .*: it does not train on corpus m"):
        train_tokenizer.main([*learn, "--corpus", f"m={corpora / 'news'}", "--out", "x"])


@pytest.mark.parametrize("fraction, expected", [("0", 0), ("0.25", 100), ("0.9", 357)])
def test_validation_fraction(
    corpora: Path, tokenizer: Path, tmp_path: Path, fraction: str, expected: int
) -> None:
    corpus = ("--corpus", f"news={corpora / 'news'}")
    build(tokenizer, tmp_path / "out", *corpus, "--validation-fraction", fraction)
    entry = read_manifest(tmp_path / "out").splits["valid"].get("news")
    assert abs((entry.documents if entry else 0) - expected) <= 30


def test_split_depends_on_the_document_alone(
    options, alone: Path, corpora: Path, tokenizer: Path, tmp_path
) -> None:
    lines = (corpora / "news" / "news.en-00001-of-00100").read_text().splitlines()
    (tmp_path / "news.en-1").write_text("\n".join(sorted(lines)) + "\n")
    build(tokenizer, tmp_path / "out", "--corpus", f"news={tmp_path / 'news.en-1'}")
    found = documents(tmp_path / "out", "valid", "news")
    assert sorted(found.values()) == sorted(documents(alone, "valid", "news").values())


# Refusals: one line, nothing lost.


def test_refusals(options, alone: Path, corpora: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="--validation-fraction 1.5"):
        build_shards.main([*options, *out, "--validation-fraction", "1.5"])
    with pytest.raises(ConfigError, match="--max-words 0: must be above 0"):
        build_shards.main([*options, *out, "--max-words", "0"])
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


def test_other_tokenizer_options_or_sources_are_refused(
    options, alone, corpora, tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(alone, tmp_path / "shards")
    shutil.copytree(corpora, tmp_path / "corpora")
    out = ["--out", str(tmp_path / "shards")]
    other = tmp_path / "tok"
    train_tokenizer.main(
        ["--corpus", f"b={corpora / 'books'}", "--vocab-size", "320", "--out", str(other)]
    )
    with pytest.raises(DataError, match="built with tokenizer"):
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
        build(tokenizer, tmp_path / "out", "--corpus", f"c={tmp_path}")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_commands_exit_with_the_designs_codes(alone: Path, options, tmp_path: Path) -> None:
    command = ("python", "-m", "data_prep.build_shards", *options, "--out", tmp_path / "out")
    done = run(*command, "--corpus", f"c={tmp_path / 'gone'}")
    assert (
        done.returncode == 3 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    )
    assert run(*command, "--shard-tokens", 1).returncode == 2
    assert run("python", "-m", "data_prep.verify_shards", alone).returncode == 0
    shutil.copytree(alone, tmp_path / "bad")
    shard = next((tmp_path / "bad" / "train").rglob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    done = run("python", "-m", "data_prep.verify_shards", tmp_path / "bad")
    assert done.returncode == 3 and shard.name in done.stdout and "1 problems" in done.stderr
    assert run("python", "-m", "data_prep.verify_shards", tmp_path).returncode == 3


def test_verify_reports_the_whole_directory(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_shards.main([str(alone)])
    assert "all as the manifest says" in capsys.readouterr().out


# Under MPI, and real text.


@pytest.mark.parametrize("ranks", [2, 7])
def test_output_is_the_same_for_any_number_of_ranks(
    options, alone: Path, tmp_path: Path, ranks: int
) -> None:
    done = run(*mpirun(ranks, *options, "--out", str(tmp_path / "out")), timeout_seconds=240)
    assert done.returncode == 0, done.stderr
    assert_same_files(alone, tmp_path / "out")
    assert done.stdout.count("bytes/token") == 1


def test_one_large_file_is_shared_by_ranks_and_an_archive_is_read_in_place(
    tokenizer: Path, tmp_path: Path
) -> None:
    """A sentence file beyond `SPLIT_BYTES`, and 1B Word's archive in its own layout."""
    words = "winter summer spring garden kitchen window ladder sailor captain teacher "
    line = (words * 60).strip()
    with open(tmp_path / "books_large_p1.txt", "w") as file:
        for number in range(31_000):
            file.write(f"{number} {line[: 2300 + number % 200]}\n")
    (source,) = find_sources([f"b={tmp_path / 'books_large_p1.txt'}"], [])
    assert [found.first_line for found in in_ranges(source)] == [0, 30_000]
    top = "1-billion-word-language-modeling-benchmark-r13output"
    training = "training-monolingual.tokenized.shuffled"
    heldout = "heldout-monolingual.tokenized.shuffled"
    (tmp_path / top / training).mkdir(parents=True)
    (tmp_path / top / heldout).mkdir()
    train = tmp_path / top / training / "news.en-00001-of-00100"
    train.write_text("".join(f"train {i} , it 's .\n" for i in range(100)))
    held = tmp_path / top / heldout / "news.en.heldout-00000-of-00050"
    held.write_text("".join(f"held {i} .\n" for i in range(30)))
    with tarfile.open(tmp_path / f"{top}.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / top, top)
    options = ["--tokenizer", str(tokenizer), "--clean", "lm=ftfy,detokenize"]
    options += ["--corpus", f"b={tmp_path / 'books_large_p1.txt'}"]
    options += ["--corpus", f"lm={tmp_path / f'{top}.tar.gz'}"]
    build_shards.main([*options, "--out", str(tmp_path / "one")])
    done = run(*mpirun(3, *options, "--out", str(tmp_path / "three")))
    assert done.returncode == 0, done.stderr
    assert_same_files(tmp_path / "one", tmp_path / "three")
    manifest = read_manifest(tmp_path / "one")
    (source,) = manifest.preparation["corpora"]["b"]["sources"]
    books = (tmp_path / "books_large_p1.txt").read_bytes()
    assert source["sha256"] == hashlib.sha256(books).hexdigest()
    assert manifest.preparation["corpora"]["b"]["documents_read"] == 4
    assert manifest.preparation["corpora"]["lm"]["split"] == "published"
    assert manifest.splits["train"]["lm"].documents == 100
    assert manifest.splits["valid"]["lm"].documents == 30
    text = documents(tmp_path / "one", "train", "lm")
    assert text[f"{top}.tar.gz/{top}/{training}/{train.name}#7"] == "train 7, it's."


def test_ranks_that_mpi_cannot_join_are_an_error(options, tmp_path: Path) -> None:
    command = ("python", "-m", "data_prep.build_shards", *options, "--out", tmp_path / "out")
    done = run(*command, SLURM_STEP_NUM_TASKS="4")
    assert done.returncode == 2 and "alone for MPI" in done.stderr


def test_shards_feed_a_token_stream(alone: Path) -> None:
    manifest = read_manifest(alone)
    stream = TokenStream(alone, manifest, "train", "news")
    (tokens_T,) = stream.read(np.array([0]), stream.tokens)
    assert int((tokens_T == 4).sum()) == manifest.splits["train"]["news"].documents
    assert tokens_T[-1] == 4 and tokens_T.max() < manifest.tokenizer["vocab_size"]


def test_real_corpora(shared_data: Path, tmp_path: Path) -> None:
    """1B Word and the small held-out books, as they are published, through the two commands."""
    corpus = ["--corpus", f"books={shared_data / 'books' / 'valid'}"]
    corpus += ["--corpus", f"lm1b={shared_data / 'lm1b'}"]
    train_tokenizer.main([*corpus, "--vocab-size", "2000", "--out", str(tmp_path / "tok")])
    build(tmp_path / "tok", tmp_path / "out", *corpus)
    assert verify(tmp_path / "out") == []
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["preparation"]["corpora"]["lm1b"]["documents_read"] == 12_216
    assert manifest["splits"]["valid"]["books"]["documents"] == 1


def test_data_preparation_does_not_wait_for_torch() -> None:
    """Importing torch takes each rank about 2 seconds, and nothing here needs it."""
    code = "import sys, data_prep.build_shards; print('torch' in sys.modules)"
    assert run("python", "-c", code).stdout == "False\n"
