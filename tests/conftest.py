"""Fixtures and rules shared by all tests.

`GPT1_REQUIRE` (a comma list of slurm, data, mpi, chromium, history, mmdebstrap, triton) turns
"skipped, because this machine lacks it" into a failure: CI sets it, so that no skip passes there.
`GPT1_DATA` is the folder of real data (default ../shared/data); `history` is the git history that
holds earlier commits.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.ranks import RankPool

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
COMPONENTS = {"slurm", "data", "mpi", "chromium", "history", "mmdebstrap", "triton"}
REQUIRED = {name for name in os.environ.get("GPT1_REQUIRE", "").split(",") if name}

# Set at import: child processes inherit these, and torch reads the first one when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
# The commands of the launchers and of this project are in the folder of the interpreter. They must
# be found without activating the environment.
os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
if os.geteuid() == 0:
    # Open MPI refuses root, which is what containers and CI run as.
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
# A test started inside a batch job or under a launcher must not take that job's rank for its own.
for name in [
    name for name in os.environ if name.startswith(("SLURM_", "OMPI_COMM_", "PMI_", "PMIX_"))
]:
    del os.environ[name]
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    if unknown := REQUIRED - COMPONENTS:
        raise pytest.UsageError(
            f"GPT1_REQUIRE names {sorted(unknown)}; choose from {sorted(COMPONENTS)}"
        )


def need(component: str, reason: str) -> NoReturn:
    """Skip this test because `component` is missing, or fail it where `GPT1_REQUIRE` asks for that
    component."""
    assert component in COMPONENTS
    if component in REQUIRED:
        pytest.fail(f"GPT1_REQUIRE names {component}, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real corpora and labelled sets."""
    folder = Path(os.environ.get("GPT1_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not (folder / "books").is_dir():
        need(
            "data",
            f"there is no real data at {folder}: "
            "set GPT1_DATA to a folder with books/, lm1b/ and tasks/",
        )
    return folder


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """`ranks(2)` is the session's pool of two ranks; see `tests/support/ranks.py`."""
    pools: dict[int, RankPool] = {}
    yield lambda world_size=2: pools.setdefault(world_size, RankPool(world_size))
    for pool in pools.values():
        pool.close()


def run(
    *command: object, timeout_seconds: float = 240.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's root to its end, as a user would; `env` is added to the
    environment."""
    words = [str(word) for word in command]
    if words[0] == "python":
        words[0] = sys.executable
    try:
        return subprocess.run(
            words,
            cwd=ROOT,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        output = b"".join(part[-2000:] for part in (error.stdout, error.stderr) if part).decode(
            errors="replace"
        )
        pytest.fail(
            f"{' '.join(words)}: still running after {timeout_seconds:.0f} s\n{output}",
            pytrace=False,
        )


def succeed(
    *command: object, timeout_seconds: float = 240.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """`run`, and fail the test with the command's output unless it exits 0."""
    done = run(*command, timeout_seconds=timeout_seconds, **env)
    if done.returncode:
        output = done.stdout[-4000:] + done.stderr[-4000:]
        pytest.fail(f"{' '.join(map(str, command))}: exit {done.returncode}\n{output}")
    return done


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample, small: stories below books/{train,valid}, labelled sets below tasks/."""
    folder = tmp_path_factory.mktemp("sample") / "sample"
    succeed("python", "-m", "data_prep.sample", "--megabytes", 0.5, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the sample's stories under a tokenizer of 512 pieces."""
    folder = tmp_path_factory.mktemp("tiny")
    train, valid = f"books={sample / 'books' / 'train'}", f"books={sample / 'books' / 'valid'}"
    tokenizer = folder / "tok"
    succeed(
        "python",
        "-m",
        "data_prep.train_tokenizer",
        "--corpus",
        train,
        "--vocab-size",
        512,
        "--out",
        tokenizer,
    )
    succeed(
        "python",
        "-m",
        "data_prep.build_shards",
        "--tokenizer",
        tokenizer,
        "--corpus",
        train,
        "--validation",
        valid,
        "--out",
        folder / "shards",
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the training command on those shards: 60 steps of a tiny model with a context of
    32."""
    runs = tmp_path_factory.mktemp("runs")
    succeed(
        "python",
        "gpt1_ds/train.py",
        "--deepspeed_config",
        "ds_configs/cpu.json",
        f"data.shards={tiny_shards}",
        f"run.dir={runs}",
        "run.name=tiny",
        "model.preset=gpt1-tiny",
        "model.n_ctx=32",
        "train.max_steps=60",
        "train.global_batch=8",
        "optim.lr=3e-3",
        "schedule.warmup_steps=10",
        "eval.batches=null",
    )
    return runs / "tiny"


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small corpora of several layouts; like the three fixtures below to be copied, not changed."""
    from tests.support.cases_shards import make_corpora

    return make_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def tokenizer(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.cases_shards import make_tokenizer

    return make_tokenizer(corpora, tmp_path_factory.mktemp("tok"))


@pytest.fixture(scope="session")
def options(corpora: Path, tokenizer: Path) -> list[str]:
    """What build_shards takes for them."""
    from tests.support.cases_shards import build_options

    return build_options(corpora, tokenizer)


@pytest.fixture(scope="session")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards that one undisturbed process makes."""
    from data_prep import build_shards

    out = tmp_path_factory.mktemp("alone") / "shards"
    build_shards.main([*options, "--out", str(out)])
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, a megabyte large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip(
            "mounting a small file system needs root; file size limits are tested everywhere"
        )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
