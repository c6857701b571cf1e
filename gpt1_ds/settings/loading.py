"""Settings from defaults, a YAML file and command-line overrides, checked.

`load(PretrainConfig, "run.yaml", ["optim.lr=1e-4"])`: the file wins over the defaults, an override
over the file. Every fault is a ConfigError that names the file or option, the value and the fix.
"""

import dataclasses
import math
import os
import re
import types
import typing
from pathlib import Path
from typing import NamedTuple

import yaml

from gpt1_ds.base.bounds import Bounds
from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.base.protocols import Json
from gpt1_ds.settings import fidelity
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig, PretrainConfig
from gpt1_ds.settings.spelling import settings_of, spelling_for
from gpt1_ds.settings.written import DuplicateKeyError, Written, parse, plain

Config = typing.TypeVar("Config", bound=PretrainConfig)
FIDELITY = "fidelity"
"""The section that may be written as its one value."""
OCTAL_OR_BASE_60 = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML reads otherwise than people: 0123 is 83, and 1:30 is 90."""


def load(cls: type[Config], path: Path | str | None, overrides: list[str]) -> Config:
    """Defaults of `cls` < YAML file `path` < `section.key=value` overrides."""
    settings = _read_yaml(path) if path else []
    settings += [_parse_override(cls, text) for text in overrides]
    config = cls()
    for setting in settings:
        _set(config, setting)
    fidelity.fill(config, {f"{setting.section}.{setting.key}" for setting in settings})
    if config.model.preset in PRESETS:
        for key, value in PRESETS[config.model.preset].items():
            if getattr(config.model, key) is None:
                setattr(config.model, key, value)
    if config.init.checkpoint == "none":
        config.init.checkpoint = None
    _check_bounds(config)
    _check_together(config)
    return config


def to_dict(config: PretrainConfig) -> Json:
    return dataclasses.asdict(config)


def to_yaml(config: PretrainConfig) -> str:
    """The text of a run's config.yaml: every setting, resolved."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def run_folder(config: PretrainConfig) -> Path:
    return Path(config.run.dir) / config.run.name


class Setting(NamedTuple):
    """One value as the user wrote it."""

    section: str
    key: str
    value: object
    """Of `written.parse`."""
    where: str
    """The YAML file or the option that holds it, for messages."""


def _read_yaml(path: Path | str) -> list[Setting]:
    try:
        content = parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {path}: {error.strerror}; give the path of a YAML file"
        ) from error
    except DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if plain(content) is None:
        return []
    if not isinstance(content, dict):
        found = type(plain(content)).__name__
        raise ConfigError(f"{path}: expected sections such as 'model:', found {found}")
    settings = []
    for section, keys in content.items():
        if plain(keys) is None:
            continue
        if section == FIDELITY and isinstance(keys, Written):
            settings.append(Setting(section, "kind", keys, str(path)))
            continue
        if not isinstance(keys, dict):
            raise ConfigError(
                f"{path}: section '{section}' holds {plain(keys)!r}; write its keys indented "
                "below it"
            )
        settings += [Setting(section, key, value, str(path)) for key, value in keys.items()]
    return settings


def _parse_override(cls: type[PretrainConfig], text: str) -> Setting:
    name, equals, value = text.partition("=")
    if name == FIDELITY and equals:
        name = f"{FIDELITY}.kind"
    section, dot, key = name.partition(".")
    if ".".join(name.split(".")[:2]) not in settings_of(cls):
        if meant := spelling_for(cls)(name, value):
            problem = "no such setting" if dot else "expected section.key=value"
            raise ConfigError(f"option '{text}': {problem}; write {meant}")
    if not (equals and dot and key):
        raise ConfigError(f"option '{text}': expected section.key=value, such as optim.lr=1e-4")
    try:
        return Setting(section, key, parse(value), f"option '{text}'")
    except DuplicateKeyError as error:
        raise ConfigError(f"option '{text}': {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"option '{text}': the value is not valid YAML") from error


def _set(config: PretrainConfig, setting: Setting) -> None:
    """Put one setting into its section, if section, key and type exist."""
    section, key, value, where = setting
    sections = {field.name for field in dataclasses.fields(config)}
    if section not in sections:
        raise ConfigError(f"{where}: unknown section '{section}'; {near(section, sections)}")
    target = getattr(config, section)
    key, dot, entry = key.partition(".")  # an entry of a mapping: data.weights.NAME=VALUE
    hints = typing.get_type_hints(type(target))
    if key not in hints:
        raise ConfigError(f"{where}: unknown key '{section}.{key}'; {near(key, hints)}")
    name, hint = f"{section}.{key}", hints[key]
    (is_path,) = (f.metadata.get("path") for f in dataclasses.fields(target) if f.name == key)
    if dot:
        value = {entry: value} if dict in map(_class_of, _options(hint)) else None
    if is_path and hint is str and value == Written("~", None):
        value = Written("~", "~")
    typed = _typed(value, hint, name, where)
    if dot:
        before = getattr(target, key)
        entries = before if isinstance(before, dict) else {}
        typed = {**entries, **typing.cast(Json, typed)}
    setattr(target, key, _home(typed) if is_path else typed)


def _options(hint: object) -> tuple[type, ...]:
    """The types that a field is annotated with, without `None`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(option for option in options if option is not type(None))


def _class_of(option: type) -> type:
    """A type without its arguments."""
    return typing.get_origin(option) or option


def _home(value: object) -> object:
    """`~` in front of a path is the home folder, also where no shell replaced it."""
    if isinstance(value, dict):
        return {key: _home(item) for key, item in value.items()}
    return os.path.expanduser(value) if isinstance(value, str) else value


def _typed(value: object, hint: object, name: str, where: str) -> object:
    """`value`, from `written.parse`, as the type that a field is annotated with."""
    options = _options(hint)
    if plain(value) is None and type(None) in typing.get_args(hint):
        return None
    option = next((each for each in options if _fits(value, _class_of(each))), options[0])
    kind, arguments = _class_of(option), typing.get_args(option)
    if kind is list and isinstance(value, list):
        return [_typed(item, arguments[0], name, where) for item in value]
    if kind is dict and isinstance(value, dict):
        return {
            key: _typed(item, arguments[1], f"{name}.{key}", where) for key, item in value.items()
        }
    typed = _scalar(value, kind) if isinstance(value, Written) else None
    if not isinstance(value, Written) or typed is None:
        raise ConfigError(f"{where}: {name} is {plain(value)!r}; expected {kind.__name__}")
    if kind in (int, float) and OCTAL_OR_BASE_60.fullmatch(value.text):
        raise ConfigError(
            f"{where}: {name} is {value.text}, which YAML reads as {value.value}; write it "
            "without a leading 0 and without ':'"
        )
    return typed


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, Written):
        return _scalar(value, kind) is not None
    return kind is type(value)


def _scalar(written: Written, kind: type) -> object:
    """It as a `kind` (str, int, float or bool); None if it is something else."""
    text, value = written
    if kind is str:
        return None if value is None else text
    if isinstance(value, bool):
        return value if kind is bool else None
    if kind is float and isinstance(value, str | int):
        try:
            return float(value)  # YAML 1.1 reads 1e-4, which has no dot, as a string
        except (ValueError, OverflowError):
            return math.inf if isinstance(value, int) else None
    return value if isinstance(value, kind) else None


def _check_bounds(config: PretrainConfig) -> None:
    """Each value against the bounds that stand at its field."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            bounds: Bounds | None = field.metadata.get("bounds")
            if bounds is not None:
                _check_value(getattr(values, field.name), bounds, f"{section.name}.{field.name}")


def _check_value(value: object, bounds: Bounds, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_value(item, bounds, f"{name}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, bounds, f"{name}[{index}]")
    elif isinstance(value, str | int | float) and (problem := bounds.problem(value)):
        shown = f"'{value}'" if isinstance(value, str) else value
        raise ConfigError(f"{name} is {shown}; {problem}")


def _check_together(config: PretrainConfig) -> None:
    """What no single field can say: shapes, durations, pairs of settings, the run's name."""
    width, heads = config.model.n_embd, config.model.n_head
    assert width and heads, "the preset gives them"
    if width % heads:
        raise ConfigError(f"model.n_embd {width} is not a multiple of model.n_head {heads}")
    train = config.train
    tuning = isinstance(config, FinetuneConfig)
    ends = [train.max_steps, train.epochs, *([] if tuning else [train.tokens, train.flops])]
    if all(end is None for end in ends):
        raise ConfigError(
            "train.max_steps, train.epochs, train.tokens and train.flops are all null; give one of "
            "them"
        )
    if tuning and (train.tokens or train.flops or train.batch_warmup_steps):
        raise ConfigError(
            "train.tokens, train.flops and train.batch_warmup_steps are for pre-training; take "
            "train.epochs"
        )
    every = config.eval.zero_shot_every
    if tuning and (config.eval.zero_shot or every is not None):
        name = "eval.zero_shot" if config.eval.zero_shot else "eval.zero_shot_every"
        raise ConfigError(
            f"{name} is for pre-training; score a fine-tuned run on its task, and its "
            "pre-training run with gpt1_ds.eval --zero-shot"
        )
    if tuning and config.checkpoint.at_words:
        raise ConfigError("checkpoint.at_words is for pre-training; take checkpoint.keep_every")
    if every is not None and not config.eval.zero_shot:
        raise ConfigError(
            f"eval.zero_shot_every is {every}, but eval.zero_shot names no benchmark; add "
            "eval.zero_shot=[blimp], or leave it out"
        )
    if train.batch_warmup_steps and not 0 < (train.batch_start or 0) <= train.global_batch:
        raise ConfigError(
            f"train.batch_warmup_steps is {train.batch_warmup_steps}, but train.batch_start is "
            f"{train.batch_start}; give it at most train.global_batch {train.global_batch}"
        )
    betas = config.optim.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optim.betas is {betas}; give two numbers in [0, 1)")
    name = config.run.name
    if not name or Path(name).name != name or name.startswith("."):
        raise ConfigError(f"run.name is '{name}'; give a plain folder name")
