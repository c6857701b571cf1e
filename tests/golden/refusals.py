"""How an error is taken: the exit code, and the one line that the user sees."""

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt1_ds.base.errors import guard
from tests.conftest import ROOT
from tests.golden.store import Group, scratch

Act = Callable[[Path], Any]
"""What must fail; it gets an empty folder."""
Main = Callable[[list[str]], Any]


def refusal(act: Act) -> list[Any]:
    """[exit code, last line on stderr] of a command that does `act`.

    Names of folders are replaced: <tmp> is the empty folder, <made> the folder of `scratch`.
    """
    errors, before = io.StringIO(), sys.argv
    with tempfile.TemporaryDirectory(prefix="refusal-") as folder:
        sys.argv = ["golden"]
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                guard(lambda argv: act(Path(folder)) and None)
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
    line = errors.getvalue().splitlines()[-1] if errors.getvalue() else ""
    for path, name in ((folder, "<tmp>"), (scratch(), "<made>"), (ROOT, "<root>")):
        line = line.replace(str(path), name)
    return [code, line]


def add(group: Group, prefix: str, acts: Mapping[str, Act]) -> None:
    """Take the refusals of `acts` as values of `group`."""
    for name, act in acts.items():
        group.functions[f"{prefix}: {name}"] = lambda act=act: refusal(act)


def add_commands(group: Group, prefix: str, main: Main, words: Mapping[str, str]) -> None:
    """The same for command lines, their words between blanks; {tmp} is the empty folder."""
    for name, line in words.items():
        group.functions[f"{prefix}: {name}"] = lambda line=line: refusal(command(main, line))


def command(main: Main, line: str) -> Act:
    return lambda tmp: main([word.replace("{tmp}", str(tmp)) for word in line.split()])


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
