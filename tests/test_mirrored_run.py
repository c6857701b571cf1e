"""A run of two ranks with a mirror: its folder is lost, and it goes on bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch

from gpt1_ds import eval, export, generate
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.checkpoints.folder import checkpoint_folders, read_state
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.mirror import Store
from tests.conftest import succeed
from tests.support.launched_runs import command
from tests.support.s3_server import BUCKET, s3_server

URL = f"{BUCKET}/lost/run"


WORDS = ("train.max_steps=6", "checkpoint.every=3", f"checkpoint.mirror={URL}")


@pytest.fixture
def s3(monkeypatch, tmp_path):
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        yield s3


def test_a_lost_run_goes_on_from_its_mirror(tiny_shards, s3, tmp_path, capsys):
    done = succeed(*command(tiny_shards, tmp_path, *WORDS))
    store, run = Store(URL), tmp_path / "run"
    assert store.steps()[0] == "step-00000006", done.stderr
    whole, _ = load_weights(run)
    shutil.move(run, tmp_path / "undisturbed")
    newest = "checkpoints/step-00000006"
    store.remove_folder(newest, store.names(newest))
    done = succeed(*command(tiny_shards, tmp_path, *WORDS))
    assert f"restoring step-00000003 from {URL}" in done.stdout
    assert [path.name for path in checkpoint_folders(run / "checkpoints")][-1] == "step-00000003"
    again, state = load_weights(run)
    assert state.step == 6 and all(torch.equal(again[name], w) for name, w in whole.items())
    undisturbed = checkpoint_folders(tmp_path / "undisturbed" / "checkpoints")[0]
    assert read_state(undisturbed) == state
    check_commands(run, tiny_shards, tmp_path, capsys)


def check_commands(run: Path, shards: Path, tmp_path: Path, capsys) -> None:
    """The commands take the URL, and say of it what they say of the folder."""
    printed = []
    for source in (str(run), URL):
        eval.main([source, "--data", str(shards)])
        generate.main([source, "--prompt", "The old", "--max-new-tokens", "5"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    export.main([URL, str(tmp_path / "hf")])
    assert (tmp_path / "hf" / "config.json").exists()
    with pytest.raises(ConfigError, match="--average 2: s3://runs/lost/run is an address"):
        eval.main([URL, "--data", str(shards), "--average", "2"])
    begun = ("train.max_steps=1", "run.name=new", f"init.checkpoint={URL}", "optim.lr=1e-9")
    succeed(*command(shards, tmp_path, *begun))
    ours, theirs = load_weights(run)[0], load_weights(tmp_path / "new")[0]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
