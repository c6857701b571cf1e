"""What the command lines of all commands have in common: the parser, its help, paths.

A command makes `Parser(description=__doc__)` and adds its options to groups, each with a title.
The parser adds `--help`, `--version`, `--traceback`, and the default to the help of each option.
"""

import argparse
import difflib
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.urls import hide_secrets
from gpt1_ds.base.version import VERSION

NARROWEST_HELP, WIDEST_HELP = 40, 100
"""Columns. Other lines are hard to read."""
SURELY_MEANT, PROBABLY_MEANT = 0.8, 0.7
"""Similarity of two names from which one is a slip of the other."""
RUN_HELP = "run folder (runs/NAME), one of its checkpoints/step-*, or its best/"
NEAR_OR_FAR_RUN_HELP = f"{RUN_HELP}; or the address of one (https://, s3://, ..)"
AVERAGE_HELP = (
    "the mean of the weights of the run's last K checkpoints, in float32 (default: the newest one, "
    "of a fine-tuned run the best one)"
)
OF_THE_LAUNCHER = (
    "--hostfile --include --exclude --num_nodes --num_gpus --num_accelerators --master_port "
    "--master_addr --nproc_per_node --nproc-per-node"
).split()
Spelling = Callable[[str, str], str]
"""`section.key=value` for a name and its value, as they should be written; empty if unknown."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help has the form of all commands."""

    spelling: Spelling | None = None
    """Set by a command that takes section.key=value."""

    def __init__(self, description: str | None, prog: str | None = None, epilog: str | None = None):
        super().__init__(
            prog=prog or _command_name(),
            description=description,
            epilog=epilog,
            formatter_class=HelpFormatter,
            add_help=False,
        )
        self._positionals.title = "arguments"
        self._general = self.add_argument_group("general options")
        option = self._general.add_argument
        option("-h", "--help", action="help", help="print this text and exit")
        version = f"gpt1_ds {VERSION}"
        option("--version", action="version", version=version, help="print the version and exit")
        # `guard` takes this one from the command line.
        option("--traceback", action="store_true", help="show the Python traceback of an error")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; see --help")

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group is self._general)
        return super().format_help()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """argparse would name a missing option before the misspelt one in its place."""
        self._refuse_unknown(list(sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, words: list[str]) -> None:
        for word, following in zip(words, [*words[1:], ""], strict=False):
            name, equals, value = word.partition("=")
            if name == "--":
                return
            is_option = re.match(r"--|-[a-z]{2}", name) and " " not in word
            if not is_option or any(known.startswith(name) for known in self._names()):
                continue
            if not equals and not following.startswith("--") and "=" not in following:
                value = following
            raise ConfigError(f"{name}: no such option; {self._fix(name, value)}")

    def _names(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _fix(self, name: str, value: str) -> str:
        if slips := difflib.get_close_matches(name, self._names(), 1, SURELY_MEANT):
            return f"did you mean '{slips[0]}'?"
        if self.spelling and (setting := self.spelling(name.lstrip("-"), value)):
            return f"write {setting}"
        if self.spelling and name in OF_THE_LAUNCHER:
            return "it is the launcher's: write it before the name of the script"
        close = difflib.get_close_matches(name, self._names(), 1, PROBABLY_MEANT)
        return f"did you mean '{close[0]}'?" if close else "see --help"


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal; indented and numbered lines stay as they are.

    The usage has only what must be given. The help of each option has its default.
    """

    def __init__(self, prog: str):
        super().__init__(f"{prog} [options]", max_help_position=26, width=help_width())

    def add_usage(  # type: ignore[no-untyped-def]
        self, usage, actions, groups, prefix=None
    ) -> None:
        needed = [action for action in actions if action.required or not action.option_strings]
        super().add_usage(usage, needed, [], prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(_filled(paragraph, width) for paragraph in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = action.default not in (None, False, [], argparse.SUPPRESS)
        if has_default and "default" not in text:
            text += " (default: %(default)s)"
        return text


def help_width() -> int:
    """Columns of the text that `--help` prints."""
    return max(NARROWEST_HELP, min(shutil.get_terminal_size().columns, WIDEST_HELP)) - 2


def _filled(paragraph: str, width: int) -> str:
    lines = paragraph.split("\n")
    if re.match(r" |\d+\. ", lines[0]):
        return paragraph
    return textwrap.fill(" ".join(lines), width, break_on_hyphens=False, break_long_words=False)


def _command_name() -> str | None:
    """How this command was started; None if argparse knows it better."""
    script = Path(sys.argv[0]).name
    if script.startswith("gpt1-"):
        return script
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return f"python {sys.argv[0]}" if script.endswith(".py") else None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def quoted(setting: str, value: str) -> str:
    """`setting=value` as a shell takes it."""
    return f"{setting}={shlex.quote(value) if value else 'VALUE'}"


def path(text: str) -> Path:
    """A path of the command line. No shell expands the `~` in `--out=~/x`."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{hide_secrets(text)} is an address; give a local path")
    return Path(os.path.expanduser(text))


def run_path(text: str) -> Path:
    """The folder of a run, also where one of its checkpoints is named, or its best/."""
    given = path(text)
    for folder in (given, *Path(os.path.abspath(given)).parents[:3]):
        if given.exists() and (folder / "config.yaml").exists():
            return folder
    return given
