"""Exit codes, near matches, and which rank says the line."""

import sys
from itertools import chain

import pytest

from gpt1_ds.base import errors
from gpt1_ds.base.errors import (
    DONE,
    LAUNCHER_RANKS,
    ConfigError,
    DataError,
    StopRequested,
    command,
    guard,
    near,
)
from tests.conftest import run


def test_exit_codes():
    classes = (
        "ConfigError",
        "DataError",
        "DivergedError",
        "PeerError",
        "StopRequested",
        "UserError",
    )
    assert [getattr(errors, name).exit_code for name in classes] == [2, 3, 4, 5, 75, 2]
    assert DONE == 0


def test_near_names_one_choice_or_all():
    choices = ["optim", "model", "option"]
    assert near("optm", choices) == "did you mean 'optim'?"
    assert near("zzz", choices) == "choose from: model, optim, option"
    assert near("zzz", []) == "choose from: "


def guarded(monkeypatch, capsys, main, *words: str, **options) -> tuple[object, str]:
    """Exit code, and what is said on stderr. `options` are those of `guard`."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as end:
        guard(main, **options)
    return end.value.code, capsys.readouterr().err


def failing(error: BaseException):
    def main(argv: list[str]) -> None:
        raise error

    return main


def test_an_error_is_one_line(monkeypatch, capsys):
    end = guarded(monkeypatch, capsys, failing(DataError("a\n  b")))
    assert end == (3, "error: a b\n")
    assert guarded(monkeypatch, capsys, failing(StopRequested("now"))) == (
        75,
        "stopped: now\n",
    )


def test_a_command_starts_at_once_only_as_the_main_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "a"])
    seen: list[list[str]] = []
    cli = command(seen.append, "gpt1_ds.train")
    assert seen == []
    with pytest.raises(SystemExit):
        cli()
    assert seen == [["a"]]
    with pytest.raises(SystemExit):
        command(seen.append, "__main__")
    assert seen == [["a"], ["a"]]


def test_codes_of_a_good_end(monkeypatch, capsys):
    assert guarded(monkeypatch, capsys, lambda argv: None) == (0, "")
    assert guarded(monkeypatch, capsys, lambda argv: 7) == (7, "")


def test_the_commands_words_are_passed_on_without_traceback(monkeypatch, capsys):
    seen = []
    guarded(monkeypatch, capsys, seen.extend, "a", "--traceback", "b")
    assert seen == ["a", "b"]
    code, said = guarded(monkeypatch, capsys, failing(ConfigError("x")), "--traceback")
    assert code == 2 and said.startswith("Traceback") and said.endswith("error: x\n")


@pytest.mark.parametrize("names", LAUNCHER_RANKS, ids=lambda names: names.rank)
def test_rank_0_speaks_for_all(monkeypatch, capsys, names):
    def said(error: Exception, rank: str, size: str, ranks=LAUNCHER_RANKS) -> str:
        for variable in chain.from_iterable(LAUNCHER_RANKS):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(names.rank, rank)
        if size:
            monkeypatch.setenv(names.size, size)
        code, text = guarded(monkeypatch, capsys, failing(error), ranks=ranks)
        assert code == 3
        return text

    line = "error: x\n"
    assert said(DataError("x"), "0", "2") == line
    assert said(DataError("x"), "1", "2") == ""
    assert said(DataError("x", of_this_rank=True), "1", "2") == line
    for size in ("", "1", "many"):  # without peers, a rank of the surroundings silences nothing
        assert said(DataError("x"), "1", size) == line
    assert said(DataError("x"), "1", "2", ranks=()) == line  # a command that has no ranks
    assert said(OSError(2, "gone", "file"), "1", "2") == ""


def test_a_reader_that_goes_away_is_no_error(monkeypatch, capfd):
    assert guarded(monkeypatch, capfd, failing(BrokenPipeError())) == (0, "")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, ["stopped: interrupted; it goes on"]),
        (PermissionError(13, "Permission denied", "a/b"), 3, ["a/b: Permission denied"]),
        (OSError(28, "No space left on device", "a/b"), 3, ["a/b: the local disk is full"]),
        (OSError(122, "Disk quota exceeded"), 3, ["the local disk is full (Disk quota"]),
        (OSError(5, "Input/output error"), 3, ["Input/output error", "base/test_errors.py:"]),
        (OSError("odd"), 3, ["odd", "--traceback"]),
        (MemoryError(), 2, ["not enough memory"]),
        (RecursionError("deep"), 3, ["nested too deeply"]),
        (UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "bad"), 3, ["byte 0xff at 2"]),
        (UnicodeEncodeError("utf-8", "ab\udcff", 2, 3, "bad"), 3, ["'ab\\udcff'", "UTF-8"]),
        (ZeroDivisionError("a\nb " * 9999), 1, ["ZeroDivisionError: a b a", "--traceback"]),
        (ExceptionGroup("g", [ValueError("x")]), 1, ["ExceptionGroup: g"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_exception_is_one_line_and_a_code(monkeypatch, capsys, error, code, says):
    ended, line = guarded(monkeypatch, capsys, failing(error), again="it goes on")
    assert ended == code and line.count("\n") == 1 and len(line) < 1300
    assert line.startswith(("error: ", "stopped: ")) and all(text in line for text in says), line


PROGRAM = r"""
import sys
from gpt1_ds.base.errors import guard
def main(argv):
    print("caf\u00e9 \u2014 \udcff " + sys.stdin.read())
    open(argv[0], "w").close()
    if argv[1:]:
        raise ValueError("\u2014")
guard(main)
"""


@pytest.mark.parametrize(
    ("streams", "words", "code"),
    [
        ("<&- >&- 2>&-", "", 0),
        ("<&-", "", 0),
        (">&-", "fail", 1),
        ("2>&-", "fail", 1),
        (">/dev/full", "", 3),
        ("2>/dev/full", "fail", 1),
        ("> >(true)", "", 0),
    ],
)
def test_lost_streams_and_narrow_encodings_raise_nothing(tmp_path, streams, words, code):
    shell = f'exec python -c "$PROGRAM" {tmp_path / "file"} {words} {streams}'
    done = run("bash", "-c", shell, PROGRAM=PROGRAM, PYTHONIOENCODING="ascii")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert done.stderr.count("\n") == (code != 0 and "2>" not in streams), done.stderr
    if streams == "<&-":
        assert done.stdout == "caf\\xe9 \\u2014 \\udcff \n"


def test_ctrl_c_ends_with_one_line_while_modules_are_imported_too(tmp_path):
    # A shell script starts its background jobs with SIGINT ignored: the tests may be one.
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    for module, cry in (("data_prep.train_tokenizer", "before it began"), ("os", "")):
        code = f"import os, signal\n{heed}\nimport gpt1_ds.base.errors\n"
        code += "os.kill(os.getpid(), signal.SIGINT)"
        words = f"sys.orig_argv[1:] = ['-m', '{module}']"
        done = run("python", "-c", f"import sys; {words}\n{code}")
        assert (done.returncode == 130) == bool(cry) and cry in done.stderr
        assert cry == "" or done.stderr.count("\n") == 1
