"""Tests of data_prep/inspect_shards.py and trace.py: documents read back, and which were in a step.

Also of the statistics of `verify_shards`.
"""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml

from data_prep import build_shards, inspect_shards, trace, verify_shards
from data_prep.inspect_shards import document_spans, documents
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.records import write_records
from gpt1_ds.data.batches import Batches, BatchSizes, Share
from gpt1_ds.data.manifest import CorpusEntry, Manifest, read_manifest, write_manifest
from gpt1_ds.data.opening import open_streams
from gpt1_ds.data.order import Cursor, WindowOrder
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import SPECIAL_NAMES, load_tokenizer
from gpt1_ds.settings.loading import to_dict
from gpt1_ds.settings.sections import DataConfig, PretrainConfig
from tests.conftest import succeed
from tests.support import shards_built


def tale(name: str) -> str:
    return " ".join(f"{name} sees the {n} ships" for n in range(900))


TEXTS = {f"{name}.txt": tale(name) for name in ("one", "two", "three")}
SAMPLE = 1000


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three documents under a real tokenizer, in samples of 1,000 tokens.

    Each document spans several samples, and one spans two shards.
    """
    root = tmp_path_factory.mktemp("trace")
    (root / "texts").mkdir()
    for name, text in TEXTS.items():
        (root / "texts" / name).write_text(text)
    corpus = ("--corpus", f"tales={root / 'texts'}", "--vocab-size", 320)
    out = ("--out", root / "shards" / "tokenizer")
    succeed("python", "-m", "data_prep.train_tokenizer", *corpus, *out)
    tokenizer = load_tokenizer(root / "shards" / "tokenizer")
    stream, starts = [], {}
    for name, text in TEXTS.items():
        starts[name] = len(stream)
        stream += [*tokenizer.encode(text), tokenizer.special_ids["eot"]]
    samples = []
    for begin in range(0, len(stream), SAMPLE):
        end = begin + SAMPLE
        inside = [(name, at - begin) for name, at in starts.items() if begin < at < end]
        before = max((start, name) for name, start in starts.items() if start <= begin)
        samples.append((stream[begin:end], [(before[1], before[0] - begin), *inside]))
    half = len(samples) // 2 + 1
    written = []
    for number, group in enumerate((samples[:half], samples[half:])):
        file = f"train/tales/tales-{number:06d}.tar"
        with ShardWriter(root / "shards", file, "tales", tokenizer.vocab_size) as writer:
            for tokens, inside in group:
                writer.add(np.array(tokens), inside)
            written.append(writer.close())
    record = {
        "kind": tokenizer.kind,
        "files": tokenizer.files,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": tokenizer.special_ids,
    }
    assert tuple(record["special_ids"]) == SPECIAL_NAMES
    about = shards_built.about(3)
    about["documents_read"] = 6
    about["dropped"] |= {"empty": 2, "duplicate": 1}
    splits = {"train": {"tales": CorpusEntry(3, len(stream), written)}, "valid": {}}
    settings = shards_built.SETTINGS | {"tokenizer": tokenizer.sha256}
    preparation = {"settings": settings, "corpora": {"tales": about}}
    write_manifest(root / "shards", Manifest(record, preparation, splits))
    return root / "shards"


def lines(capsys) -> list[list[str]]:
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_documents_are_listed_and_printed_back(shards, capsys):
    inspect_shards.main([str(shards)])
    listed = lines(capsys)
    assert [(split, corpus, name) for split, corpus, _, name in listed] == [
        ("train", "tales", name) for name in TEXTS
    ]
    tokens = read_manifest(shards).splits["train"]["tales"].tokens
    assert sum(int(count) for _, _, count, _ in listed) == tokens > 10 * SAMPLE
    for name, text in TEXTS.items():
        inspect_shards.main([str(shards), "--corpus", "tales", "--document", name])
        assert capsys.readouterr().out == text + "\n"
    with pytest.raises(DataError, match="--document four.txt: not in"):
        inspect_shards.main([str(shards), "--document", "four.txt"])
    with pytest.raises(ConfigError, match="--corpus tale: .*did you mean 'tales'"):
        inspect_shards.main([str(shards), "--corpus", "tale"])


def test_a_damaged_record_is_one_line(shards, tmp_path):
    manifest = read_manifest(shards)
    shard = manifest.shards()[0]
    data = (shards / shard.file).read_bytes()
    place = data.index(b'{"corpus"')
    no_json = data[:place] + b"?" + data[place + 1 :]
    no_header = data[: place - 512] + bytes(512) + data[place:]
    for bad in (no_json, no_header, data[:place]):
        (tmp_path / "x.tar").write_bytes(bad)
        with pytest.raises(DataError, match=r"x.tar: sample 0 cannot be read .*verify_shards"):
            document_spans(tmp_path / "x.tar", shard, 0, manifest.dtype.itemsize)


@pytest.fixture
def run(shards, tmp_path) -> tuple[Path, PretrainConfig]:
    config = PretrainConfig(data=DataConfig(shards=str(shards)))
    config.model.n_ctx, config.train.global_batch, config.run.seed = 700, 6, 11
    config.data.order = "global"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return tmp_path, config


@pytest.mark.parametrize("step", [1, 2, 40])  # 40: some epochs later
def test_a_trace_names_the_tokens_that_the_step_was_trained_on(shards, run, capsys, step):
    folder, config = run
    manifest = read_manifest(shards)
    streams = open_streams(config.data, manifest, "train")
    order = WindowOrder({"tales": streams["tales"].tokens}, 700, 11, {})
    batches = Batches(streams, order, Cursor(0, 6 * step - 6), 6, 6, Share(0, 1))
    (trained,) = next(iter(batches)).micro_batches
    trace.main([str(folder), "--step", str(step)])
    head, *rows = lines(capsys)
    assert head == ["window", "corpus", "first", "last", "document", "shard", "sample"]
    tokenizer = load_tokenizer(shards / "tokenizer")
    ids = {
        name: [*tokenizer.encode(text), tokenizer.special_ids["eot"]]
        for name, text in TEXTS.items()
    }
    windows = [[] for _ in range(6)]
    for window, _, first, last, name, file, _ in rows:
        windows[int(window)] += ids[name][int(first) : int(last) + 1]
        assert (shards / file).is_file()
    assert windows == trained.tolist()


def test_a_trace_knows_of_growing_batches_and_of_batches_skipped(shards, run, capsys):
    """Steps of 2, 2, 4, 4, 6, .. windows. After step 4 the run went back to step 3.

    It skipped the windows up to 40.
    """
    folder, config = run
    tokens = {"tales": read_manifest(shards).splits["train"]["tales"].tokens}
    order = WindowOrder(tokens, 700, 11, {})
    sizes = BatchSizes(6, 2, 4)
    epoch, index = divmod(40, order.epoch_windows)
    event = {"to_step": 3, "from_step": 4, "last": {"epoch": epoch, "index": index}}
    (folder / "skipped.jsonl").write_text(json.dumps(event) + "\n")
    firsts = [trace.windows_of(folder, step, sizes, order)[0] for step in range(1, 7)]
    before = [0, *np.cumsum([sizes.at(0), sizes.at(1)])]
    assert firsts == [*before, 40, 40 + sizes.at(3), 46 + sizes.at(3)]
    # A start with other batches after step 5: it goes on where the last one ended.
    batch = BatchSizes(3).to_dict()
    start = {"step": 5, "split": "start", "windows": firsts[5], **batch}
    write_records(folder / "metrics.jsonl", [{"step": 0, "split": "start"}, start])
    found = [trace.windows_of(folder, step, sizes, order) for step in range(1, 9)]
    assert [first for first, _ in found[:6]] == firsts
    assert found[5:] == [(firsts[5], 3), (firsts[5] + 3, 3), (firsts[5] + 6, 3)]
    (folder / "metrics.jsonl").unlink()
    config.train.batch_start, config.train.batch_warmup_steps = 2, 4
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    trace.main([str(folder), "--step", "1"])
    assert {row[0] for row in lines(capsys)[1:]} == {"0", "1"}


def test_a_trace_follows_moved_shards_and_refuses_step_0(shards, run, capsys, tmp_path):
    folder, _ = run
    moved = tmp_path / "moved"
    moved.symlink_to(shards)
    trace.main([str(folder), "--step", "3"])
    there = capsys.readouterr().out
    trace.main([str(folder), "--step", "3", "--shards", str(moved)])
    assert capsys.readouterr().out == there
    with pytest.raises(ConfigError, match="--step 0: steps are counted from 1"):
        trace.main([str(folder), "--step", "0"])


def test_a_trace_refuses_steps_that_were_not_trained(shards, run, capsys):
    folder, _ = run
    trace.main([str(folder), "--step", "9"])
    assert "warning: " in capsys.readouterr().err, "nothing says what was trained"
    with pytest.raises(ConfigError, match=f"--step {10**30}: "):
        trace.main([str(folder), "--step", str(10**30)])
    capsys.readouterr()
    records = [{"step": 0, "split": "start"}, {"step": 10, "split": "train"}]
    for last, write in (
        (0, lambda: write_records(folder / "metrics.jsonl", records[:1])),
        (10, lambda: write_records(folder / "metrics.jsonl", records)),
        (12, lambda: (folder / "status.json").write_text('{"step": 12}')),
        (14, lambda: (folder / "checkpoints" / "step-00000014").mkdir(parents=True)),
    ):
        write()
        for step in (last + 1, 10**11):
            with pytest.raises(ConfigError, match=f"--step {step}: .* up to step {last};"):
                trace.main([str(folder), "--step", str(step)])
        for step in (1, last) if last else ():
            trace.main([str(folder), "--step", str(step)])
        assert capsys.readouterr().err == ""
    for step in (0, -1, -(10**12)):
        with pytest.raises(ConfigError, match=f"--step {step}: steps are counted from 1"):
            trace.main([str(folder), "--step", str(step)])
    write_records(folder / "metrics.jsonl", [{"step": 8, "split": "start"}, records[1]])
    trace.main([str(folder), "--step", "9"])
    with pytest.raises(ConfigError, match="--step 8: the records of .* begin after step 8"):
        trace.main([str(folder), "--step", "8"])


def test_documents_of_one_name_are_told_apart(tokenizer, tmp_path, capsys):
    """books/train/0001.txt and books/valid/0001.txt, and the same name in another corpus."""
    options = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    for option, name in (("corpus", "a"), ("validation", "a"), ("corpus", "b")):
        folder = tmp_path / f"{option}-{name}"
        folder.mkdir()
        (folder / "0001.txt").write_text(f"the {option} of {name}")
        options += [f"--{option}", f"{name}={folder}"]
    build_shards.main(options)
    capsys.readouterr()
    found = [str(tmp_path / "out"), "--document", "0001.txt"]
    for chosen, text in (
        (["--split", "valid"], "the validation of a"),
        (["--split", "train", "--corpus", "a"], "the corpus of a"),
        (["--corpus", "b"], "the corpus of b"),
    ):
        inspect_shards.main([*found, *chosen])
        assert capsys.readouterr().out == text + "\n"
    for chosen, where in (
        ([], "train/a and train/b and valid/a"),
        (["--corpus", "a"], "train/a and valid/a"),
        (["--split", "train"], "train/a and train/b"),
    ):
        with pytest.raises(ConfigError, match=f"is in {where}; choose one by --split"):
            inspect_shards.main([*found, *chosen])
    inspect_shards.main([str(tmp_path / "out"), "--split", "valid"])
    assert [line[0] for line in lines(capsys)] == ["valid"]
    with pytest.raises(DataError, match="--document 0001.txt: not in"):
        inspect_shards.main([*found, "--corpus", "b", "--split", "valid"])


def test_stats_are_the_manifests_and_a_picture(shards, tmp_path, capsys):
    verify_shards.main([str(shards), "--stats", "--picture", str(tmp_path / "lengths.png")])
    out = capsys.readouterr().out
    tokens = TokenStream(shards, read_manifest(shards), "train", "tales").tokens
    row = next(line for line in out.splitlines() if line.startswith("tales"))
    assert row.split()[:4] == ["tales", "train", "3", f"{tokens:,}"]
    assert "2 empty" in out and "1 duplicate" in out and str(tmp_path / "lengths.png") in out
    assert matplotlib.image.imread(tmp_path / "lengths.png").shape[0] > 100
    lengths = []
    for spans in documents(shards, read_manifest(shards), "train", "tales"):
        lengths.append(sum(span.tokens for span in spans))
    assert len(lengths) == 3 and sum(lengths) == tokens
    with pytest.raises(DataError, match="--picture .*choose another file"):
        verify_shards.main([str(shards), "--stats", "--picture", str(tmp_path / "no" / "x.png")])
