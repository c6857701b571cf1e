"""Shards from a URL: a complete file or an error for any server; a cache of limited size."""

import errno
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.urls import is_local_fault
from gpt1_ds.data import batches as batches_module
from gpt1_ds.data import order as order_module
from gpt1_ds.data import remote
from gpt1_ds.data.batches import Batches, Share
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import local_shards, open_streams, sound_manifest
from gpt1_ds.data.order import GLOBAL, GROUPED, Cursor, WindowOrder
from gpt1_ds.data.remote import ShardCache
from gpt1_ds.settings.sections import DataConfig
from tests.conftest import ROOT, run
from tests.support.loopback import Server, serve
from tests.support.shards_built import MODEL, Built, build

FAULTS = ["drop", "truncate", "flip", "stall", "503"]


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path / "remote", {"a": [[300], [200, 100], [250], [50]], "b": [[400], [60]]})


@pytest.fixture
def server(built: Built):
    with serve(built.root) as server:
        yield server


def cache_of(
    server: Server, folder: Path, limit_bytes: int = 10**6, attempts: int = 3
) -> ShardCache:
    return ShardCache(server.url, str(folder), limit_bytes, attempts=attempts, stall_seconds=0.3)


@pytest.mark.parametrize(
    "faults", [[], *([fault] for fault in FAULTS), ["drop", "stall"], ["flip", "503"]]
)
def test_a_shard_arrives_whole_whatever_the_server_does(built, server, tmp_path, faults):
    server.faults["a-000001.tar"] = list(faults)
    path = cache_of(server, tmp_path / "cache").fetch(built.shard(1))
    assert path.read_bytes() == built.path(1).read_bytes()
    assert len(server.requests) == len(faults) + 1
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_one_line_with_the_url(built, server, tmp_path, fault):
    server.faults["a-000001.tar"] = [fault] * 99
    began = time.monotonic()
    with pytest.raises(
        DataError, match=f"{server.url}/train/a/a-000001.tar: could not be fetched in 3 attempts"
    ):
        cache_of(server, tmp_path / "cache").fetch(built.shard(1))
    assert time.monotonic() - began < 30 and not list((tmp_path / "cache").glob("*.tar*"))


def test_what_is_not_there_is_told_at_once(built, server, tmp_path):
    built.path(1).unlink()
    with pytest.raises(DataError, match="a-000001.tar: is not there"):
        cache_of(server, tmp_path / "cache").fetch(built.shard(1))
    with pytest.raises(DataError, match=f"{server.url}/nowhere/manifest.json: is not there"):
        local_shards(DataConfig(shards=f"{server.url}/nowhere", cache=str(tmp_path / "cache")))


def test_manifest_and_tokenizer_are_copied_anew_at_every_start(built, server, tmp_path):
    data = DataConfig(shards=server.url, cache=str(tmp_path / "cache"))
    server.faults["manifest.json"] = ["drop"]
    root = local_shards(data)
    assert (root / "tokenizer" / "tokenizer.model").read_bytes() == MODEL
    changed = build(tmp_path / "changed", {"a": [[70]]})
    (built.root / "manifest.json").write_bytes((changed.root / "manifest.json").read_bytes())
    assert read_manifest(local_shards(data)).splits["train"]["a"].tokens == 70


def test_the_folder_stays_below_its_bound_and_keeps_what_was_wanted_last(built, server, tmp_path):
    shards = built.manifest.shards()
    limit = 2 * max(shard.bytes for shard in shards)
    cache = cache_of(server, tmp_path / "cache", limit)
    for shard in shards * 2:
        assert cache.fetch(shard).stat().st_size == shard.bytes
        kept = list((tmp_path / "cache").glob("*.tar"))
        assert sum(path.stat().st_size for path in kept) <= limit and len(kept) <= 2
        time.sleep(0.02)  # times of files are coarse
    count = len(server.requests)
    cache.fetch(shards[-1])
    assert len(server.requests) == count
    with pytest.raises(ConfigError, match="data.cache_bytes 100: below"):
        cache_of(server, tmp_path / "other", 100).fetch(shards[0])


def test_a_damaged_file_in_the_folder_is_fetched_again(built, server, tmp_path):
    path = cache_of(server, tmp_path / "cache").fetch(built.shard(0))
    path.write_bytes(bytes(path.stat().st_size))
    assert (
        cache_of(server, tmp_path / "cache").fetch(built.shard(0)).read_bytes()
        == built.path(0).read_bytes()
    )


def test_shards_are_fetched_ahead_in_their_order(built, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FETCHERS", 1)
    shards = built.manifest.shards()
    room = sum(shard.bytes for shard in shards[:4])
    # The fetching thread gives this one up without a message, until it is asked for.
    server.faults["a-000001.tar"] = ["drop"] * 3
    cache = cache_of(server, tmp_path / "cache", room)
    cache.fetch_ahead(shards)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("*.tar"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(dict.fromkeys(path for path, _ in server.requests)) == [
        shard.file for shard in shards[:4]
    ]
    cache.fetch(shards[1])


def test_batches_are_those_of_the_folder_itself_also_with_little_room(built, server, tmp_path):
    local = DataConfig(shards=str(built.root))
    far = DataConfig(shards=server.url, cache=str(tmp_path / "cache"), cache_bytes=25_000)
    server.faults["a-000002.tar"] = ["flip"]
    batches = []
    for data in (local, far):
        manifest = sound_manifest(data, read_manifest(local_shards(data)))
        streams = open_streams(data, manifest, "train")
        order = WindowOrder({name: stream.tokens for name, stream in streams.items()}, 16, 5, {})
        steps = zip(range(30), Batches(streams, order, Cursor(), 8, 4, Share(0, 1)), strict=False)
        batches.append(np.concatenate([np.concatenate(step.micro_batches) for _, step in steps]))
    assert (batches[0] == batches[1]).all()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 25_000


def test_the_grouped_order_needs_few_shards_at_a_time(tmp_path, monkeypatch):
    """An epoch of 24 shards through a cache of 12, in three lanes, and then the global order.

    A group of a shard's size lies in two shards, and a lane's first group is read at both ends of
    the epoch: each shard is needed three times at most. Without groups the cache is of no use.
    """
    for name, value in (("LANES", 3), ("GROUP_TOKENS", 1000), ("BLOCK_WINDOWS", 8)):
        monkeypatch.setattr(order_module, name, value)
    monkeypatch.setattr(batches_module, "TABLE_WINDOWS", 32)
    built = build(tmp_path / "remote", {"a": [[500, 500]] * 24})
    limit = 12 * built.shard().bytes
    requests = {}
    for kind, epochs in ((GROUPED, 1.0), (GLOBAL, 0.25)):
        folder = tmp_path / kind
        order = WindowOrder({"a": 24_000}, 20, 5, {}, kind)
        with serve(built.root) as server:
            data = DataConfig(shards=server.url, cache=str(folder), cache_bytes=limit)
            streams = open_streams(data, built.manifest, "train")
            batches = Batches(streams, order, Cursor(), 32, 32, Share(0, 1))
            read = []
            for _, batch in zip(range(int(epochs * 1200 / 32)), batches, strict=False):
                read.append(batch.micro_batches[0].numpy())
                kept = [int(path.name.split(".")[1]) for path in folder.glob("*.tar")]
                assert sum(kept) <= limit
            requests[kind] = len(server.requests)
        _, starts = order.locate(np.arange(32 * len(read)))
        assert (np.concatenate(read) == built.tokens[(starts[:, None] + range(21)) % 24_000]).all()
    assert requests[GROUPED] <= 3 * 24 < requests[GLOBAL], requests


FETCH = """
import sys
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.remote import ShardCache
cache = ShardCache(sys.argv[1], sys.argv[2], 10**6, stall_seconds=2.0)
for shard in read_manifest(sys.argv[3]).shards():
    cache.fetch(shard)
"""


def test_processes_of_a_node_share_one_download(built, server, tmp_path):
    words = [sys.executable, "-c", FETCH, server.url, str(tmp_path / "cache"), str(built.root)]
    processes = [subprocess.Popen(words, cwd=ROOT) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert sorted(path for path, _ in server.requests) == sorted(
        shard.file for shard in built.manifest.shards()
    )


def test_a_killed_process_leaves_nothing_that_hurts(built, server, tmp_path):
    server.faults["a-000000.tar"] = ["stall"]
    words = [sys.executable, "-c", FETCH, server.url, str(tmp_path / "cache"), str(built.root)]
    process = subprocess.Popen(words, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*.part")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    (part,) = (tmp_path / "cache").glob("*.part")
    os.utime(part, (0, 0))
    shards = built.manifest.shards()
    cache = cache_of(server, tmp_path / "cache", 2 * shards[0].bytes)
    for shard in shards:
        cache.fetch(shard)
    assert not part.exists()


def test_a_file_url_and_threads(built, tmp_path):
    cache = ShardCache(f"file://{built.root}", str(tmp_path / "cache"), 10**6)
    shards, seen = built.manifest.shards(), []
    threads = [
        threading.Thread(target=lambda: seen.extend(map(cache.fetch, shards))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 4 * len(shards) and {p.read_bytes() for p in seen} == {
        (built.root / shard.file).read_bytes() for shard in shards
    }


@pytest.mark.parametrize(
    "url", ["pipe://touch x", "memory://x", "https://", "simplecache::https://x/y", "gopher://x/y"]
)
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(ConfigError, match="not a URL of file, http, https, s3"):
        ShardCache(url, str(tmp_path), 10**6)


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_names_the_extra(built, tmp_path):
    cache = ShardCache("gs://bucket/shards", str(tmp_path), 10**6)
    with pytest.raises(ConfigError, match=r"gs://.*pip install 'gpt1-ds\[remote\]'"):
        cache.fetch(built.shard(0))


def test_train_ends_with_one_line_and_code_3(server):
    words = ("--deepspeed_config", "ds_configs/cpu.json", f"data.shards={server.url}/nowhere")
    done = run("python", "gpt1_ds/train.py", *words, timeout_seconds=90)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and f"{server.url}/nowhere/manifest.json: is not there" in line


def test_a_local_disk_is_told_at_once_and_not_the_network(built, server, tmp_path):
    cache = cache_of(server, tmp_path / "cache", attempts=99)
    tmp_path.joinpath("cache", "locks", built.shard(1).sha256).mkdir()
    with pytest.raises(DataError, match=f"data.cache {tmp_path}/cache: Is a directory; free"):
        cache.fetch(built.shard(1))
    cache.root.write_bytes(b"")
    with pytest.raises(DataError, match=f"data.cache {tmp_path}/cache: File exists; free"):
        cache.copy("manifest.json")
    assert server.requests == []
    full = OSError(errno.ENOSPC, "No space left on device")
    assert is_local_fault(full, tmp_path) and is_local_fault(OSError(5, "I/O error"), tmp_path)
    assert not is_local_fault(ConnectionResetError(104, "reset"), tmp_path)
    assert not is_local_fault(TimeoutError(), tmp_path) and not is_local_fault(ValueError(), Path())


def test_a_login_page_is_no_manifest(server, tmp_path):
    server.faults["manifest.json"] = ["portal", "portal", "portal"]
    with pytest.raises(DataError, match="the last: (cut short|a web page came in its place)"):
        cache_of(server, tmp_path / "cache").copy("manifest.json")
    assert not list((tmp_path / "cache").rglob("manifest.json*"))


def test_requests_go_through_the_proxies_of_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    cache = ShardCache("http://shards.invalid", str(tmp_path / "cache"), 10**6, attempts=1)
    with pytest.raises(DataError, match="http://shards.invalid/absent: is not there"):
        cache.copy("absent")
    assert [path for path, _ in server.requests] == ["http://shards.invalid/absent"]
    cache_of(server, tmp_path / "cache").copy("manifest.json")
    assert server.requests[-1][0] == "manifest.json"


def test_no_message_and_no_name_has_a_secret(server, tmp_path):
    host = server.url.removeprefix("http://")
    url = f"http://user:sesame@{host}/nowhere?X-Amz-Signature=sesame"
    cache = ShardCache(url, str(tmp_path / "cache"), 10**6, attempts=1)
    with pytest.raises(DataError, match="is not there") as absent:
        cache.copy("manifest.json")
    dead = ShardCache("http://user:sesame@127.0.0.1:9/x", str(tmp_path), 10**6, attempts=1)
    with pytest.raises(DataError, match="127.0.0.1") as refused:
        dead.copy("manifest.json")
    with pytest.raises(ConfigError, match="not a URL") as other:
        ShardCache("gopher://user:sesame@host/x", str(tmp_path), 10**6)
    said = " ".join(map(str, (absent.value, refused.value, other.value, cache.root, dead.root)))
    assert "sesame" not in said, said
    (path, _), *_ = server.requests
    assert path == "nowhere/manifest.json?X-Amz-Signature=sesame"
