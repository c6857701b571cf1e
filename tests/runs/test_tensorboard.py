"""A real TensorBoard in a real browser, and `watch`, for a run that is killed and resumed."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt1_ds.base.records import read_metrics
from gpt1_ds.reports.run_states import FRESH_SECONDS, RunState, Watched
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
    "loss/train",
    "loss/valid/books",
    "x_progress/tokens",
    "x_progress/skipped_steps",
    "x_progress/epoch",
    "x_memory/host_bytes",
    "x_checkpoint/seconds",
    "x_checkpoint/bytes",
    "x_time/data_seconds",
    "x_time/forward_seconds",
    "x_time/backward_seconds",
    "x_time/optimizer_seconds",
}


STEPS, EVAL_EVERY, CHECKPOINT_EVERY = 120, 20, 50
SECOND_LR = 0.002


@pytest.fixture(scope="module")
def seen() -> dict[str, RunState]:
    """What `watch` shows of the run: while it runs, once it is killed, and when it is done."""
    return {}


@pytest.fixture(scope="module")
def resumed_run(
    tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory, seen: dict[str, RunState]
) -> Path:
    """A folder of runs with one that was killed past its first checkpoint and started again.

    The second start has another learning rate.
    """
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
    watched = Watched([runs])
    [seen["running"]] = watched.states(time.time())
    first_start.kill()
    first_start.wait()
    [seen["killed"]] = watched.states(time.time() + FRESH_SECONDS)
    succeed("python", *words, f"optim.lr={SECOND_LR}")
    [seen["done"]] = watched.states(time.time())
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


def get(address: str, path: str, question: dict | None = None) -> dict | list:
    """The answer of the server in JSON; a `question` is posted."""
    content = None if question is None else json.dumps(question).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, content, headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply)


def test_watch_tells_a_killed_run_from_one_that_runs(resumed_run, seen):
    running, killed, done = seen["running"], seen["killed"], seen["done"]
    assert running.state == "running" and running.step > 0 and running.total == STEPS
    assert running.tokens_per_second > 0 and not running.note
    assert (running.node, running.ranks) == (socket.gethostname(), 1)
    assert killed.state == "dead" and killed.note.startswith("its process is gone")
    assert killed.checkpoint == CHECKPOINT_EVERY and killed.checkpoint_age < 600
    assert (done.state, done.step, done.checkpoint, done.note) == ("done", STEPS, STEPS, "")
    last = read_metrics(resumed_run / "resumed", "valid")[-1]
    assert done.score == f"{last['loss']:.4f}", "the log was written anew by the resume"


def test_the_tags_of_the_design_are_there(board):
    tags = set(get(board, "/data/plugin/scalars/tags")["resumed"])
    assert tags >= TAGS
    assert sorted(tags)[:2] == ["loss/train", "loss/valid/books"], "the first that it shows"
    groups = sorted({tag.partition("/")[0] for tag in tags})
    assert groups[:3] == ["loss", "train", "valid"] and all(g[:2] == "x_" for g in groups[3:])


def test_hparams_has_one_session_with_the_settings_and_losses_of_now(board, resumed_run):
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    experiment = get(board, "/data/plugin/hparams/experiment", {"experimentName": ""})
    columns = [{"metric": metric["name"]} for metric in experiment["metricInfos"]]
    question = {"allowedStatuses": states, "colParams": columns, "startIndex": 0, "sliceSize": 9}
    found = get(board, "/data/plugin/hparams/session_groups", question)
    [group] = found["sessionGroups"]
    [session] = group["sessions"]
    assert (session["name"], session["status"]) == ("resumed", "STATUS_SUCCESS")
    settings = group["hparams"]
    # The first start had another learning rate, and has shown it.
    assert settings["lr"] == SECOND_LR and settings["batch"] == 4 and settings["ranks"] == 1
    assert settings["model"] == "2 x 128" and settings["model.n_layer"] == 2
    assert settings["precision"] == "fp32" and settings["schedule.kind"] == "cosine"
    last = {record["split"]: record for record in read_metrics(resumed_run / "resumed")}
    values = {value["name"]["tag"]: value for value in session["metricValues"]}
    for split, tag in (("train", "loss/train"), ("valid", "loss/valid/books")):
        assert values[tag]["value"] == pytest.approx(last[split]["loss"], rel=1e-5)
        assert values[tag]["trainingStep"] == STEPS
    start = next(r for r in read_metrics(resumed_run / "resumed", "start"))
    assert session["startTimeSecs"] == start["time"] < session["endTimeSecs"]


def test_the_layout_draws_train_and_validation_loss_in_one_chart(board):
    layout = get(board, "/data/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart for chart in layout["category"][0]["chart"]}
    drawn = {title: set() for title in charts}
    for title, chart in charts.items():
        for pattern in chart["multiline"]["tag"]:
            query = urllib.parse.urlencode({"run": "resumed", "tag": pattern})
            found = get(board, f"/data/plugin/custom_scalars/scalars?{query}")
            drawn[title] |= set(found["tag_to_events"])
    assert drawn["Loss: training and validation"] == {"train/loss", "valid/loss/books"}
    assert drawn["Learning rate"] == {"train/lr"}
    assert drawn["Tokens a second"] == {"train/tokens_per_second"}
    assert "x_time/backward_seconds" in drawn["Seconds of a step, by part"]


def test_the_command_and_the_settings_are_text(board):
    assert {"command", "config.yaml", "deepspeed.json"} <= {
        tag.removesuffix("/text_summary") for tag in get(board, "/data/plugin/text/tags")["resumed"]
    }
    query = "run=resumed&tag=command/text_summary"
    commands = get(board, f"/data/plugin/text/text?{query}")
    assert [text["step"] for text in commands] == [0, CHECKPOINT_EVERY], "one for each start"
    assert "train.py" in commands[0]["text"] and "optim.lr=0.002" in commands[1]["text"]


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
        f"{board}/#timeseries",  # it opens the first two groups
    ]
    # The page's clock is virtual. It can run out before the server has answered every card.
    for _ in range(5):
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        # Only a card shows a whole tag; "TensorBoard" alone is also on an empty page.
        if "loss/train" in done.stdout and "loss/valid/books" in done.stdout:
            return
    pytest.fail(done.stdout[-3000:])
