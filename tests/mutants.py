"""Seeded mutations of the pure modules, each judged by the module's own tests: `make mutants`.

A mutation changes one comparison, one operator or one constant of one module, in a copy of the tree
in a temporary folder. Then the module's tests run in a forked process, so torch need not be
imported again. A mutation that the tests do not notice is a survivor. It is printed as
`file:line before -> after`. A survivor needs a test with the right value, or an entry in
`EQUIVALENT` (tests/mutated_modules.py) with the reason why it changes nothing.

Exit codes: 0, at least nine of ten mutations are noticed; 1, fewer; 2, a table of
tests/mutated_modules.py is wrong, or tests fail without any mutation.
"""

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.mutated_modules import EQUIVALENT, MODULES
from tests.mutations import Mutation, mutations

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("gpt1_ds", "data_prep", "tests", "ds_configs", "setup.cfg", "pyproject.toml")
HEAVY = (
    *("torch", "deepspeed", "ftfy", "pytest", "scipy.stats", "sentencepiece", "seqeval.metrics"),
    *("sklearn.metrics", "webdataset", "yaml"),
)
"""Modules that the tests import and that take long; none of them is mutated."""
ENOUGH = 0.9
LONGEST_SECONDS = 60
SHOWN = 80
"""Most characters of an expression that are printed."""
SURVIVED = 0
"""Exit code of pytest where all tests pass."""


def is_equivalent(name: str, mutation: Mutation) -> bool:
    return any(
        entry.module == name
        and entry.before == mutation.before
        and entry.after in (None, mutation.after)
        for entry in EQUIVALENT
    )


def check_equivalents(name: str, all_made: list[Mutation]) -> None:
    """An entry of `EQUIVALENT` must match a mutation: else the code has changed since."""
    for entry in EQUIVALENT:
        matches = [
            m for m in all_made if (m.before, entry.after or m.after) == (entry.before, m.after)
        ]
        if entry.module == name and not matches:
            fail(f"EQUIVALENT {name}: no mutation of `{entry.before}`; correct or remove the entry")


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run_tests(copy: Path, tests: tuple[str, ...], log: Path) -> int | None:
    """Exit code of pytest on `tests` in a forked process; None after LONGEST_SECONDS."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(copy)
            sys.path[0] = str(copy)
            # `tests` must be that of the copy too.
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider"]
            options.append(f"--basetemp={copy.parent / 'basetemp'}")
            code = int(pytest.main([*options, *tests]))
        finally:
            os._exit(code)
    deadline = time.monotonic() + LONGEST_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)


def described(mutation: Mutation) -> str:
    """`before -> after`, of long expressions only what surrounds the difference."""
    before, after = mutation.before, mutation.after
    same = len(os.path.commonprefix([before, after]))
    begin = 0 if len(before) <= SHOWN else max(0, same - SHOWN // 2)
    texts = (text[begin : begin + SHOWN].replace("\n", " ") for text in (before, after))
    return " -> ".join(texts)


def judge(name: str, count: int, seed: int, copy: Path) -> tuple[int, int]:
    """How many mutations of one module were tried, and how many of them its tests noticed."""
    module, log = MODULES[name], copy.parent / "log"
    path = copy / module.path
    original = path.read_text(encoding="utf-8")
    all_made = mutations(original, module.only)
    check_equivalents(name, all_made)
    candidates = [mutation for mutation in all_made if not is_equivalent(name, mutation)]
    chosen = random.Random(f"{seed} {name}").sample(candidates, min(count, len(candidates)))
    # Without a mutation, but unparsed like the others: comments and line numbers must not matter.
    path.write_text(ast.unparse(ast.parse(original)), encoding="utf-8")
    if run_tests(copy, module.tests, log) != SURVIVED:
        print(log.read_text(errors="replace")[-4000:])
        fail(f"{name}: its tests fail, or are not found, without any mutation")
    begin, noticed = time.monotonic(), 0
    for mutation in sorted(chosen, key=lambda m: m.number):
        path.write_text(mutation.source, encoding="utf-8")
        code = run_tests(copy, module.tests, log)
        noticed += code != SURVIVED
        if code == SURVIVED:
            print(f"{module.path}:{mutation.line} {described(mutation)}", flush=True)
    path.write_text(original, encoding="utf-8")
    seconds = time.monotonic() - begin
    print(f"{name}: {noticed} of {len(chosen)} noticed, {seconds:.0f} s", flush=True)
    return len(chosen), noticed


def import_what_tests_import() -> None:
    """Once, here, and not in each forked process."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        CUDA_VISIBLE_DEVICES="",
        PYTHONDONTWRITEBYTECODE="1",
    )
    os.environ.setdefault("GPT1_DATA", str(ROOT.parent / "shared" / "data"))
    # Two versions of a module of the same length within a second would share one .pyc file.
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)


def copied_tree(folder: Path) -> Path:
    copy = folder / "tree"
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--count", type=int, default=9, help="mutations of each module (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    parser.add_argument(
        "--only", action="append", choices=list(MODULES), help="this module; repeatable"
    )
    options = parser.parse_args()
    import_what_tests_import()
    begin, tried, noticed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copied_tree(Path(folder))
        for name in options.only or MODULES:
            counts = judge(name, options.count, options.seed, copy)
            tried, noticed = tried + counts[0], noticed + counts[1]
    share, minutes = noticed / tried, (time.monotonic() - begin) / 60
    print(f"{noticed} of {tried} mutations noticed ({share:.1%}), ", end="")
    print(f"seed {options.seed}, {minutes:.1f} minutes")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
