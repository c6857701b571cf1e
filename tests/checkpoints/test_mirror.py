"""Copies of checkpoints at a URL: whole or not there, whatever the other side does; restored."""

import importlib.util
import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints import mirror
from gpt1_ds.checkpoints.folder import checkpoint_folders, step_folder
from gpt1_ds.checkpoints.mirror import Mirror, Store, copy_checkpoint, prune
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.restoring import restore_from_mirror
from gpt1_ds.settings.sections import CheckpointConfig, PretrainConfig, RunConfig
from tests.conftest import ROOT
from tests.support.s3_server import BUCKET, S3, s3_server

spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)

numbers = itertools.count()


@pytest.fixture(scope="module")
def s3():
    with s3_server() as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        patch.setattr(mirror, "STALL_SECONDS", 1.0)
        yield s3


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A run with five checkpoints, each of two ranks."""
    run = tmp_path_factory.mktemp("source") / "gpt1"
    for step in range(1, 6):
        folder = step_folder(run / "checkpoints", step)
        scale.write_checkpoint(folder, GPTConfig(50, 1, 2, 8, 8), 2, 2)
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.model").write_bytes(b"pieces")
    (run / "config.yaml").write_text("run:\n  name: gpt1\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    return run


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/mirror"
    request.getfixturevalue("s3")
    return new_url()


def new_url() -> str:
    return f"{BUCKET}/{next(numbers)}/gpt1"


def checkpoint(run: Path, step: int) -> Path:
    return step_folder(run / "checkpoints", step)


def settings(folder: Path, url: str) -> PretrainConfig:
    return PretrainConfig(
        run=RunConfig(name=folder.name, dir=str(folder.parent)),
        checkpoint=CheckpointConfig(mirror=url),
    )


def restored(folder: Path, url: str) -> list[Path]:
    restore_from_mirror(settings(folder, url), from_scratch=False)
    return checkpoint_folders(folder / "checkpoints")


def same(one: Path, other: Path) -> bool:
    files = sorted(path.name for path in one.iterdir())
    return files == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


def test_the_newest_are_kept_and_the_newest_comes_back(source, url, tmp_path):
    copies = Mirror(url, 2, source)
    for step in range(1, 5):
        copies.add(checkpoint(source, step))
        assert copies.holds(checkpoint(source, step)) or step in (1, 2)
        assert copies.finish(30)
    store = Store(url)
    assert store.steps() == ["step-00000004", "step-00000003"]
    found = restored(tmp_path / "new" / "gpt1", url)
    assert [path.name for path in found] == ["step-00000004"]
    assert same(found[0], checkpoint(source, 4))
    new = tmp_path / "new" / "gpt1"
    for name in ("metrics.jsonl", "config.yaml", "tokenizer/tokenizer.model"):
        assert (new / name).read_bytes() == (source / name).read_bytes()
    # A newer own checkpoint stays the newest; an older one does not.
    shutil.copytree(checkpoint(source, 5), checkpoint(new, 5))
    assert len(restored(new, url)) == 2
    shutil.rmtree(checkpoint(new, 5))
    shutil.rmtree(checkpoint(new, 4))
    shutil.copytree(checkpoint(source, 1), checkpoint(new, 1))
    assert [path.name for path in restored(new, url)] == ["step-00000004", "step-00000001"]


def test_a_damaged_copy_is_passed_over(source, tmp_path, capsys):
    url = f"file://{tmp_path}/mirror"
    store = Store(url)
    for step in (1, 2, 3):
        copy_checkpoint(store, source, checkpoint(source, step))
    copies = tmp_path / "mirror"
    path = checkpoint(copies, 3) / "state.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    (checkpoint(copies, 2) / "MANIFEST.json").unlink()
    (found,) = restored(tmp_path / "gpt1", url)
    assert same(found, checkpoint(source, 1))
    assert "step-00000003: state.json differs from its sha256; trying" in capsys.readouterr().err
    (checkpoint(copies, 1) / "MANIFEST.json").write_text("{}")
    with pytest.raises(DataError, match="no checkpoint there passes its manifest"):
        restored(tmp_path / "other" / "gpt1", url)
    for step in (1, 3):  # what a kill leaves before the first copy is whole
        (checkpoint(copies, step) / "MANIFEST.json").rename(tmp_path / f"{step}.json")
    assert restored(tmp_path / "anew" / "gpt1", url) == []
    for step in (1, 3):
        (tmp_path / f"{step}.json").rename(checkpoint(copies, step) / "MANIFEST.json")
    assert not prune(store, 3) and store.steps() == ["step-00000003", "step-00000001"]


def test_another_run_and_a_start_from_scratch_are_refused(source, tmp_path):
    url = f"file://{tmp_path}/mirror"
    copy_checkpoint(Store(url), source, checkpoint(source, 1))
    with pytest.raises(ConfigError, match="holds the run gpt1, and run.name is other; give each"):
        restored(tmp_path / "other", url)
    with pytest.raises(ConfigError, match="--from-scratch: checkpoint.mirror file://.* holds step"):
        restore_from_mirror(settings(tmp_path / "gpt1", url), from_scratch=True)
    for wrong in ("https://x/y", "runs/copy", "memory://x", "s3://"):
        with pytest.raises(ConfigError, match="checkpoint.mirror .*: not a URL of file, s3, gs"):
            restored(tmp_path / "gpt1", wrong)


@pytest.mark.parametrize("fault", ["drop", "lost", "stall", "503"])
def test_faults_are_tried_again_and_told_once(source, s3: S3, tmp_path, capsys, fault):
    url = new_url()
    copies = Mirror(url, 3, source)
    s3.proxy.faults[:] = [fault] * 4
    began = time.monotonic()
    copies.add(checkpoint(source, 1))
    assert time.monotonic() - began < 0.5
    assert copies.finish(90), capsys.readouterr()
    assert same(restored(tmp_path / "gpt1", url)[0], checkpoint(source, 1))
    assert capsys.readouterr().err.count("tried again until the run ends") <= 1


def test_what_is_refused_holds_nothing_up_and_is_said_at_the_end(source, s3, tmp_path, capsys):
    url = new_url()
    copies = Mirror(url, 3, source)
    s3.close()
    try:
        began = time.monotonic()
        for step in (1, 2, 3):
            copies.add(checkpoint(source, step))
        assert time.monotonic() - began < 0.5 and copies.holds(checkpoint(source, 3))
        assert not copies.finish(3.0) and time.monotonic() - began < 6
        assert "step-00000003 is not copied; it is in" in capsys.readouterr().err
        with pytest.raises(DataError, match=f"checkpoint.mirror {url}: not reached in 5 attempts"):
            restored(tmp_path / "gpt1", url)
    finally:
        s3.open()
    assert copies.finish(60) and Store(url).steps() == ["step-00000003"]


COPY = """
import sys
from pathlib import Path
from gpt1_ds.checkpoints.mirror import Store, copy_checkpoint, prune
store, run = Store(sys.argv[1]), Path(sys.argv[2])
sys.stdin.readline()
for step in (1, 2, 3):
    copy_checkpoint(store, run, run / "checkpoints" / f"step-{step:08d}")
    prune(store, 2)
"""


def killed_at(s3: S3, source: Path, url: str, number: int | None) -> int:
    """Copy three checkpoints in a process that is killed at a request; its number of requests."""
    words = [sys.executable, "-c", COPY, url, str(source)]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE)
    s3.proxy.requests.clear()
    s3.proxy.kill_at = (number, process.pid) if number else None
    process.communicate(b"\n", timeout=120)
    s3.proxy.kill_at = None
    assert process.returncode == (-9 if number else 0)
    return len(s3.proxy.requests)


def check_kill(s3: S3, source: Path, folder: Path, number: int) -> str:
    """What comes back after a kill at that request is one of the checkpoints, whole."""
    url = new_url()
    killed_at(s3, source, url, number)
    found = restored(folder / str(number) / "gpt1", url)
    for path in found:
        assert same(path, source / "checkpoints" / path.name)
    killed_at(s3, source, url, None)
    assert Store(url).steps() == ["step-00000003", "step-00000002"]
    return found[0].name[-1] if found else "0"


def test_a_kill_at_a_request_leaves_whole_checkpoints(source, s3, tmp_path):
    assert check_kill(s3, source, tmp_path, 40) in "12"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_kill_at_every_request_leaves_whole_checkpoints(source, s3, tmp_path):
    total = killed_at(s3, source, new_url(), None)
    steps = [check_kill(s3, source, tmp_path, number) for number in range(1, total + 1)]
    assert steps == sorted(steps) and set(steps) == set("0123")
