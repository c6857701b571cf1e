"""How a run goes on is read from its folder: every state, damaged files, and few bytes."""

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gpt1_ds.reports.newest_records import BLOCK_BYTES, MOST_BLOCKS
from gpt1_ds.reports.run_states import Holder, Watched, judge

HERE = socket.gethostname()
NOBODY = 65534


def record(step, split="train", **values):
    return json.dumps({"step": step, "split": split, "elapsed_seconds": step * 1.0, **values})


def make_run(folder: Path, state="running", pid=None, **status) -> Path:
    folder.mkdir(parents=True)
    (folder / ".lock").write_text(f"process {pid or os.getpid()} on {HERE}\n")
    lines = [record(step, loss=10.0 - step, tokens_per_second=1000.0 + step) for step in (1, 2)]
    lines.append(record(2, "valid", corpus="books", loss=4.5, perplexity=90.0))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    content = {"state": state, "step": 2, "exit_code": None, **status}
    (folder / "status.json").write_text(json.dumps(content))
    return folder


def states(*roots: Path, after=0.0):
    return {row.name: row for row in Watched(roots).states(time.time() + after)}


def test_a_finished_run_is_read_from_its_files(tiny_run: Path, tmp_path: Path):
    shutil.copytree(tiny_run, tmp_path / "suite" / "tiny")
    lines = (tiny_run / "metrics.jsonl").read_text().splitlines()
    last = {record["split"]: record for record in map(json.loads, lines)}
    row = states(tmp_path)["suite/tiny"]
    assert (row.state, row.step, row.total, row.note) == ("done", 60, 60, "")
    assert row.loss == last["train"]["loss"] and row.score == f"{last['valid']['loss']:.4f}"
    assert row.checkpoint == 60 and row.checkpoint_age < 3600
    assert (row.node, row.ranks) == (HERE, 1)
    assert row.tokens_per_second is None and row.seconds_left is None, "it does not run"
    assert list(states(tmp_path / "suite" / "tiny")) == ["tiny"], "the folder of a run itself"


def test_runs_that_run_come_first(tmp_path: Path):
    ended = 2**22 + 1  # above the largest process number of Linux
    for name, values in {
        "a-done": {"state": "done"},
        "b-stopped": {"state": "stopped", "exit_code": 75},
        "c-diverged": {"state": "failed", "exit_code": 4},
        "d-killed": {"pid": ended},
        "e-running": {"total_steps": 50, "eta_seconds": 90, "loss": 1.0},
    }.items():
        make_run(tmp_path / name, **values)
    rows = states(tmp_path, after=30)
    assert list(rows) == ["e-running", "d-killed", "c-diverged", "b-stopped", "a-done"]
    assert [row.state for row in rows.values()] == ["running", "dead", "failed", "stopped", "done"]
    assert rows["c-diverged"].note == "exit code 4: diverged"
    assert rows["d-killed"].note.startswith("its process is gone")
    running = rows["e-running"]
    assert (running.step, running.total, running.loss, running.score) == (2, 50, 8.0, "4.5000")
    assert running.tokens_per_second == 1002 and 55 < running.seconds_left <= 60


NOW = 1e9
ELSEWHERE = Holder(1, "another-node", NOW - 5000)
MINE = Holder(os.getpid(), HERE, time.time())
REUSED = Holder(os.getpid(), HERE, 1000.0)
RUNNING = {"state": "running"}


@pytest.mark.parametrize(
    ("status", "holder", "silence", "pace", "state"),
    [
        (RUNNING, ELSEWHERE, 60, 2, "running"),
        (RUNNING, ELSEWHERE, 200, 2, "dead"),
        (RUNNING, ELSEWHERE, 200, 30, "running"),  # a slow run logs every 30 s
        (RUNNING, ELSEWHERE, 400, 30, "dead"),
        (RUNNING, ELSEWHERE, 800, 0, "running"),  # no record yet: it compiles
        (RUNNING, ELSEWHERE, 1000, 0, "dead"),
        (RUNNING, ELSEWHERE, -300, 2, "running"),  # the clock of the file server is ahead
        (RUNNING, None, 60, 2, "running"),
        (RUNNING, None, 600, 2, "dead"),
        (RUNNING, REUSED, 60, 2, "dead"),  # another process has its number
        (RUNNING, REUSED, 1, 2, "running"),  # it has just written: it is in another container
        ({"state": "done"}, REUSED, 9e5, 2, "done"),
        ({"state": "stopped"}, ELSEWHERE, 9e5, 2, "stopped"),
        ({}, ELSEWHERE, 4000, 2, "damaged"),
        ({"state": ["x"]}, None, 9e5, 2, "damaged"),
        ({}, ELSEWHERE._replace(since=NOW - 60), 9e5, 0, "starting"),
        ({"state": "stopped"}, ELSEWHERE._replace(since=NOW - 60), 9e5, 0, "starting"),
        ({"state": "stopped"}, ELSEWHERE._replace(since=NOW - 1000), 9e5, 0, "stopped"),
        (RUNNING, ELSEWHERE._replace(since=NOW - 1000), 9e5, 0, "dead"),
    ],
)
def test_what_a_run_is_by_its_signs(status, holder, silence, pace, state):
    assert judge(status, holder, NOW - silence, NOW, pace)[0] == state


def test_a_run_of_this_machine_that_is_silent_still_runs():
    now = time.time()
    assert judge(RUNNING, MINE, now - 7200, now, 2)[0] == "starting", "its lock is newer"
    quiet = MINE._replace(since=now - 9000)
    state, note = judge(RUNNING, MINE._replace(since=now), now + 1, now + 7200, 2)
    assert (state, note) == ("running", "no sign of it for 2 h 0 min")
    assert judge(RUNNING, quiet, now - 7200, now, 2)[0] == "dead", "this process is younger"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path):
    run = make_run(tmp_path / "long")
    line = record(7, loss=1.0, filler="x" * 300) + "\n"
    with (run / "metrics.jsonl").open("a") as file:
        for _ in range(100):
            file.write(line * 1000)
    assert (run / "metrics.jsonl").stat().st_size > 30e6
    watched = Watched([tmp_path])
    bytes_read = []
    for step in (8, 9):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(record(step, loss=2.0) + "\n")
        before = read_so_far()
        [row] = watched.states(time.time())
        bytes_read.append(read_so_far() - before)
        assert row.loss == 2.0 and not row.note
    # There is no validation near the end, so it looks back for one, but not far.
    assert bytes_read[0] < (MOST_BLOCKS + 1) * BLOCK_BYTES and bytes_read[1] < 50_000


def read_so_far() -> int:
    """Bytes that this process has read, by the kernel's count."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_what_was_added_and_what_a_resume_has_rewritten(tmp_path: Path):
    run = make_run(tmp_path / "run")
    log = run / "metrics.jsonl"
    watched = Watched([tmp_path])

    def loss_and_note():
        [row] = watched.states(time.time())
        return row.loss, row.note

    assert loss_and_note() == (8.0, "")
    whole = record(3, loss=5.0)
    for text, seen in (
        (whole[:20], (8.0, "")),  # half a line
        (whole[20:] + "\n", (5.0, "")),
        ("{damaged}\n[]\n", (5.0, "metrics.jsonl: 2 damaged lines")),
        (record(4, loss=4.0) + "\n" + "x" * 400_000, (4.0, "metrics.jsonl: 2 damaged lines")),
    ):
        with log.open("a") as file:
            file.write(text)
        assert loss_and_note() == seen
    (run / "new").write_text(record(1, loss=9.0) + "\n")
    (run / "new").rename(log)
    assert loss_and_note() == (9.0, "")


@pytest.mark.parametrize(
    ("name", "content", "state", "note"),
    [
        ("status.json", b'{"state": "runn', "damaged", "status.json: cannot be read"),
        ("status.json", b"\xff\0", "damaged", "status.json: cannot be read"),
        ("status.json", b"[]", "damaged", "status.json: not an object"),
        ("status.json", b'{"state": "failed", "exit_code": []}', "failed", ""),
        ("status.json", b'{"state": "running", "step": "x", "eta_seconds": 1e999}', "dead", ""),
        ("metrics.jsonl", b"\0\0\xff\n" * 9, "done", "metrics.jsonl: 9 damaged lines"),
        ("metrics.jsonl", b"", "done", ""),
        ("config.yaml", b"train: [\n", "done", "config.yaml: cannot be read"),
        ("config.yaml", b"train: 5\n", "done", ""),
        ("deepspeed.json", b'{"train_batch_size": "x"}', "done", ""),
        (".lock", b"\xff" * 500, "done", ""),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, name, content, state, note):
    run = make_run(tmp_path / "run", state="done", pid=2**22 + 1)
    (run / name).write_bytes(content)
    row = states(tmp_path, after=90_000)["run"]
    assert row.state == state and note in row.note


def test_unreadable_runs_have_a_row_and_nothing_is_written_or_locked():
    """As another user: root can read everything."""
    root = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        root.chmod(0o755)
        for name in ("closed", "closed-status", "open"):
            make_run(root / name, state="done")
        (root / "closed").chmod(0)
        (root / "closed-status" / "status.json").chmod(0)
        before = tree(root)
        rows, written = as_nobody(root)
        assert rows == [
            ["closed", "unreadable", "Permission denied"],
            ["closed-status", "unreadable", "status.json: Permission denied"],
            ["open", "done", ""],
        ]
        assert written == [] and tree(root) == before
    finally:
        (root / "closed").chmod(0o755)
        shutil.rmtree(root)


def tree(root: Path):
    """Every file with its size and times of change."""
    paths = [root, *sorted(root.rglob("*"))]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def as_nobody(root: Path):
    """What a process of the user nobody sees, and each file that it opens to write or locks."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        changes = []

        def watch(event, values):
            if event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                changes.append(str(values[0]))
            if event in ("fcntl.flock", "fcntl.lockf", "os.mkdir", "os.rename", "os.remove"):
                changes.append(event)

        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            sys.addaudithook(watch)
            rows = [[r.name, r.state, r.note] for r in Watched([root]).states(time.time())]
            os.write(writer, json.dumps([rows, changes]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(content)


def test_folders_are_looked_for_at_several_levels_and_loops_end(tmp_path: Path):
    for name in ("a", "suite/sst2-seed-1", "suite/sst2-seed-2", "x/y/z/deep"):
        make_run(tmp_path / name, state="done")
    make_run(tmp_path / "a" / "checkpoints" / "inner")
    make_run(tmp_path / ".hidden")
    (tmp_path / "suite" / "loop").symlink_to(tmp_path / "suite")
    (tmp_path / "0-latest").symlink_to(tmp_path / "a")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "file").write_text("")
    assert list(states(tmp_path)) == ["a", "suite/sst2-seed-1", "suite/sst2-seed-2", "x/y/z/deep"]
    suite = tmp_path / "suite"
    both = states(tmp_path / "a", suite)
    assert list(both) == [str(tmp_path / "a"), *(f"{suite}/sst2-seed-{n}" for n in (1, 2))]
