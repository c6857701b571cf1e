"""Settings: what each shipped YAML and DeepSpeed JSON come to, and what the planner says of one."""

import dataclasses
from typing import Any

from gpt1_ds.base.errors import UserError
from gpt1_ds.plan import main as plan
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load, to_dict
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig, PretrainConfig
from tests.conftest import ROOT
from tests.golden.prepared import quietly
from tests.golden.store import Group, digest, json_digest

SETTINGS = Group("settings")

YAMLS = sorted((ROOT / "gpt1_ds" / "configs").glob("*.yaml"))
JSONS = sorted((ROOT / "ds_configs").glob("*.json"))
RANKS = 2


def kind_of(name: str) -> type[PretrainConfig]:
    return FinetuneConfig if name.startswith("finetune") else PretrainConfig


def flat(config: PretrainConfig) -> dict[str, Any]:
    values = {}
    for section, keys in to_dict(config).items():
        values |= {f"{section}.{key}": value for key, value in keys.items()}
    return values


@SETTINGS.value
def defaults_of_pre_training() -> dict[str, Any]:
    return flat(load(PretrainConfig, None, []))


@SETTINGS.value
def defaults_of_fine_tuning() -> dict[str, Any]:
    """Those that pre-training does not have, or has otherwise."""
    usual = flat(load(PretrainConfig, None, []))
    values = flat(load(FinetuneConfig, None, []))
    return {key: value for key, value in values.items() if usual.get(key, "none") != value}


@SETTINGS.value
def presets() -> dict[str, Any]:
    return PRESETS


@SETTINGS.value
def shipped_configurations() -> dict[str, Any]:
    """What each YAML sets otherwise than the defaults; the digest is of the whole."""
    found = {}
    for path in YAMLS:
        cls = kind_of(path.stem)
        usual, values = flat(load(cls, None, [])), flat(load(cls, path, []))
        changes = {key: value for key, value in values.items() if usual[key] != value}
        found[path.name] = [changes, json_digest(values)]
    return found


def resolved(yaml: Any, json: Any) -> dict[str, Any] | str:
    """DeepSpeed's JSON on two ranks, or the line that refuses it."""
    config = load(kind_of(yaml.stem), yaml, [])
    try:
        return resolve(json, config, RANKS, on_this_machine=False)
    except UserError as error:
        return str(error).replace(str(ROOT), "<root>")


@SETTINGS.value
def deepspeed_of_the_paper() -> dict[str, Any]:
    """In full, for each JSON."""
    paper = ROOT / "gpt1_ds" / "configs" / "pretrain_gpt1.yaml"
    return {path.name: resolved(paper, path) for path in JSONS}


@SETTINGS.value
def deepspeed_of_all() -> dict[str, Any]:
    """Digests, for each YAML in the order of the JSONs."""
    found = {}
    for yaml in YAMLS:
        found[yaml.name] = [json_digest(resolved(yaml, json)) for json in JSONS]
    return found


@SETTINGS.value
def sections() -> dict[str, list[str]]:
    """Names of all sections and keys, in their order."""
    fields = {section.name: section for section in dataclasses.fields(FinetuneConfig)}
    defaults = {name: section.default_factory() for name, section in fields.items()}
    return {name: [f.name for f in dataclasses.fields(keys)] for name, keys in defaults.items()}


@SETTINGS.value
def plan_of_the_paper() -> list[str]:
    """At a number of tokens that is given, so that no shards are looked for."""
    return quietly(plan, "--tokens", 1_000_000_000).splitlines()


@SETTINGS.value
def plan_of_a_large_model() -> list[str]:
    words = ["--nodes", 4, "--gpu-memory", 40, "--host-memory", 500, "--tokens", 10**9]
    return quietly(plan, *words, "model.preset=6.7b", "train.global_batch=256").splitlines()


@SETTINGS.value
def plan_sweep() -> dict[str, Any]:
    lines = quietly(plan, "--sweep").splitlines()
    return {"lines": len(lines), "first": lines[:3], "digest": digest("\n".join(lines))}
