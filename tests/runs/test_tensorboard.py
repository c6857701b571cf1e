"""A real TensorBoard in a real browser, for a resumed run."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, succeed
from tests.support.chromium import find_chromium
from tests.support.ranks import die_with_parent

TAGS = {
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "train/tokens_per_second",
    "train/mfu",
    "valid/loss/books",
    "valid/perplexity/books",
    "train/tokens",
    "train/skipped_steps",
    "train/host_bytes",
    "checkpoint/seconds",
    "checkpoint/bytes",
    "train/epoch",
    "train/data_seconds",
    "train/forward_seconds",
    "train/backward_seconds",
    "train/optimizer_seconds",
}


STEPS, EVAL_EVERY, CHECKPOINT_EVERY = 120, 20, 50


@pytest.fixture(scope="module")
def resumed_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that was killed past its first checkpoint and started again."""
    runs = tmp_path_factory.mktemp("board") / "runs"
    words = [
        "gpt1_ds/train.py",
        "--deepspeed_config",
        "ds_configs/cpu_fp32.json",
        f"data.shards={tiny_shards}",
        f"run.dir={runs}",
        "run.name=resumed",
        "model.preset=gpt1-tiny",
        f"train.max_steps={STEPS}",
        "train.global_batch=4",
        f"eval.every={EVAL_EVERY}",
        "eval.batches=1",
        f"checkpoint.every={CHECKPOINT_EVERY}",
        "log.every=1",
    ]
    first_start = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    deadline = time.monotonic() + 120
    while last_logged(runs / "resumed") < CHECKPOINT_EVERY + 5:
        assert time.monotonic() < deadline and first_start.poll() is None
        time.sleep(0.02)
    first_start.kill()
    first_start.wait()
    succeed("python", *words)
    return runs


def last_logged(run: Path) -> int:
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError):  # not yet there, or its last line half written
        return 0


@pytest.fixture(scope="module")
def board(resumed_run: Path) -> Iterator[str]:
    """Address of `tensorboard --logdir` over that folder, once it has read the run."""
    words = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        resumed_run,
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    log_path = resumed_run.parent / "tensorboard.log"
    with open(log_path, "w") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            address = re.search(r"at (http://\S+?)/? ", log_path.read_text())
            if address and "resumed" in get(address[1], "/data/plugin/scalars/tags"):
                break
            assert time.monotonic() < deadline and process.poll() is None, log_path.read_text()
            time.sleep(0.3)
        yield address[1]
    finally:
        process.kill()
        process.wait()


def get(address: str, path: str) -> dict | list:
    with urllib.request.urlopen(address + path, timeout=20) as reply:
        return json.load(reply)


def test_the_tags_of_the_design_are_there(board):
    assert TAGS <= set(get(board, "/data/plugin/scalars/tags")["resumed"])


@pytest.mark.parametrize(
    ("tag", "steps"),
    [
        ("train/loss", range(1, STEPS + 1)),
        ("train/lr", range(1, STEPS + 1)),
        ("valid/perplexity/books", range(0, STEPS + 1, EVAL_EVERY)),
    ],
    ids=["loss", "lr", "perplexity"],
)
def test_steps_rise_without_duplicates_over_a_resume(board, tag, steps):
    points = get(
        board, f"/data/plugin/scalars/scalars?run=resumed&tag={tag}"
    )  # [wall time, step, value]
    assert [step for _, step, _ in points] == list(steps)


def test_metrics_jsonl_and_the_board_agree(board, resumed_run):
    lines = (resumed_run / "resumed" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [record["loss"] for record in map(json.loads, lines) if record["split"] == "train"]
    shown = get(board, "/data/plugin/scalars/scalars?run=resumed&tag=train/loss")
    assert [value for _, _, value in shown] == pytest.approx(logged, rel=1e-5)


def test_a_browser_shows_the_loss(board, tmp_path):
    chromium = find_chromium()
    words = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--window-size=1400,1600",
        "--virtual-time-budget=30000",
        "--dump-dom",
        f"{board}/?tagFilter=loss%7Cperplexity#timeseries",  # of several groups it opens only two
    ]
    # The page's clock is virtual. It can run out before the server has answered every card.
    for _ in range(5):
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        # Only a card shows a whole tag; "TensorBoard" alone is also on an empty page.
        if "train/loss" in done.stdout and "valid/perplexity/books" in done.stdout:
            return
    pytest.fail(done.stdout[-3000:])
