"""A peer that hangs, stops or dies where no error reaches the training: the verdict comes first,
and torch's watchdog later."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from gpt1_ds.distributed import heartbeat, nccl, waiting
from tests.conftest import succeed
from tests.support.lost_peers import FAULTY, RANKS

HERE = "all are here\n"
VERDICTS = {
    "hang": f"rank {FAULTY} is alive, in forward, others in backward",
    "stop": f"rank {FAULTY} is silent: stopped, dead, or the machine is",
    "die": f"rank {FAULTY} is silent: stopped, dead, or the machine is",
}


def test_the_verdict_comes_before_the_watchdog(tmp_path):
    words = ["tests.support.lost_peers", str(tmp_path), "4"]
    run = succeed("python", "-m", *words)
    codes = json.loads(run.stdout)
    for fault, verdict in VERDICTS.items():
        folder = tmp_path / fault
        assert codes[fault] == [5, 5 if fault == "hang" else -signal.SIGKILL, 5]
        assert [(folder / f"{rank}.out").read_text() for rank in range(RANKS)] == [HERE] * RANKS
        errors = "".join((folder / f"{rank}.err").read_text() for rank in range(RANKS))
        [line] = [line for line in errors.splitlines() if "error" in line]
        assert line.startswith("error: rank 0 lost a peer (a collective takes more than 4 s); ")
        assert verdict in line and line.endswith("start the run again to resume")
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["step"], status["exit_code"]) == ("failed", 7, 5)


@pytest.fixture
def variables(monkeypatch):
    """None of torch's variables is set."""
    for name in (*nccl.ERROR_HANDLING, nccl.HEARTBEAT):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_nccl_waits_longer_than_the_verdict_can_take(variables, capsys):
    longest = heartbeat.TURNS * (heartbeat.DECIDE_SECONDS + heartbeat.LOOK_SECONDS)
    longest += 3 * heartbeat.LOOK_SECONDS + heartbeat.SAY_SECONDS + heartbeat.LEAVE_SECONDS
    assert nccl.MARGIN_SECONDS > longest
    assert nccl.group_timeout("nccl", 600.0) == 600.0 + nccl.MARGIN_SECONDS
    assert nccl.group_timeout("gloo", 600.0) == 600.0
    nccl.prepare(600.0)
    assert os.environ[nccl.ERROR_HANDLING[0]] == "0"
    assert int(os.environ[nccl.HEARTBEAT]) >= nccl.group_timeout("nccl", 600.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [(nccl.ERROR_HANDLING[0], "1"), (nccl.ERROR_HANDLING[1], "3"), (nccl.HEARTBEAT, "60")],
)
def test_a_users_own_setting_stays_and_is_told(variables, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    nccl.prepare(600.0)
    assert os.environ[name] == value
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {name}={value}: torch may end a rank by SIGABRT")


class Event:
    """A stand-in for an event of a GPU: one of `done` streams has come to its end."""

    done: set[str] = set()

    def record(self, stream: str) -> None:
        self.stream = stream

    def query(self) -> bool:
        return self.stream in self.done


def test_a_stream_that_stands_still_is_a_wait(monkeypatch):
    """Also one beside the stream of the computation, as DeepSpeed's for overlapping reductions."""
    clock, streams = [100.0], ["compute"]
    driver = SimpleNamespace(
        is_available=lambda: True, current_stream=lambda: streams[0], Event=Event
    )
    monkeypatch.setattr(waiting, "torch", SimpleNamespace(cuda=driver))
    monkeypatch.setattr(waiting, "_streams", set())
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for streams[0] in ("compute", "reduce"):
        waiting.in_stream()
    waits = waiting.Waits()
    monkeypatch.setattr(Event, "done", {"compute", "reduce"})
    for _ in range(5):
        clock[0] += 10.0
        assert waits.seconds() == 0.0
    monkeypatch.setattr(Event, "done", {"compute"})
    for waited in (10.0, 20.0, 30.0):
        clock[0] += 10.0
        assert waits.seconds() == waited
    monkeypatch.setattr(Event, "done", {"compute", "reduce"})
    assert waits.seconds() == 0.0
