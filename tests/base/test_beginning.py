"""Ctrl-C ends a command with one line, at any moment; warnings that help nobody are silent."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gpt1_ds.base import beginning
from tests.conftest import ROOT, run, succeed
from tests.support.terminal import Screen, run_on_terminal

TRAIN = ("--deepspeed_config", "ds_configs/cpu_fp32.json", "model.preset=gpt1-tiny")
SMALL = ("model.n_embd=32", "model.n_ctx=32", "train.max_steps=4000", "train.global_batch=4")
BEFORE = "stopped: interrupted before it began; nothing has changed\n"


def interrupted(words: list[str], moment, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a command that gets SIGINT when `moment(pid)` holds."""
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 120
        while not moment(process.pid) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=120)[1]
        finally:
            process.kill()
        return process.returncode, errors


def has_loaded(library: str):
    return lambda pid: library in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize(
    ("words", "library"),
    [
        (["gpt1_ds/train.py"], "libtorch_cpu"),
        (["-m", "gpt1_ds.finetune"], "libtorch_cpu"),
        (["-m", "gpt1_ds.eval"], "_multiarray_umath"),
        (["-m", "data_prep.train_tokenizer"], "_sentencepiece"),
    ],
)
def test_ctrl_c_during_imports(words, library):
    assert interrupted(words, has_loaded(library)) == (130, BEFORE)


def test_of_several_ranks_the_first_one_says_it():
    words, moment = ["gpt1_ds/train.py"], has_loaded("libtorch_cpu")
    assert interrupted(words, moment, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1") == (130, "")


def training(tiny_shards, folder: Path) -> list[str]:
    words = ["gpt1_ds/train.py", *TRAIN, *SMALL, "log.every=1", "eval.batches=1", "run.name=r"]
    return [*words, f"data.shards={tiny_shards}", f"run.dir={folder}"]


def test_ctrl_c_while_the_engine_starts(tiny_shards, tmp_path):
    moment = (tmp_path / "r" / ".lock").exists
    code, errors = interrupted(training(tiny_shards, tmp_path), lambda pid: moment())
    nothing = "step 0 of 4000 was the first: nothing is trained yet; the same command continues"
    assert (code, errors) == (75, f"stopped: {nothing}\n")


def test_ctrl_c_in_a_training_on_a_narrow_terminal(tiny_shards):
    seen: list[list[str]] = []

    def look(screen: Screen, pid: int) -> None:
        if not seen and any("step 5/4000" in line for line in screen.lines()):
            assert screen.wraps == 0
            seen.append([line for line in screen.lines() if line])
            os.kill(pid, signal.SIGINT)

    with tempfile.TemporaryDirectory() as folder:  # a short path: no word is cut
        command = [sys.executable, *training(tiny_shards, Path(folder))]
        code, screen = run_on_terminal(command, 60, look)
    lines = seen[0]
    bars = [number for number, line in enumerate(lines) if "|" in line]
    banner = [number for number, line in enumerate(lines) if line.startswith(("run  ", "steps  "))]
    assert bars == [len(lines) - 1] and len(banner) == 2, "one bar, below all that is said"
    rest = "".join(screen.lines()[screen.lines().index(lines[bars[0] - 1]) + 2 :])
    assert code == 75 and rest.startswith("stopped: step ") and "is committed in" in rest


WARNER = """
import sys
sys.orig_argv[1:] = ["-m", "gpt1_ds.plan"]
import gpt1_ds, warnings
warnings.warn("old call", FutureWarning)
warnings.warn("Can't initialize NVML")
warnings.warn("CUDA initialization: the driver\\n is too old")
"""


def test_nothing_looks_through_what_the_imports_have_made(tmp_path):
    script = tmp_path / "gpt1_ds" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "import gc\nfrom gpt1_ds.base.errors import command\nimport torch\n"
        "def main(argv):\n    print(gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
        "command(main, __name__)\n"
    )
    assert succeed(sys.executable, script).stdout == "True True\n"


BUSY = """
import atexit, sys, threading, time
from datetime import timedelta
from gpt1_ds.base.errors import DataError, command
import torch
from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=5))

def beat():
    while True:
        store.set("key", "value") if sys.argv[1] == "store" else torch.ones(1 << 20).add_(1)

def main(argv):
    threading.Thread(target=beat, daemon=True).start()
    atexit.register(print, "what is registered is called")
    time.sleep(0.2)
    print("done", end="")
    if argv[1] == "fault":
        raise DataError("a fault")

command(main, __name__)
"""


@pytest.mark.parametrize("thread", ["store", "operator"])
@pytest.mark.parametrize(("end", "code"), [("well", 0), ("fault", 3)])
def test_a_thread_that_is_left_in_c_plus_plus_does_not_change_the_end(tmp_path, thread, end, code):
    """Python's own end would be SIGABRT."""
    script = tmp_path / "gpt1_ds" / "train.py"
    script.parent.mkdir()
    script.write_text(BUSY)
    words = [sys.executable, str(script), thread, end]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout == "donewhat is registered is called\n"
    assert done.stderr == ("error: a fault\n" if code else "")


def test_only_warnings_that_a_user_can_act_on_are_shown_in_one_line():
    done = run("python", "-c", WARNER)
    assert done.stderr == "warning: CUDA initialization: the driver is too old\n"
    assert "FutureWarning: old call" in run("python", "-W", "always", "-c", WARNER).stderr


def test_a_library_is_left_alone(monkeypatch):
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    beginning.begin()
    assert signal.getsignal(signal.SIGINT) is handler and sys.unraisablehook is hook
    for words, script, expected in (
        (["python", "-m", "gpt1_ds.train"], "-m", True),
        (["python", "-m", "pytest", "-m", "gpt1_ds"], "-m", False),
        (["python", "gpt1_ds/train.py"], "gpt1_ds/train.py", True),
        (["python", "/usr/bin/gpt1-eval"], "/usr/bin/gpt1-eval", True),
        (["python", "mine.py"], "mine.py", False),
    ):
        monkeypatch.setattr(sys, "orig_argv", words)
        monkeypatch.setattr(sys, "argv", [script])
        assert beginning._is_command() == expected
