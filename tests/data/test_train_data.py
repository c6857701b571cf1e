"""A training run with damaged and exchanged shards."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt1_ds.data.manifest import CorpusEntry, read_manifest, write_manifest
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.token_stream import TokenStream
from tests.conftest import run


@pytest.fixture(scope="module")
def shards(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stories' training stream cut into three shards."""
    root, manifest = tmp_path_factory.mktemp("cut") / "shards", read_manifest(tiny_shards)
    shutil.copytree(tiny_shards, root, ignore=shutil.ignore_patterns("train", ".*"))
    stream = TokenStream(tiny_shards, manifest, "train", "books")
    written = []
    whole = stream.read(np.zeros(1, np.int64), stream.tokens)[0]
    for number, tokens in enumerate(np.array_split(whole, 3)):
        file = f"train/books/books-{number:06d}.tar"
        with ShardWriter(root, file, "books", manifest.tokenizer["vocab_size"]) as writer:
            for part in np.array_split(tokens, len(tokens) // 60_000 + 1):
                writer.add(part, [(f"story-{number}", 0)])
            written.append(writer.close())
    entry = CorpusEntry(sum(shard.documents for shard in written), stream.tokens, written)
    splits = manifest.splits | {"train": {"books": entry}}
    write_manifest(root, dataclasses.replace(manifest, splits=splits))
    return root


def train(shards: Path, runs: Path, *options: str):
    return run(
        "python",
        "gpt1_ds/train.py",
        "--deepspeed_config",
        "ds_configs/cpu.json",
        f"data.shards={shards}",
        f"run.dir={runs}",
        "run.name=r",
        "model.preset=gpt1-tiny",
        "model.n_ctx=32",
        "train.global_batch=4",
        "eval.batches=1",
        "log.every=1",
        *options,
        timeout_seconds=120,
    )


def test_a_damaged_shard_ends_the_start_or_is_left_out_and_a_resume_needs_the_same(
    shards, tmp_path
):
    bad = tmp_path / "bad"
    shutil.copytree(shards, bad)
    path = bad / "train/books/books-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:5000] + bytes([data[5000] ^ 4]) + data[5001:])

    done = train(bad, tmp_path, "train.max_steps=2")
    assert done.returncode == 3 and not (tmp_path / "r").exists()
    (line,) = done.stderr.splitlines()
    assert f"{path}: sha256 differs" in line and "data.quarantine=true" in line

    done = train(bad, tmp_path, "train.max_steps=2", "data.quarantine=true")
    assert done.returncode == 0, done.stderr
    lost = read_manifest(shards).shards()[1].tokens
    assert f"1 of 3 shards left out, {lost:,} of" in done.stdout
    assert "quarantine train/books/books-000001.tar" in done.stdout
    said = run("python", "-m", "data_prep.trace", tmp_path / "r", "--step", 2).stdout.splitlines()
    rows = [line.split("\t") for line in said if line[:1].isdigit()]
    assert {row[0] for row in rows} == set("0123")
    assert {row[4] for row in rows} <= {"story-0", "story-2"}

    path.write_bytes(data)  # whole again: the order would be another one
    done = train(bad, tmp_path, "train.max_steps=4", "data.quarantine=true")
    assert done.returncode == 3
    assert "began with other shards of train/books" in done.stderr.splitlines()[-1]
    logged = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in logged) == 2
