"""The options of the training commands: `--help` from the fields, `--print-config`."""

import dataclasses
import os
from functools import partial

import pytest
import yaml

from gpt1_ds import train
from gpt1_ds.runs.suite_options import suite_parser
from gpt1_ds.settings.command_line import _parser, describe, field_docs
from gpt1_ds.settings.loading import load, to_dict, to_yaml
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig, TaskConfig
from gpt1_ds.tasks import TASKS
from tests.conftest import run, succeed

COMMANDS = {"gpt1_ds/train.py": PretrainConfig, "gpt1_ds/finetune.py": FinetuneConfig}
A_SECOND_RANK = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def test_help_describes_every_key():
    lines = describe(FinetuneConfig).splitlines()
    for section, keys in to_dict(FinetuneConfig()).items():
        for key in keys:
            line = next(line for line in lines if line.startswith(f"  {section}.{key}="))
            assert len(line.split(maxsplit=1)[1]) > 5, f"{section}.{key} has no description"


@pytest.mark.parametrize(
    "out", ["runs/one", "one", "/tmp/a: b/\u00fc \U0001f600", "null/~", "../x/."]
)
def test_out_is_the_folder_of_the_run(out, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        train.main(["--print-config", "--out", out])
    run = yaml.safe_load(capsys.readouterr().out)["run"]
    assert os.path.abspath(os.path.join(run["dir"], run["name"])) == os.path.abspath(out)


@pytest.mark.parametrize("make", [partial(_parser, FinetuneConfig), suite_parser])
def test_the_deepspeed_json_has_two_spellings_and_a_name(make):
    for option in ("--deepspeed_config", "--deepspeed-config"):
        args = make(None).parse_args([option, "cpu"])
        assert args.deepspeed_config.endswith("/ds_configs/cpu.json")


def test_help_names_every_task():
    listed = field_docs(TaskConfig)["name"].split(":")[1].split(";")[0]
    assert [name.strip() for name in listed.split(",")] == sorted(TASKS)


@dataclasses.dataclass
class Section:
    first: int = 1
    """Two lines
    of text."""
    second: int = 2
    third: int = 3
    """One."""


def test_the_text_under_a_field_becomes_one_line():
    assert field_docs(Section) == {"first": "Two lines of text.", "third": "One."}


@pytest.mark.parametrize("path", COMMANDS)
def test_print_config_shows_the_resolved_settings_and_starts_nothing(path, tmp_path):
    overrides = [f"run.dir={tmp_path}/runs", "optim.lr=1e-4", "data.shards=absent"]
    done = succeed("python", path, "--print-config", *overrides, timeout_seconds=60)
    config = None if path == "gpt1_ds/finetune.py" else "gpt1_ds/configs/pretrain_gpt1.yaml"
    assert done.stdout == to_yaml(load(COMMANDS[path], config, overrides))
    assert yaml.safe_load(done.stdout)["optim"]["lr"] == 1e-4
    assert list(tmp_path.iterdir()) == []


def test_print_config_gives_the_text_of_a_runs_config_yaml(tiny_run):
    written = tiny_run / "config.yaml"
    done = succeed("python", "gpt1_ds/train.py", "--print-config", "--config", written)
    assert done.stdout == written.read_text()


def test_print_config_is_for_one_rank_and_refuses_as_a_run_would():
    train = ("python", "gpt1_ds/train.py", "--print-config")
    ports = A_SECOND_RANK | {"MASTER_PORT": "29500"}
    assert succeed(*train, timeout_seconds=60, **ports).stdout == ""
    refused = run(*train, "optim.lrr=1", timeout_seconds=60)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and "write optim.lr=1" in refused.stderr
