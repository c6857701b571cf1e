"""What TensorBoard shows of a run: its curves, a layout for them, settings, the command.

Scalars, text and pictures go into the event file of the start. The tab HPARAMS needs one session a
run: it is the file board.tfevents, which every start replaces. TensorBoard keeps the first value of
a setting that it reads, so a file that starts append to would show the settings of the first start.
"""

import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import METRICS_FILE
from gpt1_ds.base.urls import hide_secrets
from gpt1_ds.distributed import collectives
from gpt1_ds.runs.directory import CONFIG, DEEPSPEED, flat
from gpt1_ds.settings.deepspeed_json import precision, zero_stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a second to import

EVENT_FILE = re.compile(r"(?P<head>events\.out\.tfevents\.)(?P<second>\d{1,18})(?P<rest>\..*)")
SESSION = "board.tfevents"
"""TensorBoard reads the files of a folder by name: this one comes before events.out.tfevents.*."""
EVENT_VERSION = "brain.Event:2"
MOST_BYTES = 1 << 16
"""Longest first line of metrics.jsonl that is read."""
LOSSES = "loss"
"""The group that TensorBoard shows first: `loss/train` and `loss/valid/CORPUS`, once more."""
TRAIN_TAGS = ("loss", "task_loss", "lm_loss", "lr", "grad_norm", "tokens_per_second", "mfu")
"""Values of a training record that are in the group `train`."""
ZERO_SHOT_TAGS = ("accuracy", "perplexity")
"""Values of a zero-shot record that are in the group `zero_shot`; the others are details."""
DETAILS = {
    "x_memory": re.compile(r"\w+_bytes"),
    "x_norms": re.compile(r"(grad|weight)_norm/.*"),
    "x_time": re.compile(r"\w+_seconds"),
}
"""Groups of the other values, by their names; what no pattern matches is in `x_progress`.

TensorBoard sorts groups and tags by name. It opens the first two groups, and in the tab HPARAMS it
shows the first five tags. So the names of details begin with `x_`.
"""
LAYOUT = {
    "Overview": {
        "Loss: training and validation": ["Multiline", ["^train/loss$", "^valid/loss/"]],
        "Scores on dev": ["Multiline", ["^task/"]],
        "Zero-shot accuracy": ["Multiline", ["^zero_shot/accuracy/"]],
        "Learning rate": ["Multiline", ["^train/lr$"]],
        "Tokens a second": ["Multiline", ["^train/tokens_per_second$"]],
        "Seconds of a step, by part": ["Multiline", ["^x_time/"]],
    }
}
"""The charts of the tab CUSTOM SCALARS; each has the tags that match its patterns."""
SHOWN_SECTIONS = ("model.", "optim.", "schedule.", "train.", "task.", "init.", "run.seed")
"""Settings in the tab HPARAMS. It shows five at first: those that differ, then by name."""
NOT_SHOWN = ("model.preset", "task.data")
"""The numbers that a preset stands for are shown; a path says nothing that the task does not."""
SHORT_NAMES = {"train.global_batch": "batch", "optim.lr": "lr"}
STATUS = {
    "running": api_pb2.STATUS_RUNNING,
    "done": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
}
"""The state of a run as TensorBoard names it; it has no name for a run that is stopped."""


class Board:
    """The event files of one start, which begins or resumes at `resume_step`."""

    def __init__(self, run_dir: Path, resume_step: int):
        self.run_dir = run_dir
        self.state = ""
        _make_newest(run_dir)
        purge_step = resume_step + 1 if resume_step else 0
        self.writer = SummaryWriter(str(run_dir), purge_step=purge_step)
        self.writer.add_custom_scalars(LAYOUT)
        self.writer.add_text("command", _as_code(_command()), resume_step)
        for name in (CONFIG, DEEPSPEED):
            path = run_dir / name
            if path.exists():
                text = path.read_text(encoding="utf-8", errors="replace")
                self.writer.add_text(name, _as_code(text), resume_step)

    def scalars(
        self, step: int, split: str, corpus: str | None, values: Mapping[str, float]
    ) -> None:
        for name, value in values.items():
            self.writer.add_scalar(tag_of(split, name, corpus), value, step)
        if "loss" in values:
            self.writer.add_scalar(tag_of(LOSSES, split, corpus), values["loss"], step)
        self.writer.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        self.writer.add_text(tag, text, step)

    def figure(self, tag: str, draw: Callable[[], "Figure"], step: int) -> None:
        self.writer.add_figure(tag, draw(), step)

    def show_state(self, state: str) -> None:
        """Replace board.tfevents, if the run is in another state than before.

        It holds no losses: the tab HPARAMS shows the last value of each curve.
        """
        if state == self.state:
            return
        self.state = state
        started = _first_start(self.run_dir)
        start = SessionStartInfo(start_time_secs=started)
        for name, value in _shown_settings(self.run_dir).items():
            start.hparams[name].MergeFrom(_as_proto(value))
        end = SessionEndInfo(
            status=STATUS.get(state, api_pb2.STATUS_UNKNOWN),
            end_time_secs=0.0 if state == "running" else time.time(),
        )
        summary = Summary()
        for tag, content in (
            (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
            (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
        ):
            about = metadata.create_summary_metadata(content)
            summary.value.add(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
        # TensorBoard also reads a temporary file with `tfevents` in its name.
        temporary = self.run_dir / ".board.tmp"
        with temporary.open("wb") as file:
            records = RecordWriter(file)
            for event in (
                Event(wall_time=started, file_version=EVENT_VERSION),
                Event(wall_time=started, summary=summary),
            ):
                records.write(event.SerializeToString())
        os.replace(temporary, self.run_dir / SESSION)

    def close(self) -> None:
        self.writer.close()


def tag_of(split: str, name: str, corpus: str | None = None) -> str:
    """The tag of a value in TensorBoard: `split/name[/corpus]`, or one of a group of details."""
    if split == "checkpoint":
        return f"x_checkpoint/{name}"
    if split == "train" and name not in TRAIN_TAGS:
        fitting = [group for group, names in DETAILS.items() if names.fullmatch(name)]
        return f"{fitting[0] if fitting else 'x_progress'}/{name}"
    if split == "zero_shot" and name not in ZERO_SHOT_TAGS:
        return f"x_zero_shot/{corpus}/{name}"
    return f"{split}/{name}/{corpus}" if corpus else f"{split}/{name}"


def _as_code(text: str) -> str:
    """Markdown that shows the lines as they are, without the secrets of addresses."""
    return "\n".join(f"    {line}" for line in hide_secrets(text).rstrip().splitlines())


def _command() -> str:
    """The words that started this process, as a shell takes them; the launcher is not known."""
    words = [word for word in sys.argv if not word.startswith(("--local_rank", "--local-rank"))]
    ranks = collectives.world_size()
    shown = shlex.join([hide_secrets(word) for word in words])
    return f"{shown}\n# {ranks} rank{'s' if ranks > 1 else ''}"


def _first_start(run_dir: Path) -> float:
    """When the run began, in seconds since 1970: the time in the first line of its records."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            record = json.loads(file.readline(MOST_BYTES))
        return float(record["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return time.time()


def _shown_settings(run_dir: Path) -> Json:
    """The settings that decide what is trained, and on how many ranks; what is null is left out."""
    shown: Json = {"ranks": collectives.world_size()}
    try:
        ds = json.loads((run_dir / DEEPSPEED).read_text(encoding="utf-8"))
        shown |= {"precision": precision(ds), "zero_stage": zero_stage(ds)}
        config = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
        settings = flat(config)
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return shown  # damaged: the start has told it, or there is nothing to show
    shown["model"] = f"{settings.get('model.n_layer')} x {settings.get('model.n_embd')}"
    for name, value in settings.items():
        if name.startswith(SHOWN_SECTIONS) and name not in NOT_SHOWN and value is not None:
            shown[SHORT_NAMES.get(name, name)] = value
    return shown


def _as_proto(value: object) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, int | float) and math.isfinite(value):
        return Value(number_value=value)
    return Value(string_value=hide_secrets(str(value)))


def _make_newest(run_dir: Path) -> None:
    """Rename the event files of earlier starts that are named with this second or a later one.

    TensorBoard reads event files in the order of the seconds in their names. If the clock was set
    back, what an earlier start logged past the checkpoint would show again.
    """
    second = int(time.time())
    for path in sorted(run_dir.glob("events.out.tfevents.*"), reverse=True):
        name = EVENT_FILE.fullmatch(path.name)
        if name is None:
            continue  # not a file that TensorBoard's writer made
        second = min(second - 1, int(name["second"]))
        if second < int(name["second"]):
            path.rename(path.with_name(f"{name['head']}{second:010d}{name['rest']}"))
