"""Real ranks that were started differently: one line, the same on all, before anything is built."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt1_ds.distributed.environment import free_port
from tests.conftest import ROOT
from tests.support.ranks import RANK_ENV, die_with_parent

DS = ["--deepspeed_config", "ds_configs/cpu.json"]


@pytest.fixture
def cases(tmp_path) -> dict:
    """What rank 0 and rank 1 are given, and a part of the error that both raise."""
    for name, lr in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"optim: {{lr: 1.0e-{lr}}}\n")
        (tmp_path / f"{name}.json").write_text(f'{{"zero_optimization": {{"stage": {lr}}}}}')
    a, b = [*DS, "--config", f"{tmp_path}/a.yaml"], [*DS, "--config", f"{tmp_path}/b.yaml"]
    stages = [["--deepspeed_config", f"{tmp_path}/{name}.json"] for name in "ab"]
    six = [*DS, "train.global_batch=6"]
    tf32, cublas = "NVIDIA_TF32_OVERRIDE", {"CUBLAS_WORKSPACE_CONFIG": ":4096:2"}
    exact = [*DS, "train.deterministic=true"]
    return {
        "override": ([*DS, "run.seed=1"], [*DS, "run.seed=2"], "2 run.seed is 1 on {0}, 2 on {1}"),
        "option of one": ([*DS], [*DS, "model.n_layer=3"], "2 model.n_layer is 12 on {0}, 3 on"),
        "flag of one": ([*DS, "--from-scratch"], DS, "2 --from-scratch is true on {0}, false on"),
        "YAML": (a, b, "2 optim.lr is 0.1 on {0}, 0.01 on {1}"),
        "JSON": (*stages, "2 --deepspeed_config zero_optimization.stage is 1 on {0}, 2 on {1}"),
        "error of rank 1": (DS, [*DS, "optim.lr=x"], "2 rank 1 ({host}): option 'optim.lr=x'"),
        "error of rank 0": ([*DS, "optim.lr=x"], DS, "2 option 'optim.lr=x'"),
        "error of both": ([*DS, "optim.lr=x"], [*DS, "optim.lr=x"], "2 option 'optim.lr=x'"),
        "files of rank 1": (a, [*DS, "--config", "/absent"], "2 rank 1 ({host}): --config /absent"),
        "variable": (DS, DS, {}, {tf32: "0"}, f"2 environment variable {tf32} is null on {{0}}"),
        "deterministic of one": (exact, DS, "2 train.deterministic is true on {0}, false on {1}"),
        "cuBLAS of rank 1": (exact, exact, {}, cublas, "2 rank 1 ({host}): train.deterministic is"),
        "more ranks": (six, six, {}, {"WORLD_SIZE": "3"}, "2 WORLD_SIZE is 2 on {0}, 3 on {1}"),
        "fewer ranks": (six, six, {"WORLD_SIZE": "3"}, {}, "2 WORLD_SIZE is 3 on {0}, 2 on {1}"),
        "places": ([*DS, "data.shards=/a", "data.cache=/a"], [*DS, "data.cache_bytes=9"], ""),
    }


def test_ranks_that_differ_end_with_one_line(ranks, cases):
    given = []
    for one, other, *variables, _ in cases.values():
        ours, theirs = variables or ({}, {})
        given.append([(one, ours), (other, theirs)])
    began = time.monotonic()
    by_rank = ranks(2).run("tests.support.cases_start:starts", given, [free_port() for _ in given])
    assert time.monotonic() - began < 30
    host = os.uname().nodename
    for (name, (*_, expected)), rank_0, rank_1 in zip(cases.items(), *by_rank, strict=True):
        words = expected.format(f"rank 0 ({host})", f"rank 1 ({host})", host=host)
        code, _, part = words.partition(" ")
        assert rank_0.startswith(code) and part in rank_0, (name, rank_0)
        assert rank_1 == rank_0, name


def test_an_error_of_one_rank_alone_is_printed_by_that_rank(ranks):
    """Rank 0 may still wait for something else; else a run ends without a line."""
    ranks(2).close()  # a rank speaks once in its life
    assert ranks(2).run("tests.support.cases_start:speakers") == [[False], [True, True, False]]


def test_ranks_with_other_code(tmp_path):
    """Two real starts: rank 1 has a copy of the package in which one comment was added."""
    shutil.copytree(ROOT / "gpt1_ds", tmp_path / "gpt1_ds", ignore=shutil.ignore_patterns("*.pyc"))
    with (tmp_path / "gpt1_ds/model/gpt.py").open("a") as file:
        file.write("# another version\n")
    port, processes = str(free_port()), []
    for rank, root in enumerate((ROOT, tmp_path)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_PORT": port, "PYTHONPATH": str(root)}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(root / "gpt1_ds/train.py"), *DS, f"run.dir={tmp_path}"],
                cwd=ROOT,
                env=os.environ | RANK_ENV | place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=die_with_parent,
            )
        )
    (out, err), (other_out, other_err) = (each.communicate(timeout=60) for each in processes)
    assert [process.returncode for process in processes] == [2, 2], err + other_err
    line = "error: the ranks of this start differ: the code of gpt1_ds is "
    assert err.startswith(line) and err.count("\n") == 1 and err.count("with sha256") == 2
    assert not (out or other_out or other_err or Path(tmp_path / "gpt1").exists())
