"""The YAML and JSON files that come with the package, by their names.

`--config pretrain_small` is `configs/pretrain_small.yaml`, `--deepspeed_config cpu` is
`ds_configs/cpu.json`. A file of that name in the current folder wins.
"""

import os
from collections.abc import Callable
from pathlib import Path

from gpt1_ds.base.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = PACKAGE / "configs"
DS_CONFIGS = PACKAGE / "ds_configs"
"""A link to the folder beside the package; an installed package has the files themselves."""
FINETUNE = "finetune_"
DEFAULT_CONFIG = "pretrain_gpt1"


def configs(tuning: bool) -> list[str]:
    """The names of the shipped runs of fine-tuning, or of pre-training."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    return [name for name in names if name.startswith(FINETUNE) == tuning]


def ds_configs() -> list[str]:
    return sorted(path.stem for path in DS_CONFIGS.glob("*.json"))


def config_path(tuning: bool) -> Callable[[str], str]:
    """The `type` of `--config`: a file, or the name of a shipped one."""
    return lambda text: _find("--config", text, CONFIGS, ".yaml", configs(tuning))


def ds_config_path(text: str) -> str:
    """The `type` of `--deepspeed_config`: a file, or the name of a shipped one."""
    return _find("--deepspeed_config", text, DS_CONFIGS, ".json", ds_configs())


def _find(option: str, text: str, folder: Path, suffix: str, listed: list[str]) -> str:
    given = Path(os.path.expanduser(text))
    if given.exists() and not given.is_dir():
        return str(given)
    shipped = folder / f"{text.removesuffix(suffix)}{suffix}"
    if os.sep not in text and shipped.exists():
        return str(shipped)
    if given.is_dir() and os.sep in text:
        raise ConfigError(f"{option} {text}: is a folder; give a {suffix} file in it")
    raise ConfigError(
        f"{option} {text}: no such file, and no name of {folder.name}/; give a path, or one of: "
        f"{', '.join(listed)}"
    )


def config_of_task(overrides: list[str]) -> str | None:
    """The shipped YAML of the task that the overrides name.

    None for a task that they describe, and for one without a checkpoint: with the tokenizer of
    data.shards it starts from random weights.
    """
    values = dict(word.partition("=")[::2] for word in overrides)
    from_scratch = "data.shards" in values and "init.checkpoint" not in values
    name = FINETUNE + values.get("task.name", "")
    if "task.kind" in values or from_scratch or name not in configs(True):
        return None
    return str(CONFIGS / f"{name}.yaml")
