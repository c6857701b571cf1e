"""Every command line in the documentation, and whether its program would accept it."""

import argparse
import configparser
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn
from unittest import mock

from gpt1_ds.base.errors import UserError
from gpt1_ds.runs.suite_grid import grid_points
from gpt1_ds.runs.suite_options import sorted_words
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from tests.conftest import BIN, ROOT

OUTSIDE = {
    *"apptainer apt-get cd conda lm_eval pre-commit scancel scontrol source srun ssh".split()
}
"""Programs whose options this test cannot look up. Only the syntax of the shell is checked."""
MPIRUN = {"-n": 1, "-x": 1, "--hostfile": 1, "--oversubscribe": 0}
"""Options of mpirun in the documentation, with the number of their values."""
FOLDERS = ("benchmarks", "data_prep", "docs", "ds_configs", "gpt1_ds", "slurm", "tests")
FENCE = re.compile(r"(?ms)^( *)```([^\n]*)\n(.*?)^ *```$")
OVERRIDE = re.compile(r"[a-z]+\.[a-z]\w*=.*", re.DOTALL)
NOTE = re.compile(r" {3,}\S.*$|\s+#.*$")
"""What stands behind a command on its line: three spaces, or #, and words."""


class Wrong(Exception):
    """The command would not work; the text says why."""


class Line(NamedTuple):
    place: str
    """File and line."""
    text: str


class _Parsed(BaseException):
    """The parser has accepted the arguments. Nothing that is written to catch errors catches it."""

    def __init__(self, namespace: argparse.Namespace):
        self.namespace = namespace


def pages() -> list[Path]:
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def commands() -> list[Line]:
    """Those of fenced blocks and of code within a sentence; of the comments of scripts and
    configurations; and of the docstrings of our commands, which are their `--help`."""
    found: list[Line] = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        found += _fenced(path, text)
        found += _inline(path, FENCE.sub(lambda match: "\n" * match[0].count("\n"), text))
    for pattern in ("slurm/*", "gpt1_ds/configs/*.yaml", "gpt1_ds/*.py", "data_prep/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            found += _indented(path)
    return found


def _fenced(path: Path, text: str) -> Iterator[Line]:
    for block in FENCE.finditer(text):
        if block[2] in ("", "sh", "bash"):
            start = text[: block.start()].count("\n") + 2
            yield from _logical(path, start, block[3].splitlines())


def _inline(path: Path, text: str) -> Iterator[Line]:
    for code in re.finditer(r"`([^`]+)`", text):
        words = code[1].split()
        # `deepspeed --quiet` names an option; it is no command.
        names_options = all(word.startswith("-") for word in words[1:])
        if words[0] in ("python", "deepspeed", "mpirun", "make", "sbatch") and not names_options:
            number = text[: code.start()].count("\n") + 1
            yield Line(f"{path.relative_to(ROOT)}:{number}", " ".join(words))


def _indented(path: Path) -> Iterator[Line]:
    """Lines of a comment or docstring that are indented and begin with a program."""
    indent = " {4}" if path.suffix == ".py" else "# {2,}"
    start = re.compile(
        rf"^{indent}((?:[A-Z]\w+=(?:\"[^\"]*\"|\S+) )*"
        r"(?:python|deepspeed|mpirun|sbatch|apptainer|slurm/\w+\.sh|gpt1-[\w-]+)\s.*)$"
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if found := start.match(line):
            rest = [re.sub(r"^#? *", "", more) for more in lines[number + 1 : number + 4]]
            yield next(_logical(path, number + 1, [found[1], *rest]))


def _logical(path: Path, start: int, lines: list[str]) -> Iterator[Line]:
    """Lines joined where they end with a backslash."""
    text, first = "", start
    for number, line in enumerate(lines, start):
        text += line.strip() if text else line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if text.strip() and not text.lstrip().startswith("#"):
            yield Line(f"{path.relative_to(ROOT)}:{first}", NOTE.sub("", text.strip()))
        text, first = "", number + 1


def check(line: Line) -> None:
    """Raise `Wrong` unless every program of the line accepts its arguments."""
    syntax = subprocess.run(["bash", "-n", "-c", line.text], capture_output=True, text=True)
    if syntax.returncode:
        raise Wrong(syntax.stderr)
    text = line.text
    while "$(" in text:
        text = re.sub(r"\$\([^()]*\)", "OUTPUT", text)  # what another command prints
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in (";", "|", "&&", "&", "<", ">"):
            _check_program(words)
            words = [] if word not in "<>" else ["cd"]  # what follows < is a file
        else:
            words.append(word)


def _check_program(words: list[str]) -> None:
    while words and re.fullmatch(r"[A-Z]\w*=.*", words[0], re.DOTALL):
        words = words[1:]
    if not words or words[0] in ("export", ".."):
        return
    _check_files(words)
    program, rest = words[0], words[1:]
    if program.startswith("gpt1-"):
        _check_module(_console_script(program), rest)
    elif program.startswith("slurm/"):
        _check_script(program, rest)
    elif checker := globals().get(f"_check_{program}"):
        checker(rest)
    elif program not in OUTSIDE and not shutil.which(program):
        raise Wrong(f"{program}: no such program")


def _check_files(words: list[str]) -> None:
    for word in words:
        path = word.split("=", 1)[-1]
        if path.split("/")[0] in FOLDERS and "/" in path and not (ROOT / path).exists():
            if "TASK" not in path and not path.endswith("/"):
                raise Wrong(f"{path}: no such file in the checkout")


def _console_script(name: str) -> str:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    scripts = settings["options.entry_points"]["console_scripts"].split("\n")
    for script in scripts:
        if script.startswith(f"{name} = "):
            return script.split(" = ")[1].split(":")[0]
    raise Wrong(f"{name}: no such command in setup.cfg")


def _check_python(words: list[str]) -> None:
    if words[0] == "-m":
        if words[1].split(".")[0] in FOLDERS:
            _check_module(words[1], words[2:])
        elif words[1] != "pytest":
            importlib.import_module(words[1])
    elif words[0] != "-c":
        name = words[0].removesuffix(".py").replace("/", ".")
        if name.split(".")[0] in FOLDERS:
            _check_module(name, words[1:])
        elif not (ROOT / words[0]).is_file():
            raise Wrong(f"{words[0]}: no such file in the checkout")


def _check_deepspeed(words: list[str]) -> None:
    from deepspeed.launcher import runner

    with mock.patch.object(argparse.ArgumentParser, "error", _refuse):
        args = runner.parse_args(words)
    script = args.user_script
    _check_python(["-m", script] + args.user_args if args.module else [script] + args.user_args)


def _check_mpirun(words: list[str]) -> None:
    while words and words[0].startswith("-"):
        if words[0] not in MPIRUN:
            raise Wrong(f"mpirun {words[0]}: not among {sorted(MPIRUN)}")
        words = words[1 + MPIRUN[words[0]] :]
    _check_program(words)


def _check_sbatch(words: list[str]) -> None:
    while words and words[0].startswith("-"):
        words = words[1:]
    if not words or not words[0].startswith("slurm/"):
        raise Wrong("sbatch without a script of slurm/")
    _check_script(words[0], words[1:])


def _check_script(script: str, words: list[str]) -> None:
    """The arguments of a batch script are those of the command that it ends with."""
    if script.endswith("submit_all.sh"):
        return
    text = (ROOT / script).read_text(encoding="utf-8")
    module, given = re.findall(
        r"(gpt1_ds/\w+\.py|data_prep\.build_shards)((?: --\w+ [\w/.]+)*)", text
    )[-1]
    if module == "data_prep.build_shards":
        words = [word for word in words if not re.fullmatch(r"\w+=\S+", word)]
        given = "--tokenizer tok --corpus books=PATH --out shards"
    _check_module(module.removesuffix(".py").replace("/", "."), [*given.split(), *words])


def _check_make(words: list[str]) -> None:
    words = [word for word in words if not word.startswith("PYTHON=")]  # not every machine has it
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Wrong(done.stderr)


def _check_pip(words: list[str]) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = set(settings["options.extras_require"])
    for word in words:
        if word.startswith(".["):
            named = set(word[2:-1].split(","))
            if named - extras:
                raise Wrong(f"{sorted(named - extras)}: no such extra in setup.cfg")


def _check_tensorboard(words: list[str]) -> None:
    if words[0] != "--logdir":
        raise Wrong("tensorboard without --logdir")


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise Wrong(message)


def _accept(parser: argparse.ArgumentParser, *args: object, **options: object) -> NoReturn:
    namespace, unknown = parser.parse_known_intermixed_args(*args, **options)
    if unknown:
        parser.error(f"unrecognized arguments: {unknown}")
    raise _Parsed(namespace)


def _check_module(name: str, words: list[str]) -> None:
    """Let the program's own parser read the arguments, and the settings be loaded."""
    path = ROOT / f"{name.replace('.', '/')}.py"
    package = path.with_suffix("") / "__main__.py"
    if not path.exists() and not package.exists():
        raise Wrong(f"{name}: no such module")
    if ".." in words or name.startswith(("docs", "tests")) or package.exists():
        return  # `..` stands for more arguments
    module = importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        words = [_own_file(word, Path(folder)) for word in words]
        _parse(module, name, words)


def _own_file(word: str, folder: Path) -> str:
    """`my.yaml` and `my.json` stand for a file of the reader; an empty one is made."""
    if not re.fullmatch(r"[\w-]+\.(json|yaml)", word):
        return word
    (folder / word).write_text("{}", encoding="utf-8")
    return str(folder / word)


def _parse(module: ModuleType, name: str, words: list[str]) -> None:
    parser = argparse.ArgumentParser
    with (
        mock.patch.object(parser, "parse_args", _accept),
        mock.patch.object(parser, "parse_intermixed_args", _accept),
        mock.patch.object(parser, "error", _refuse),
        mock.patch.object(sys, "argv", [name, *words]),
        mock.patch.dict(os.environ, {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}),
    ):
        try:
            module.main(*[words] * len(inspect.signature(module.main).parameters))
        except _Parsed as parsed:
            args = parsed.namespace
        except SystemExit as error:
            if error.code:
                raise Wrong(f"exit {error.code}") from error
            return  # --help
        except Exception as error:
            raise Wrong(f"{type(error).__name__}: {error}") from error
        else:
            raise Wrong(f"{name} has no parser")
    try:
        _check_settings(name, args, words)
    except UserError as error:
        raise Wrong(error) from error


def _check_settings(name: str, args: argparse.Namespace, words: list[str]) -> None:
    overrides = [word for word in words if OVERRIDE.fullmatch(word)]
    if not overrides:
        return
    tasks = name in ("gpt1_ds.finetune", "gpt1_ds.suite")
    config = getattr(args, "config", None)
    grid = sorted_words(words).grid if name == "gpt1_ds.suite" else []
    fixed = [word for word in overrides if word not in grid]
    for point in grid_points(grid, fixed).values():
        load(FinetuneConfig if tasks else PretrainConfig, config, [*fixed, *point])
