"""Fine-tuning: sequences of examples, subsets, batches, and the steps of a run."""

from functools import cache
from pathlib import Path
from typing import Any

from gpt1_ds.data.order import Cursor
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.runs.fine_tuning import FineTuning, total_steps
from gpt1_ds.runs.task_data import TaskData, read_task_data
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks import TASKS, Encoded, build_task
from gpt1_ds.tasks.base import fit, pair
from gpt1_ds.tasks.batches import (
    collate,
    epoch_batches,
    micro_batches,
    n_lm_targets,
    n_targets,
    subset,
)
from tests.golden.prepared import sample, tokenizer_folder
from tests.golden.store import Group, array, json_digest
from tests.support.task_folders import FOLDERS

FINE_TUNING = Group("fine_tuning")

LENGTHS = [5 + (n * n * 7919) % 97 for n in range(1000)]
SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}


@FINE_TUNING.value
def subsets() -> dict[str, Any]:
    """Some of many examples; all of them where no number is given or the number is larger."""
    cases = {"20 of 100": (100, 20, 42), "20 of 100, seed 1": (100, 20, 1)}
    found = {name: subset(*case) for name, case in cases.items()}
    found["500 of 100000"] = array(subset(100_000, 500, 42))
    return found | {"all": subset(5, None, 42), "more than all": subset(5, 9, 42)}


@FINE_TUNING.value
def batches_of_epochs() -> dict[str, Any]:
    """By batch size and epoch: the whole batches as an array, and the smaller last one."""
    found = {}
    for size in (1, 7, 32):
        for epoch in (0, 1):
            batches = epoch_batches(LENGTHS, size, 42, epoch)
            whole = [batch for batch in batches if len(batch) == size]
            rest = [batch for batch in batches if len(batch) < size]
            found[f"{size} examples, epoch {epoch}"] = [array(whole), rest]
    return found


@FINE_TUNING.value
def micro_batches_of_ranks() -> dict[str, Any]:
    lengths = LENGTHS[:13]
    found = {f"rank {rank} of 2": micro_batches(lengths, 3, 3, rank, 2) for rank in range(2)}
    return found | {"alone": micro_batches(lengths, 4, None, 0, 1)}


@FINE_TUNING.value
def tokens_that_fit() -> list[list[int]]:
    cases = [([10, 200, 90], 100), ([50, 60], 61), ([3, 4], 100), ([100, 100, 1], 50), ([9, 9], 0)]
    return [fit(lengths, room) for lengths, room in cases]


@FINE_TUNING.value
def pairs() -> list[Any]:
    """At a context that they fill just so, and at ones with a token less and many less."""
    first, second = list(range(10, 20)), list(range(30, 37))
    return [pair(first, second, SPECIAL, n_ctx) for n_ctx in (40, 20, 19, 12)]


@cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(tokenizer_folder())


def task_folder(name: str) -> Path:
    return sample() / "tasks" / FOLDERS[name]


def encoded(name: str, n_ctx: int) -> list[Encoded]:
    """The task's first 50 dev examples."""
    task = TASKS[name]
    return task.encode(task.read(task_folder(name), "dev")[:50], tokenizer(), n_ctx)


def encoded_digest(examples: list[Encoded]) -> str:
    """Of sequences, targets, cuts and words, behind the numbers of examples that were cut."""
    values = [[e.sequences, e.target, e.cut, e.words] for e in examples]
    return f"{sum(e.cut > 0 for e in examples)} cut, {json_digest(values)}"


@FINE_TUNING.value
def sequences_of_tasks() -> dict[str, list[str]]:
    """At a context that is long enough for most, and at a short one."""
    return {name: [encoded_digest(encoded(name, n)) for n in (256, 24)] for name in FOLDERS}


@FINE_TUNING.value
def sequences_in_full() -> dict[str, Any]:
    """The first example of each kind."""
    names = ("sst2", "rte", "mrpc", "storycloze", "wnut17")
    first = {name: encoded(name, 32)[0] for name in names}
    return {name: [e.sequences, e.target, e.cut, e.words] for name, e in first.items()}


@FINE_TUNING.value
def tensors_of_batches() -> dict[str, Any]:
    """Ids, ends, next tokens, numbers of targets; and the ids of a batch without examples."""
    found: dict[str, Any] = {}
    for name in ("sst2", "stsb", "race", "wnut17"):
        examples = encoded(name, 64)
        batch = collate(examples[:5], SPECIAL, examples[0], 64)
        blank = collate([], SPECIAL, examples[0])
        counts = [[n_targets(e), n_lm_targets(e)] for e in examples[:5]]
        tensors = [batch.ids_BST, batch.end_BS, batch.lm_targets_BST]
        found[name] = [*map(array, tensors), counts, blank.ids_BST.tolist()]
    return found


def configuration(name: str, *overrides: str) -> FinetuneConfig:
    words = [f"task.name={name}", f"task.data={task_folder(name)}", *overrides]
    return load(FinetuneConfig, None, words)


def prepared(config: FinetuneConfig) -> TaskData:
    return read_task_data(config, build_task(config.task), tokenizer(), 64)


@FINE_TUNING.value
def data_of_runs() -> dict[str, Any]:
    """What a run trains on and is scored on, with a part of the examples and with all."""
    some = ["task.max_examples=40", "eval.batches=1", "train.global_batch=16"]
    options = {"all": [], "some": some}
    found = {}
    for name in ("sst2", "mrpc", "race"):
        for title, overrides in options.items():
            data = prepared(configuration(name, *overrides))
            digests = [encoded_digest(data.train), encoded_digest(data.dev)]
            found[f"{name}, {title}"] = [*digests, data.cut, round(data.majority, 6)]
    return found


def run_of(config: FinetuneConfig) -> FineTuning:
    """A run with only those parts that its batches depend on."""
    run = FineTuning.__new__(FineTuning)  # without an engine
    run.config = config
    run.data = prepared(config)
    run.total_steps = total_steps(config, run.data)
    run.steps_per_epoch = run.data.steps_per_epoch(config.train.global_batch)
    return run


@FINE_TUNING.value
def batches_of_a_run() -> dict[str, Any]:
    """The examples of its steps, the cursors after them, and when dev is scored."""
    run = run_of(configuration("sst2", "task.max_examples=40", "train.global_batch=16"))
    steps = [step for step, _ in zip(run.batches(Cursor(0, 1)), range(7), strict=False)]
    scored = [run.score_due(n + 2, cursor) for n, (_, cursor) in enumerate(steps)]
    return {
        "batches": [batch for batch, _ in steps],
        "cursors": [[cursor.epoch, cursor.index] for _, cursor in steps],
        "scored": scored,
        "steps": [run.steps_per_epoch, run.total_steps],
    }


@FINE_TUNING.value
def steps_of_runs() -> list[int]:
    batch = "train.global_batch=16"
    options = (
        ["train.epochs=2.5", batch],
        ["train.epochs=3", "train.max_steps=5", batch],
        ["train.epochs=null", "train.max_steps=9", batch],
    )
    configs = [configuration("sst2", "task.max_examples=40", *words) for words in options]
    return [total_steps(config, prepared(config)) for config in configs]
