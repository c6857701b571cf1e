"""Names of runs and files on a command line."""

from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.options import run_path
from gpt1_ds.settings.shipped import config_of_task, config_path, ds_config_path, ds_configs
from tests.conftest import ROOT


def test_a_run_is_found_from_each_of_its_folders(tmp_path: Path, monkeypatch):
    run = tmp_path / "runs" / "a"
    step = run / "best" / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    (run / "checkpoints").mkdir()
    (run / "config.yaml").touch()
    for folder in (run, run / "checkpoints", run / "best", step):
        assert run_path(str(folder)) == run
    monkeypatch.chdir(run / "best")
    assert run_path(".") == run
    assert run_path("nowhere") == Path("nowhere")


def test_shipped_files_have_names_and_a_file_of_that_name_wins(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path(ds_config_path("cpu"))
    assert shipped.samefile(ROOT / "ds_configs" / "cpu.json")
    assert ds_config_path("cpu.json") == str(shipped)
    assert ds_configs() == sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
    assert Path(config_path(True)("finetune_sst2")).parent == ROOT / "gpt1_ds" / "configs"
    (tmp_path / "cpu.json").mkdir()  # a folder is no such file
    assert ds_config_path("cpu.json") == str(shipped)
    (tmp_path / "cpu").touch()
    assert ds_config_path("cpu") == "cpu"
    for name in ("gpu", "ds_configs/cpu.json", "absent/cpu"):
        with pytest.raises(ConfigError, match=f"{name}: no such file.* one of: cpu, cpu_fp32, "):
            ds_config_path(name)
    with pytest.raises(ConfigError, match="one of: finetune_cola, .*finetune_wnut17$"):
        config_path(True)("finetune_sst3")


def test_a_task_has_its_shipped_settings():
    cola = config_path(True)("finetune_cola")
    assert config_of_task(["optim.lr=1", "task.name=cola"]) == cola
    assert config_of_task(["task.name=cola", "data.shards=s", "init.checkpoint=runs/a"]) == cola
    assert config_of_task(["task.name=cola", "data.shards=s"]) is None  # from random weights
    assert config_of_task(["task.name=cola", "task.kind=classification"]) is None
    assert config_of_task(["task.name=mine"]) is None and config_of_task([]) is None
