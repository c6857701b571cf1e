"""TensorBoard's text and settings: no secrets, what is true now, no fault that ends a run."""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from gpt1_ds.runs.board import SESSION, tag_of
from gpt1_ds.runs.log import RunLog

CONFIG = """\
run: {name: own, dir: runs, seed: 7}
model: {preset: gpt1, n_layer: 2, n_embd: 8, kind: transformer}
data: {shards: 'https://me:word@host/x?sig=abc'}
train: {global_batch: 4, max_steps: null, compile: false}
optim: {lr: 0.5, betas: [0.9, 0.99]}
init: {checkpoint: 'https://me:word@host/run?sig=abc'}
"""


def read(folder):
    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def session(folder):
    """What HPARAMS reads: settings by name, and the status."""
    content = read(folder).PluginTagToContent("hparams")
    start = content[metadata.SESSION_START_INFO_TAG]
    end = content[metadata.SESSION_END_INFO_TAG]
    hparams = metadata.parse_session_start_info_plugin_data(start).hparams
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
    return shown, metadata.parse_session_end_info_plugin_data(end)


def test_the_session_says_what_is_true_now(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "deepspeed.json").write_text('{"bf16": {"enabled": true}}')
    log = RunLog(tmp_path, 0)
    log.status("running", 0)
    shown, end = session(tmp_path)
    assert shown == {
        "ranks": 1.0,
        "precision": "bf16",
        "zero_stage": 0.0,
        "model": "2 x 8",
        "run.seed": 7.0,
        "model.n_layer": 2.0,
        "model.n_embd": 8.0,
        "model.kind": "transformer",
        "batch": 4.0,
        "train.compile": False,
        "lr": 0.5,
        "optim.betas": "[0.9, 0.99]",
        "init.checkpoint": "https://***@host/run?***",
    }
    assert end.status == api_pb2.STATUS_RUNNING and not end.end_time_secs
    log.status("stopped", 3, 75)
    log.close()
    assert session(tmp_path)[1].status == api_pb2.STATUS_UNKNOWN
    (tmp_path / "config.yaml").write_text(CONFIG.replace("lr: 0.5", "lr: 0.25"))
    log = RunLog(tmp_path, 3)
    for state, status in (
        ("running", api_pb2.STATUS_RUNNING),
        ("failed", api_pb2.STATUS_FAILURE),
        ("done", api_pb2.STATUS_SUCCESS),
    ):
        log.status(state, 3)
        shown, end = session(tmp_path)
        assert shown["lr"] == 0.25 and end.status == status
    log.close()
    assert len(list(tmp_path.glob("*.tfevents"))) == 1, "one session, whatever happened"


def test_text_has_no_secrets(tmp_path, monkeypatch):
    shards = "data.shards=https://me:word@host/x?sig=abc"
    monkeypatch.setattr(sys, "argv", ["train.py", "--local_rank=0", shards, "run.name=my run"])
    (tmp_path / "config.yaml").write_text(CONFIG)
    RunLog(tmp_path, 0).close()
    board = read(tmp_path)
    texts = {
        name: board.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("command", "config.yaml")
    }
    lines = texts["command"].splitlines()
    assert lines == [
        "    train.py 'data.shards=https://***@host/x?***' 'run.name=my run'",
        "    # 1 rank",
    ]
    assert "me:word" not in texts["config.yaml"] and "sig=abc" not in texts["config.yaml"]


def test_a_session_that_cannot_be_written_is_told_once(tmp_path, capsys):
    (tmp_path / SESSION).mkdir()
    for name in ("config.yaml", "deepspeed.json"):
        (tmp_path / name).write_text("- damaged [")
    log = RunLog(tmp_path, 0)
    for step, state in enumerate(("running", "running", "failed", "done")):
        log.log(step, "train", loss=1.0)
        log.status(state, step)
    log.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / SESSION}: Is a directory; training goes on")
    (tmp_path / SESSION).rmdir()
    assert len(read(tmp_path).Scalars("loss/train")) == 4


def test_details_sort_after_the_losses():
    tags = {
        tag_of("train", "loss"): "train/loss",
        tag_of("train", "loss_scale"): "x_progress/loss_scale",
        tag_of("train", "grad_norm"): "train/grad_norm",
        tag_of("train", "grad_norm/wte"): "x_norms/grad_norm/wte",
        tag_of("train", "communication_seconds"): "x_time/communication_seconds",
        tag_of("train", "device_bytes"): "x_memory/device_bytes",
        tag_of("valid", "perplexity", "books"): "valid/perplexity/books",
        tag_of("task", "accuracy"): "task/accuracy",
        tag_of("checkpoint", "write_seconds"): "x_checkpoint/write_seconds",
    }
    assert list(tags) == list(tags.values())
