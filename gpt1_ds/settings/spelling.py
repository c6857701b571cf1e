"""How a setting is written that was named in another way: `--lr 1e-3` is `optim.lr=1e-3`."""

import dataclasses
import difflib

from gpt1_ds.base.options import Spelling, quoted
from gpt1_ds.settings.sections import PretrainConfig

OTHER_NAMES = {
    "batch": "train.global_batch",
    "batch_size": "train.global_batch",
    "train_batch_size": "train.global_batch",
    "per_device_train_batch_size": "train.micro_batch",
    "gradient_checkpointing": "train.activation_checkpointing",
    "num_train_epochs": "train.epochs",
    "steps": "train.max_steps",
    "learning_rate": "optim.lr",
    "lrate": "optim.lr",
    "dropout": "model.embd_pdrop model.attn_pdrop model.resid_pdrop",
    "data": "data.shards",
    "model": "model.preset",
    "task": "task.name",
    "warmup_ratio": "schedule.warmup_fraction",
    "max_seq_length": "model.n_ctx",
    "output_dir": "run.dir",
    "run_name": "run.name",
    "model_name_or_path": "init.checkpoint",
    "task_name": "task.name",
    "save_steps": "checkpoint.every",
    "eval_steps": "eval.every",
    "logging_steps": "log.every",
}
"""The names of other trainers."""
LEAST_SIMILARITY = 0.7


def settings_of(cls: type[PretrainConfig]) -> dict[str, bool]:
    """Every `section.key` of `cls`; whether it is true or false."""
    sections = cls()
    found = {}
    for section in dataclasses.fields(cls):
        values = getattr(sections, section.name)
        for field in dataclasses.fields(values):
            found[f"{section.name}.{field.name}"] = field.type is bool
    return found


def spelling_for(cls: type[PretrainConfig]) -> Spelling:
    """The `spelling` of a parser of settings of `cls`."""

    def spelling(name: str, value: str) -> str:
        settings = settings_of(cls)
        section, _, rest = name.replace("-", "_").partition(".")
        key, dot, entry = rest.partition(".")  # data.weights.NAME=VALUE
        names = similar(f"{section}.{key}" if key else section, list(settings))
        return " or ".join(
            quoted(f"{found}{dot}{entry}", value or ("true" if settings[found] else ""))
            for found in names
        )

    return spelling


def similar(name: str, settings: list[str]) -> list[str]:
    """The settings that `name` may mean: `lr`, `train.lr`, `optim_lr`, `lrate`, `learning_rate`."""
    if name in settings:
        return [name]
    joined = [setting for setting in settings if setting.replace(".", "_") == name]
    key = name.rpartition(".")[2]
    same_key = [setting for setting in settings if setting.partition(".")[2] == key]
    if joined or same_key:
        return joined or same_key
    if others := [other for other in OTHER_NAMES.get(name, "").split() if other in settings]:
        return others
    if "." in name:
        return difflib.get_close_matches(name, settings, 1, LEAST_SIMILARITY)
    keys = {setting.partition(".")[2]: setting for setting in settings}
    close = difflib.get_close_matches(key, keys, 1, LEAST_SIMILARITY)
    return [setting for setting in settings if setting.partition(".")[2] in close]
