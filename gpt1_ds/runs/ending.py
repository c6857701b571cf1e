"""The end of a run: what it says when it is done, and when it is started again after that."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gpt1_ds.base.files import file_sha256
from gpt1_ds.base.formatting import duration
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import read_metrics, read_object
from gpt1_ds.checkpoints.folder import checkpoint_folders, read_state
from gpt1_ds.checkpoints.loading import faults_on_all_ranks
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.runs import pre_training
from gpt1_ds.runs.directory import record_settings
from gpt1_ds.runs.fine_tuning import given_up, total_steps
from gpt1_ds.runs.log import STATUS_FILE
from gpt1_ds.runs.pre_training import Corpora
from gpt1_ds.runs.provenance import differences, made_from
from gpt1_ds.runs.setup import Settings, check_state_of_run
from gpt1_ds.runs.task_data import TaskData
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig, TrainConfig

ConfigT = TypeVar("ConfigT", bound=PretrainConfig)
BUDGETS = ("max_steps", "tokens", "flops", "epochs")
"""The settings of `train` that end a run, of which the first to be reached counts."""


def pretraining_is_done(
    settings: Settings[PretrainConfig], folder: Path, data: Corpora, facts: CheckpointState
) -> bool:
    """Whether the run was trained and validated to its end; then it says so. All ranks call."""
    state = finished_state(settings, folder, facts)
    if state is None or not has_record(folder, "valid", state.step):
        return False
    config = settings.config

    def steps_with(train: TrainConfig) -> int:
        return pre_training.continued(data, train, state).total_steps

    if state.step < steps_with(config.train):
        return False
    more = longer(config.train, state.step, steps_with)
    say_nothing_to_do(settings, folder, state.step, more, after_pretraining(config, folder))
    return True


def fine_tuning_is_done(
    settings: Settings[FinetuneConfig], folder: Path, data: TaskData, facts: CheckpointState
) -> bool:
    """Whether the run is trained to its end and its result stands; then it says so.

    All ranks call.
    """
    state = finished_state(settings, folder, facts)
    if state is None or not has_record(folder, "task", state.step):
        return False
    config = settings.config

    def steps_with(train: TrainConfig) -> int:
        return total_steps(replace(config, train=train), data, state)

    gave_up = given_up(config.task.patience, state.best)
    if not gave_up and state.step < steps_with(config.train):
        return False
    if not best_is_there(folder, state.best) or not result_stands(config, folder, facts, data):
        return False
    longer_train = longer(config.train, state.step, steps_with)
    more = "task.patience=null" if gave_up else longer_train
    say_nothing_to_do(settings, folder, state.step, more, after_fine_tuning(config, folder))
    return True


def finished_state(
    settings: Settings[ConfigT], folder: Path, facts: CheckpointState
) -> CheckpointState | None:
    """The last state of a run that is done by its status.json, if its checkpoint verifies.

    All ranks call, after `claim_folder`. The errors are those of a resume.
    """
    name = None
    if not settings.from_scratch and read_object(folder / STATUS_FILE).get("state") == "done":
        name = next((path.name for path in checkpoint_folders(folder / "checkpoints")), None)
    name = collectives.from_main(name)
    if name is None or faults_on_all_ranks(folder / "checkpoints" / name):
        return None
    state = read_state(folder / "checkpoints" / name)
    check_state_of_run(state, facts, folder, settings.config.data.weights)
    return state


def has_record(folder: Path, split: str, step: int) -> bool:
    """Whether metrics.jsonl has one, for rank 0. All ranks call."""
    found = collectives.is_main() and any(
        record["step"] == step for record in read_metrics(folder, split)
    )
    return bool(collectives.from_main(found))


def result_stands(
    config: FinetuneConfig, folder: Path, facts: CheckpointState, data: TaskData
) -> bool:
    """Whether result.json was made from these settings and data, and its files are all there.

    All ranks call.
    """

    def stands() -> bool:
        result = read_object(folder / "result.json")
        files, made = result.get("files"), result.get("made_from")
        if not isinstance(files, dict) or not isinstance(made, dict):
            return False
        if result.get("predicted") != data.predicted or differences(made, made_from(config, facts)):
            return False
        paths = [folder / name for name in files]
        return all(path.is_file() and file_sha256(path) == files[path.name] for path in paths)

    stand = collectives.is_main() and stands()
    return bool(collectives.from_main(stand))


def best_is_there(folder: Path, best: Json | None) -> bool:
    """Whether the weights of the `best` score are in best/, for rank 0. All ranks call."""
    found = best is not None and any(
        read_state(path).best == {**best, "stale": 0}
        for path in checkpoint_folders(folder / "best" / "checkpoints")
    )
    return bool(collectives.from_main(found))


def longer(train: TrainConfig, steps: int, steps_with: Callable[[TrainConfig], int]) -> str:
    """The setting to raise, such as `train.max_steps=1200`, so that a run of `steps` goes on."""
    doubled = {
        name: 2 * getattr(train, name) for name in BUDGETS if getattr(train, name) is not None
    }
    alone = [
        name for name in doubled if steps_with(replace(train, **{name: doubled[name]})) > steps
    ]
    return " ".join(f"train.{name}={doubled[name]:g}" for name in alone[:1] or doubled)


def say_nothing_to_do(
    settings: Settings[ConfigT], folder: Path, step: int, more: str, commands: list[str]
) -> None:
    """What a start of a run that is done prints. All ranks call."""
    say(f"{folder}: nothing to do, all {step} steps are done")
    record_settings(folder, settings.config, settings.ds, finished=True)
    say(f"go on    add {more} to train longer, or --from-scratch to start over")
    say_next(commands)


def say_done(folder: Path, saved: Path, commands: list[str]) -> None:
    """The last lines of a run: steps, time, loss, the checkpoint, what to type next."""
    if not collectives.is_main():
        return
    records = read_metrics(folder)
    trained = [record for record in records if record["split"] == "train"]
    last = trained[-1] if trained else {}
    seconds = max((record.get("elapsed_seconds") or 0.0 for record in records), default=0.0)
    loss = f", loss {last['loss']:.3f}" if last.get("loss") is not None else ""
    say(f"done     {last.get('step', 0)} steps in {duration(seconds)}{loss}\nsaved    {saved}")
    say_next(commands)


def say_next(commands: list[str]) -> None:
    for number, command in enumerate(commands):
        say(f"{'' if number else 'next':8} {command}", folded=False)


def newest_checkpoint(folder: Path) -> Path:
    return next(iter(checkpoint_folders(folder / "checkpoints")), folder)


def after_pretraining(config: PretrainConfig, folder: Path) -> list[str]:
    """The next two commands: text from the model, and its perplexity."""
    shards = str(config.data.shards)
    commands = [_typed("generate", folder, "--prompt", "One morning")]
    if "://" in shards:
        return [*commands, _typed("export", folder, "--out", f"{folder}-hf")]
    return [*commands, _typed("eval", folder, "--data", shards)]


def after_fine_tuning(config: FinetuneConfig, folder: Path) -> list[str]:
    """The next two commands: the scores again, and the export."""
    task = config.task
    return [
        _typed("eval", folder, "--task", task.name, "--data", str(task.data)),
        _typed("export", folder, "--out", f"{folder}-hf"),
    ]


def _typed(command: str, folder: Path, *words: str) -> str:
    """A command of the project as a user types it in the shell that started this run."""
    found = shutil.which("python")
    python = "python" if found and Path(found).samefile(sys.executable) else sys.executable
    return shlex.join([python, "-m", f"gpt1_ds.{command}", str(folder), *words])
