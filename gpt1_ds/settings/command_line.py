"""The command line of the entry points that take a configuration: options, overrides, and `--help` from the fields."""

import argparse
import ast
import dataclasses
import inspect
from functools import cache

import yaml

from gpt1_ds.settings.loading import Config, load
from gpt1_ds.settings.sections import PretrainConfig


def arguments(
    cls: type[Config], argv: list[str], about: str, default: str | None
) -> tuple[argparse.Namespace, Config]:
    """The command line of a training entry point: its options, and the configuration they name."""
    parser = argparse.ArgumentParser(
        description=about,
        epilog=describe(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--deepspeed_config", required=True, metavar="JSON", help="mechanics: a file of ds_configs/"
    )
    parser.add_argument(
        "--config",
        default=default,
        metavar="YAML",
        help="meaning of the run (default: %(default)s)",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="set an earlier run of this name aside, start anew",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    parser.add_argument("--local_rank", type=int, help="given by the launcher, not used")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override a key, listed below"
    )
    args = parser.parse_intermixed_args(argv)
    return args, load(cls, args.config, args.overrides)


def describe(cls: type[PretrainConfig]) -> str:
    """Every `section.key`, its default and its meaning, as `--help` prints them."""
    lines = ["options (in YAML, or as section.key=value on the command line):"]
    for section in dataclasses.fields(cls):
        defaults = section.default_factory()  # the section with its defaults
        for key, text in field_docs(type(defaults)).items():
            value = yaml.safe_dump(getattr(defaults, key), default_flow_style=True).split("\n")[0]
            lines.append(f"  {f'{section.name}.{key}={value}':34s} {text}")
    return "\n".join(lines)


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each annotated field of `cls`, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {
        node.target.id: " ".join(ast.literal_eval(text.value).split())
        for node, text in zip(body, body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
