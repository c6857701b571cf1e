"""The command line of the training commands: options, overrides, and `--help` from the fields."""

import argparse
import ast
import dataclasses
import inspect
import json
import os
import textwrap
from collections.abc import Callable

import yaml

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.options import WIDEST_HELP, Parser, help_width, path
from gpt1_ds.distributed.environment import rank_environment
from gpt1_ds.settings.loading import Config, load, to_yaml
from gpt1_ds.settings.sections import PretrainConfig
from gpt1_ds.settings.shipped import (
    DEFAULT_CONFIG,
    config_of_task,
    config_path,
    configs,
    ds_config_path,
    ds_configs,
)
from gpt1_ds.settings.spelling import spelling_for


def arguments(
    cls: type[Config], argv: list[str], about: str | None
) -> tuple[argparse.Namespace, Config]:
    """The options of a training command, and the configuration that they name.

    `about` is the description in `--help`. With `--print-config` it prints the configuration and
    ends the program. Without --config, pre-training is the paper's run, and fine-tuning takes the
    shipped YAML of `task.name`. The returned `deepspeed_config` may be None.
    """
    parser = _parser(cls, about)
    args = parser.parse_intermixed_args(argv)
    tuning = cls is not PretrainConfig
    if args.config is None:
        args.config = (
            config_of_task(args.overrides) if tuning else config_path(False)(DEFAULT_CONFIG)
        )
    config = load(cls, args.config, [*args.overrides, *_of_out(args)])
    if args.print_config:
        if rank_environment(os.environ).rank == 0:
            print(to_yaml(config), end="")
        raise SystemExit(0)
    if args.config is None and not any(word.startswith("task.") for word in args.overrides):
        raise ConfigError(
            f"no task: give --config NAME, out of {', '.join(configs(tuning))}, or task.name=NAME"
        )
    return args, config


def _parser(cls: type[PretrainConfig], about: str | None) -> Parser:
    tuning = cls is not PretrainConfig
    parser = Parser(description=about, epilog=describe(cls, help_width()))
    parser.spelling = spelling_for(cls)
    run = parser.add_argument_group("what is run").add_argument
    default = "finetune_NAME of task.name" if tuning else DEFAULT_CONFIG
    add_config(run, tuning, default)
    add_deepspeed_config(run, "zero2_bf16 on a GPU, else cpu, or cpu_fp32 without bfloat16")
    run(
        "--out",
        type=path,
        metavar="DIR",
        help="folder of the run; the same as run.dir and run.name (default: these)",
    )
    run(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that override those of --config; all are listed below",
    )
    start = parser.add_argument_group("how it starts").add_argument
    start(
        "--from-scratch",
        action="store_true",
        help="set an earlier run of this name aside, start anew",
    )
    start(
        "--print-config",
        action="store_true",
        help="print every setting of the run as YAML and exit",
    )
    local_rank = ("--local_rank", "--local-rank")  # torch.distributed.launch: with a dash
    start(*local_rank, type=int, metavar="N", help="given by the launcher, not used")
    return parser


def add_config(add: Callable[..., object], tuning: bool, default: str) -> None:
    """Add the option with `add`, an `add_argument`; `default` says what None stands for."""
    add(
        "--config",
        type=config_path(tuning),
        metavar="YAML",
        help=f"meaning of the run: a file, or a shipped one: {', '.join(configs(tuning))} "
        f"(default: {default})",
    )


def add_deepspeed_config(add: Callable[..., object], default: str) -> None:
    """Add the option with `add`, an `add_argument`; `default` says what None stands for."""
    add(
        "--deepspeed_config",
        "--deepspeed-config",
        type=ds_config_path,
        metavar="JSON",
        help=f"mechanics of the run: a file, or a shipped one: {', '.join(ds_configs())} "
        f"(default: {default})",
    )


def _of_out(args: argparse.Namespace) -> list[str]:
    """--out as settings."""
    if args.out is None:
        return []
    for word in args.overrides:
        if word.startswith(("run.dir=", "run.name=")):
            raise ConfigError(f"option '{word}' does not go with --out {args.out}; leave one out")
    out = os.path.abspath(args.out) if args.out.name in ("", "..") else args.out
    folder, name = os.path.split(out)
    settings = {"run.dir": folder or ".", "run.name": name}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def describe(cls: type[PretrainConfig], width: int = WIDEST_HELP) -> str:
    """Every `section.key`, its default and its meaning, as `--help` prints them."""
    lines = ["settings (in YAML, or as section.key=value on the command line):"]
    sections = cls()
    for section in dataclasses.fields(cls):
        defaults = getattr(sections, section.name)
        lines.append("")
        for key, text in field_docs(type(defaults)).items():
            value = yaml.safe_dump(getattr(defaults, key), default_flow_style=True).split("\n")[0]
            option = f"{section.name}.{key}={value}"
            lines += textwrap.wrap(
                f"  {option:34s} {text}",
                width,
                subsequent_indent=" " * 37,
                break_on_hyphens=False,
                break_long_words=False,
            )
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
