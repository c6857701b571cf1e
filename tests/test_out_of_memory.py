"""Too little memory ends in one line with the need, what is there and what to change; code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt1_ds.base.errors import DataError, MemoryShortage, as_user_error
from gpt1_ds.base.memory import is_shortage
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.memory_need import MemoryNeed
from gpt1_ds.runs.setup import Settings
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from tests.conftest import ROOT

MB = 10**6
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of "
    "which 512.00 MiB is free. Including non-PyTorch memory, this process has 78.6 GiB in use."
)
REMEDIES = (
    "lower train.micro_batch",
    "train.activation_checkpointing=true",
    "ZeRO stage",
    "offload",
    "gpt1_ds.plan",
)


@pytest.fixture(scope="module")
def ends(tiny_run: Path, tiny_shards: Path, sample: Path, tmp_path_factory) -> dict[str, list]:
    """What each command says that runs out of memory."""
    runs = tmp_path_factory.mktemp("full")
    common = ["--deepspeed_config", str(ROOT / "ds_configs/cpu.json"), f"run.dir={runs}"]
    train = [*common, f"data.shards={tiny_shards}", "model.preset=gpt1-tiny", "model.n_ctx=128"]
    large = ["model.n_embd=4096", "model.n_head=8", "train.global_batch=8"]
    batch = ["train.global_batch=1024", "train.micro_batch=1024", "eval.batches=1"]
    tuned = [*common, f"init.checkpoint={tiny_run}", "task.name=sst2", "run.name=tuned"]
    tuned += [f"task.data={sample / 'tasks' / 'SST-2'}", "train.global_batch=800"]
    novel = next((sample / "books" / "train").glob("*.txt"))
    cases = {
        "start": ("train", 800 * MB, [*train, *large, "run.name=start"]),
        "validation": ("train", 600 * MB, [*train, *batch, "run.name=validation"]),
        "step": ("train", 1500 * MB, [*train, *batch, "run.name=step"]),
        "finetune": ("finetune", 700 * MB, [*tuned, "train.micro_batch=800"]),
        "eval": ("eval", MB, [str(tiny_run), "--data", str(novel)]),
        "generate": ("generate", MB, [str(tiny_run)]),
        "export": ("export", 30 * MB, [str(tiny_run), str(runs / "out")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cases_memory"],
        input=json.dumps(list(cases.values())),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", ["start", "validation", "step", "finetune"])
def test_a_run_names_its_need_and_what_to_change(ends, name):
    code, out, err = ends[name]
    *_, last = err.splitlines()
    assert code == 2, err
    assert last.startswith("error: not enough memory: the run needs about ") and "free" in last
    assert all(remedy in last for remedy in REMEDIES) and "Traceback" not in err
    assert "memory   about" in out
    assert "warning: about" in err or name == "finetune"
    told = out.index("memory   about")
    banner = out.find("\nrun ")
    assert banner == -1 or told < banner
    assert ("of 158 done" in out) == (name in ("validation", "step"))
    assert ("validation loss" in out) == (name == "step")


@pytest.mark.parametrize("name", ["eval", "generate", "export"])
def test_other_commands_say_what_is_free(ends, name):
    code, _, err = ends[name]
    assert code == 2 and err.splitlines()[-1].startswith("error: not enough memory: "), err
    assert " GB are free; end other programs" in err and "Traceback" not in err


def settings_of(*words: str) -> Settings[PretrainConfig]:
    config = load(PretrainConfig, None, list(words))
    ds = deepspeed_json.resolve(ROOT / "ds_configs" / "cpu.json", config, 1)
    return Settings(config, ds, False)


def test_a_gpu_goes_the_same_way(capsys):
    need = MemoryNeed(settings_of("train.micro_batch=64"))
    need.tell(GPTConfig(40_000))
    assert "GB for activations; " in capsys.readouterr().out
    with pytest.raises(MemoryShortage) as caught, need.explained():
        raise torch.cuda.OutOfMemoryError(CUDA)
    text = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in text
    assert "2.15 GB more were asked for, 0.54 of 84.9 GB are free on the GPU" in text
    assert "lower train.micro_batch (now 64)" in text and "ZeRO stage (now 2)" in text
    with pytest.raises(DataError, match="other"), need.explained():
        raise DataError("other")
    with pytest.raises(RuntimeError, match="shapes"), need.explained():
        raise RuntimeError("shapes differ")


def test_a_warning_is_given_only_if_the_need_is_more_than_there_is(capsys):
    need = MemoryNeed(settings_of("train.global_batch=8"))
    need.tell(GPTConfig(512, n_layer=1, n_head=1, n_embd=8, n_ctx=8))
    assert "warning" not in capsys.readouterr().err
    need.tell(GPTConfig(40_000, n_layer=10_000, n_embd=8192))
    err = capsys.readouterr().err
    assert err.startswith("warning: about ") and err.count("\n") == 1
    assert all(remedy in err for remedy in REMEDIES)


def test_which_errors_are_of_memory():
    for error in (MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("bad_alloc")):
        assert is_shortage(error) and isinstance(as_user_error(error), MemoryShortage)
    assert not is_shortage(OSError(2, "No such file")) and not is_shortage(ValueError("memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert "more were asked for" in str(as_user_error(caught.value))
    # Python's words where there is no memory left for the stack of a thread.
    assert "ulimit -u" in str(as_user_error(RuntimeError("can't start new thread")))
