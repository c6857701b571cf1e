"""Settings from defaults, YAML and overrides, checked."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig, PretrainConfig

Config = typing.TypeVar("Config", bound=PretrainConfig)
CHOICES = {
    "model.preset": tuple(PRESETS),
    "model.kind": ("transformer", "lstm"),
    "tokenizer.kind": ("sentencepiece", "openai"),
    "tokenizer.openai_pipeline": ("transformers", "original"),
    "optim.kind": ("adamw", "openai_adam"),
    "schedule.kind": ("cosine", "linear", "constant", "wsd"),
    "task.pool": ("last", "first"),
}
UNIT_INTERVAL = (
    "model.embd_pdrop",
    "model.attn_pdrop",
    "model.resid_pdrop",
    "task.clf_pdrop",
    "task.lm_coef",
    "task.task_coef",
    "schedule.warmup_fraction",
    "schedule.decay_fraction",
)
POSITIVE = (
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.n_ctx",
    "train.max_steps",
    "train.epochs",
    "train.tokens",
    "train.global_batch",
    "train.batch_start",
    "train.micro_batch",
    "train.max_skipped",
    "train.spike_nats",
    "optim.lr",
    "optim.eps",
    "eval.every",
    "eval.batches",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.keep_every",
    "log.every",
    "log.samples_every",
    "log.profile",
    "distributed.timeout_seconds",
    "data.cache_bytes",
    "task.max_examples",
    "task.patience",
)


def load(cls: type[Config], path: Path | str | None, overrides: list[str]) -> Config:
    """Dataclass defaults < YAML file `path` < `section.key=value` overrides; `ConfigError` on the first fault."""
    config = _build(cls, [*(_read_yaml(path) if path else ()), *map(_parse_override, overrides)])
    _check(config)
    return config


def to_dict(config: PretrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def run_folder(config: PretrainConfig) -> Path:
    return Path(config.run.dir) / config.run.name


Setting = tuple[str, str, Any, str]  # section, key, value, and where the user wrote it


def _read_yaml(path: Path | str) -> list[Setting]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {path}: {error.strerror}; give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected sections such as 'model:', found {type(content).__name__}"
        )
    settings = []
    for section, keys in content.items():
        if keys is not None and not isinstance(keys, dict):
            raise ConfigError(
                f"{path}: section '{section}' holds {keys!r}; write its keys indented below it"
            )
        settings += [
            (str(section), str(key), value, str(path)) for key, value in (keys or {}).items()
        ]
    return settings


def _parse_override(text: str) -> Setting:
    name, equals, value = text.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"option '{text}': expected section.key=value, such as optim.lr=1e-4")
    try:
        return section, key, yaml.safe_load(value), f"option '{text}'"
    except yaml.YAMLError as error:
        raise ConfigError(f"option '{text}': the value is not valid YAML") from error


def _build(cls: type[Config], settings: list[Setting]) -> Config:
    config = cls()
    sections = {f.name for f in dataclasses.fields(cls)}
    for section, key, value, where in settings:
        if section not in sections:
            raise ConfigError(f"{where}: unknown section '{section}'; {near(section, sections)}")
        target = getattr(config, section)
        key, dot, sub_key = key.partition(".")  # data.weights.NAME=VALUE
        types_by_key = typing.get_type_hints(type(target))
        if key not in types_by_key:
            raise ConfigError(f"{where}: unknown key '{section}.{key}'; {near(key, types_by_key)}")
        if dot:
            value = (
                {**getattr(target, key), sub_key: value}
                if isinstance(getattr(target, key), dict)
                else None
            )
        setattr(target, key, _typed(value, types_by_key[key], f"{section}.{key}", where))
    for key, value in PRESETS.get(config.model.preset, {}).items():
        if getattr(config.model, key) is None:
            setattr(config.model, key, value)
    if config.init.checkpoint == "none":
        config.init.checkpoint = None
    return config


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [_typed(item, arguments[0], name, where) for item in value]
    if origin is dict and isinstance(value, dict):
        return {
            str(key): _typed(item, arguments[1], f"{name}.{key}", where)
            for key, item in value.items()
        }
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as a string.
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, origin) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {name} is {value!r}; expected {getattr(kind, '__name__', kind)}")


def _check(config: PretrainConfig) -> None:
    values = {
        f"{section}.{key}": value
        for section, keys in to_dict(config).items()
        for key, value in keys.items()
    }
    for name, choices in CHOICES.items():
        if values.get(name) is not None and values[name] not in choices:
            raise ConfigError(f"{name} is '{values[name]}'; {near(values[name], choices)}")
    for name in UNIT_INTERVAL:
        if name in values and not 0 <= values[name] <= 1:
            raise ConfigError(f"{name} is {values[name]}; it must lie in [0, 1]")
    for name in POSITIVE:
        if values.get(name) is not None and not values[name] > 0:
            raise ConfigError(f"{name} is {values[name]}; it must be above 0")
    if config.model.n_embd % config.model.n_head:
        raise ConfigError(
            f"model.n_embd {config.model.n_embd} is not a multiple of model.n_head {config.model.n_head}"
        )
    train, tuning = config.train, isinstance(config, FinetuneConfig)
    if train.max_steps is None and train.epochs is None and (train.tokens is None or tuning):
        raise ConfigError(
            "train.max_steps, train.epochs and train.tokens are all null; give one of them"
        )
    if tuning and (train.tokens or train.batch_warmup_steps):
        raise ConfigError(
            "train.tokens and train.batch_warmup_steps are for pre-training; take train.epochs"
        )
    if train.batch_warmup_steps and not 0 < (train.batch_start or 0) <= train.global_batch:
        raise ConfigError(
            f"train.batch_warmup_steps is {train.batch_warmup_steps}, but train.batch_start is "
            f"{train.batch_start}; give it at most train.global_batch {train.global_batch}"
        )
    if len(config.optim.betas) != 2 or not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(f"optim.betas is {config.optim.betas}; give two numbers in [0, 1)")
    if (
        not config.run.name
        or Path(config.run.name).name != config.run.name
        or config.run.name.startswith(".")
    ):
        raise ConfigError(f"run.name is '{config.run.name}'; give a plain folder name")
