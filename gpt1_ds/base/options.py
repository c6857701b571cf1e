"""What the command lines of all commands have in common: the parser, paths, the description."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.urls import hide_secrets


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of a user."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; see --help")


def summary(docstring: str | None) -> str:
    """The first paragraph of a command's docstring, which `python -OO` drops."""
    return (docstring or "").split("\n\n")[0]


def path(text: str) -> Path:
    """A path of the command line. No shell expands the `~` in `--out=~/x`."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{hide_secrets(text)} is an address; give a local path")
    return Path(os.path.expanduser(text))
