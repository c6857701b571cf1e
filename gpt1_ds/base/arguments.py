"""Numbers and texts of a command line, and lines of standard input, checked as they are read."""

import math
import sys
from collections.abc import Callable

from gpt1_ds.base.errors import ConfigError

LARGEST = 2**63 - 1


def whole(option: str, least: int, most: int = LARGEST) -> Callable[[str], int]:
    """A `type` for argparse: an integer from `least` to `most`; ConfigError for anything else."""
    upper = "" if most == LARGEST else f" to {most:,}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ConfigError(f"{option} is {text}; give a whole number from {least}{upper}")
        return value

    return parse


def real(option: str, allowed: Callable[[float], bool], domain: str) -> Callable[[str], float]:
    """A `type` for argparse: a finite number that is `allowed`, which `domain` says in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and allowed(value)):
            raise ConfigError(f"{option} is {text}; give a number {domain}")
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
