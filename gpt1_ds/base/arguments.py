"""Numbers and texts of a command line, and lines of standard input, checked as they are read."""

import sys
from collections.abc import Callable

from gpt1_ds.base.bounds import Bounds
from gpt1_ds.base.errors import ConfigError

SEED = Bounds(high=2**63, open_high=True)


def numeric(option: str, kind: type[int] | type[float], bounds: Bounds) -> Callable[[str], float]:
    """A `type` for argparse: a number of this kind within `bounds`; ConfigError for others."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            problem = f"give a {'whole ' if kind is int else ''}number"
        else:
            problem = bounds.problem(value)
        if problem:
            raise ConfigError(f"{option} is {text}; {problem}")
        return value

    return parse


def text_of(option: str, given: str) -> str:
    """The text of an argument. Bytes that are not UTF-8 become U+FFFD, with a warning."""
    return _decode(option, given.encode("utf-8", "surrogateescape"))


def stdin_lines(option: str) -> list[str]:
    """The lines of standard input without their ends; only a line feed ends a line.

    Bytes that are not UTF-8 become U+FFFD, with a warning. ConfigError if the input is closed.
    """
    try:
        if sys.stdin is None:  # the shell's `<&-`
            raise OSError("it is closed")
        content = sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{option}: standard input cannot be read ({error}); give it a file or a pipe"
        ) from error
    lines = _decode(option, content).removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        print(f"warning: {option}: standard input has no lines", file=sys.stderr)
    return [line.removesuffix("\r") for line in lines]


def _decode(option: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        print(
            f"warning: {option}: byte {error.start} is not UTF-8 ({error.reason}); every such "
            "byte is read as U+FFFD",
            file=sys.stderr,
        )
    return content.decode(errors="replace")
