"""Numbers and texts of command lines, and lines of standard input."""

import argparse
import importlib
import io
import sys

import pytest

from gpt1_ds.base.arguments import stdin_lines, text_of
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.runs.suite_options import suite_parser

NOT_WHOLE = ("-1", "1.5", "1e3", "nan", "inf", "x", "", str(2**63))
BAD = {
    "generate": {
        "--max-new-tokens": (*NOT_WHOLE, "0", "10000001"),
        "--num-samples": (*NOT_WHOLE, "0", "100001"),
        "--temperature": ("-1", "-1e-50", "nan", "inf", "-inf", "1e400", "x", ""),
        "--top-k": NOT_WHOLE,
        "--top-p": ("0", "-0.5", "1.5", "nan", "inf", "x"),
        "--seed": NOT_WHOLE,
    },
    "eval": {
        "--stride": NOT_WHOLE,
        "--sample": NOT_WHOLE,
        "--average": (*NOT_WHOLE, "0"),
    },
    "export": {
        "--shard-gb": ("0", "-1", "nan", "inf", "1e300", "x"),
        "--average": (*NOT_WHOLE, "0"),
    },
    "watch": {"--every": ("-1", "0", "0.1", "3601", "nan", "inf", "x", "")},
    "suite": {
        "--seeds": NOT_WHOLE,
        "--layers": NOT_WHOLE,
        "--ranks": (*NOT_WHOLE, "0", "1025"),
        "--sample": (*NOT_WHOLE, "0"),
        "--slurm": NOT_WHOLE,
    },
}
"""For each command its numeric options, and values outside the domain of each."""


def parser_of(name: str) -> argparse.ArgumentParser:
    if name == "suite":
        return suite_parser("")
    return importlib.import_module(f"gpt1_ds.{name}")._parser()


@pytest.mark.parametrize("name", BAD)
def test_a_number_outside_its_domain_is_one_line_that_names_the_option(name: str):
    parse = parser_of(name).parse_args
    for option, values in BAD[name].items():
        for value in values:
            with pytest.raises(ConfigError, match=f"^{option} is ") as caught:
                parse(["run", "out", f"{option}={value}"])
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_every_numeric_option_is_in_the_table(name: str):
    parser = parser_of(name)
    numeric = [a for a in parser._actions if callable(a.type) and a.type.__name__ == "parse"]
    assert {a.option_strings[0] for a in numeric} == set(BAD[name])
    assert not [a for a in parser._actions if a.type in (int, float)]


LINES = [
    (b"one\ntwo\n", ["one", "two"], ""),
    (b"one\r\n\n two", ["one", "", " two"], ""),
    ("a\x0cb\u2028c\x85d\x1ee\rf\n".encode(), ["a\x0cb\u2028c\x85d\x1ee\rf"], ""),
    (b"\xef\xbb\xbfone\n", ["one"], ""),
    (b"caf\xe9\nsea\n", ["caf\ufffd", "sea"], "warning: --x: byte 3 is not UTF-8"),
    (b"\xed\xa0\xbd\n", ["\ufffd\ufffd\ufffd"], "warning: --x: byte 0 is not UTF-8"),
    (b"", [], "warning: --x: standard input has no lines"),
]


@pytest.mark.parametrize(("content", "lines", "said"), LINES)
def test_only_a_line_feed_ends_a_line_of_standard_input(monkeypatch, capsys, content, lines, said):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert stdin_lines("--x") == lines
    shown = capsys.readouterr().err
    assert shown.startswith(said) and shown.count("\n") == bool(said)


def test_a_closed_standard_input_is_one_line(monkeypatch):
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    for stdin in (None, closed):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(ConfigError, match="^--x: standard input cannot be read"):
            stdin_lines("--x")


def test_the_bytes_of_an_argument_are_read_as_utf_8(capsys):
    assert text_of("--prompt", "caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert not capsys.readouterr().err
    assert text_of("--prompt", "caf\udce9") == "caf\ufffd"
    assert capsys.readouterr().err.startswith("warning: --prompt: byte 3 is not UTF-8")
