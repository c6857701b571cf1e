"""benchmarks/gpu.py: rows, deadline and child processes; its checks, on the CPU."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from benchmarks.on_gpu import numerics, report, wheels
from benchmarks.on_gpu.rows import LAST_WINDOWS, Options, in_order
from benchmarks.on_gpu.running import Row, run_rows
from gpt1_ds.model import kernels
from tests.conftest import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
HERE = "tests.benchmarks.gpu_rows"


def row(name: str, process: str = "one", seconds: float = 60.0, **arguments: object) -> Row:
    return Row(f"{name} {process}", process, f"{HERE}:{name}", arguments, seconds)


def results_of(rows: list[Row], seconds: float = 60.0) -> list[tuple[Row, dict]]:
    results: list[tuple[Row, dict]] = []
    deadline = time.monotonic() + seconds
    run_rows(rows, ENVIRONMENT, deadline, lambda *result: results.append(result))
    assert time.monotonic() < deadline + 2
    return results


def test_a_check_that_fails_raises_hangs_or_dies_is_a_row():
    names = ("passes", "fails", "raises", "dies", "passes", "hangs", "passes")
    rows = [row(name, seconds=1.0) for name in names]
    results = results_of(rows)
    assert [found for found, _ in results] == rows
    verdicts = [report.verdict(result) for _, result in results]
    assert verdicts == ["passed", "failed", "fault", "fault", "passed", "fault", "passed"]
    faults = [result.get("fault", "") for _, result in results]
    assert faults[2] == "RuntimeError: out of memory"
    assert faults[3].startswith("the process ended with -9")
    assert faults[5] == "took too long"
    pids = {result["found"] for _, result in results if result.get("passed")}
    assert len(pids) == 3, "a child that ended is followed by a new one"


def test_neighbours_of_one_process_share_a_child():
    results = results_of([row("passes"), row("passes"), row("passes", "two")])
    first, second, third = (result["found"] for _, result in results)
    assert first == second != third


def test_the_deadline_keeps_the_rows_so_far(tmp_path):
    rows = [row("passes"), row("hangs"), row("passes"), row("passes", "two")]
    results = []

    def done(row: Row, result: dict) -> None:
        results.append((row, result))
        report.write(tmp_path / "out", results, {"rows": len(rows)})

    began = time.monotonic()
    run_rows(rows, ENVIRONMENT, began + 4, done)
    assert time.monotonic() < began + 6
    written = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [entry["verdict"] for entry in written] == ["passed", "fault", "untried", "untried"]
    assert written[1]["fault"] == "the time of the whole run was over"
    assert written[2]["untried"] == "no time was left"
    table = (tmp_path / "out.md").read_text()
    assert "| passes one | passed |" in table
    assert "| hangs one | fault | the time of the whole run was over |" in table


def test_a_child_ends_with_its_parent(tmp_path):
    file = tmp_path / "pid"
    hanging = row("hangs", pid_file=str(file))
    program = (
        "import os, time; from benchmarks.on_gpu.running import Row, run_rows\n"
        f"run_rows([{hanging!r}], os.environ, time.monotonic() + 60, print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, cwd=ROOT)
    try:
        wait_until(lambda: file.exists() and file.read_text(), 40)
        child = int(file.read_text())
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_alive(child), 10)
    finally:
        parent.kill()


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_rows_come_in_the_order_of_their_value():
    rows = in_order(Options())
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    order = (
        "device",
        "bf16 loss and gradients",
        "dropout of attention",
        "gpt1_ds, 8 windows",
        "train.py, 64 windows",
        "torch modules, compiled, 64 windows",
        "transformers, plain loop, 64 windows",
        "resume, train.deterministic",
        "gpt1_ds ZeRO-3, 64 windows",
        f"gpt1_ds, {LAST_WINDOWS} windows",
    )
    places = [names.index(name) for name in order]
    assert places == sorted(places) and places[-1] == len(names) - 1
    for windows in (4, 8, 32, 64):
        assert f"gpt1_ds, {windows} windows" in names


def test_every_row_has_a_function_that_takes_its_arguments():
    for found in in_order(Options()):
        module, function = found.work.split(":")
        work = getattr(importlib.import_module(module), function)
        inspect.signature(work).bind(**found.arguments)
        assert json.loads(json.dumps(found.arguments)) == found.arguments


def test_one_call_writes_both_files(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", str(tmp_path / "out"), "--seconds", "100"]
    command += ["--only", "device", "dropout of states", "head and loss"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    verdicts = {entry["row"]: entry["verdict"] for entry in rows}
    assert verdicts["device"] == verdicts["dropout of states"] == "passed"
    assert verdicts["head and loss"] == "untried"
    assert done.stdout.strip() == (tmp_path / "out.md").read_text().strip()


def test_a_rank_of_two_reduces_beside_the_backward_pass():
    """A GPU has a stream for it, and compiled blocks too."""
    rows = [found for found in in_order(Options()) if found.name.startswith("reduction")]
    assert [found.arguments["compiled"] for found in rows] == [False, False, True]
    results = results_of(rows[:2], 100.0)
    assert [result["passed"] for _, result in results] == [True, True], results


@pytest.fixture
def undone() -> Iterator[None]:
    """What joining a process group leaves in this process is gone after the test."""
    environment, mask = dict(os.environ), os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("rate", [1 / 16, 2 / 16])
def test_a_dropout_rate_in_sixteenths_is_found(monkeypatch, rate):
    def rounded(q, k, v, p, keys):
        return kernels.causal_attention(q, k, v, rate, keys)

    assert numerics.attention_dropout()["passed"]
    monkeypatch.setattr(numerics, "causal_attention", rounded)
    assert not numerics.attention_dropout()["passed"]


@pytest.mark.usefixtures("undone")
def test_another_mask_in_backward_is_found(monkeypatch):
    class Other(torch.autograd.Function):
        """Attention whose gradient of the values has another mask."""

        @staticmethod
        def forward(ctx, v, arguments):
            with torch.enable_grad():
                q, k, p, keys = arguments
                again = v.detach().requires_grad_()
                ctx.other = kernels.causal_attention(q.detach(), k, again, p, keys + 1), again
            return kernels.causal_attention(q.detach(), k, v, p, keys)

        @staticmethod
        def backward(ctx, grad):
            out, values = ctx.other
            return torch.autograd.grad(out, values, grad)[0], None

    monkeypatch.setattr(
        numerics, "causal_attention", lambda q, k, v, p, keys: Other.apply(v, (q, k, p, keys))
    )
    result = numerics.attention_dropout()
    assert abs(result["rate"] - 0.1) < 0.01 and not result["passed"]


@pytest.mark.usefixtures("undone")
def test_losses_that_differ_from_the_cpu_are_found(monkeypatch):
    forward = numerics.GPT.forward
    calls = []

    def later_wrong(self, *arguments, **options):
        calls.append(1)
        hidden, nll = forward(self, *arguments, **options)
        return hidden, nll * (1.0 if len(calls) <= 6 else 1.001)

    assert numerics.float32_losses()["passed"]
    monkeypatch.setattr(numerics.GPT, "forward", later_wrong)
    assert not numerics.float32_losses()["passed"]


def wheel(folder, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "VALUE = 1\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )


def test_only_missing_packages_are_installed(tmp_path):
    wheel(tmp_path, "made_up_package")
    wheel(tmp_path, "torch")
    target = tmp_path / "target"
    assert wheels.install_missing(tmp_path, target) == ["made_up_package"]
    assert (target / "made_up_package.py").exists() and not (target / "torch.py").exists()


def test_a_folder_without_wheels_ends_with_one_line(tmp_path):
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        str(tmp_path / "out"),
        "--wheels",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: --wheels {tmp_path}: no wheels there; make gpu-wheels writes them\n"
    )
