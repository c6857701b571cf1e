"""The command line of the training commands: options, overrides, and `--help` from the fields."""

import argparse
import ast
import dataclasses
import inspect
import os

import yaml

from gpt1_ds.base.options import Parser
from gpt1_ds.distributed.environment import rank_environment
from gpt1_ds.settings.loading import Config, load, to_yaml
from gpt1_ds.settings.sections import PretrainConfig


def arguments(
    cls: type[Config], argv: list[str], about: str | None, default: str | None
) -> tuple[argparse.Namespace, Config]:
    """The options of a training command, and the configuration that they name.

    `about` is the description in `--help`, `default` the YAML file of a run without `--config`.
    With `--print-config` it prints the configuration and ends the program.
    """
    parser = Parser(
        description=about,
        epilog=describe(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--deepspeed_config",
        type=os.path.expanduser,
        required="--print-config" not in argv,
        metavar="JSON",
        help="mechanics: a file of ds_configs/",
    )
    parser.add_argument(
        "--config",
        type=os.path.expanduser,
        default=default,
        metavar="YAML",
        help="meaning of the run (default: %(default)s)",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print every setting of the run as YAML and exit",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="set an earlier run of this name aside, start anew",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    local_rank = ("--local_rank", "--local-rank")  # torch.distributed.launch: with a dash
    parser.add_argument(*local_rank, type=int, help="given by the launcher, not used")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override a key, listed below"
    )
    args = parser.parse_intermixed_args(argv)
    config = load(cls, args.config, args.overrides)
    if args.print_config:
        if rank_environment(os.environ).rank == 0:
            print(to_yaml(config), end="")
        raise SystemExit(0)
    return args, config


def describe(cls: type[PretrainConfig]) -> str:
    """Every `section.key`, its default and its meaning, as `--help` prints them."""
    lines = ["options (in YAML, or as section.key=value on the command line):"]
    sections = cls()
    for section in dataclasses.fields(cls):
        defaults = getattr(sections, section.name)
        for key, text in field_docs(type(defaults)).items():
            value = yaml.safe_dump(getattr(defaults, key), default_flow_style=True).split("\n")[0]
            option = f"{section.name}.{key}={value}"
            lines.append(f"  {option:34s} {text}")
    return "\n".join(lines)


def field_docs(cls: type) -> dict[str, str]:
    """The string under each annotated field of `cls`, on one line. Python itself drops it."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs
