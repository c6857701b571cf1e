"""Errors of what reads runs, checkpoints, shards and tokenizers."""

import shutil
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.manifest import Manifest, read_manifest
from gpt1_ds.data.opening import open_streams, sound_manifest
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.eval import main as evaluate
from gpt1_ds.export import main as export
from gpt1_ds.finetune import main as finetune
from gpt1_ds.generate import main as generate
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.report import main as report
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from gpt1_ds.settings.sections import DataConfig
from gpt1_ds.suite import main as suite
from tests.conftest import ROOT
from tests.golden.order import shards as random_shards
from tests.golden.prepared import shards, tokenizer_folder
from tests.golden.refusals import Act, add, command, write
from tests.golden.store import Group, scratch

RUN_ERRORS = Group("errors_runs")


@cache
def run_folder() -> Path:
    """A run of one checkpoint: a small decoder, with the sample's tokenizer."""
    folder = scratch() / "run"
    tokenizer = load_tokenizer(tokenizer_folder())
    tokenizer.copy_to(folder / "tokenizer")
    shape = GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16, n_ctx=32)
    torch.manual_seed(0)
    state = CheckpointState(step=0, model=asdict(shape), tokenizer_sha256=tokenizer.sha256)
    save_weights(folder, GPT(shape).state_dict(), state)
    return folder


def with_run(main: Any, line: str, tmp: Path) -> None:
    """A command line in which {run} is that run and {shards} are the sample's."""
    names = {"{run}": run_folder(), "{shards}": shards()}
    for name, path in names.items():
        line = line.replace(name, str(path))
    command(main, line)(tmp)


GENERATE = {
    "temperature below 0": "{run} --temperature -1",
    "no token": "{run} --max-new-tokens 0",
    "no probability": "{run} --top-p 0",
    "no checkpoint": "{tmp}",
}
EVALUATE = {
    "no data": "{run} --data {tmp}/absent",
    "no checkpoint": "{tmp} --data {shards}",
    "lines of shards": "{run} --data {shards} --lines",
    "corpus of a text": "{run} --data {run}/tokenizer/tokenizer.model --corpus books",
    "text that is none": "{run} --data {run}/tokenizer/tokenizer.model",
    "empty folder": "{run} --data {tmp}",
    "stride of 0": "{run} --data {shards} --stride 0",
    "stride beyond the context": "{run} --data {shards} --stride 33",
    "no such corpus": "{run} --data {shards} --corpus book",
    "task of a pre-trained run": "{run} --task sst2 --data {tmp}",
    "unknown zero-shot task": "{run} --zero-shot rte --data {tmp}",
}
EXPORT = {
    "folder that exists": "{run} {tmp}",
    "no size": "{run} {tmp}/out --shard-gb 0",
    "no checkpoint": "{tmp} {tmp}/out",
    "no configuration": "--from-hf {tmp} {tmp}/out",
    "no arrays": "--from-openai {tmp} {tmp}/out",
}
SUITE = {
    "no run": "--tasks sst2",
    "key of its own": "--init {run} --tasks sst2 --out {tmp} run.seed=3",
    "lstm without one": "--init {run} --ablations lstm --out {tmp}",
    "too many blocks": "--init {run} --layers 2 --out {tmp}",
    "unknown task": "--init {run} --tasks sst3 --out {tmp}",
    "no checkpoint": "--init {tmp} --tasks sst2 --out {tmp}",
    "nothing to show": "--table-only --out {tmp}",
}
FINETUNE = {
    "no data": "init.checkpoint={run} task.name=sst2",
    "no files": "init.checkpoint={run} task.name=sst2 task.data={tmp}",
    "other width": "init.checkpoint={run} task.name=sst2 model.n_embd=32 model.n_head=2",
    "other kind of model": "init.checkpoint={run} task.name=sst2 model.kind=lstm",
    "other tokenizer": "init.checkpoint={run} task.name=sst2 tokenizer.kind=openai",
    "no checkpoint": "init.checkpoint={tmp} task.name=sst2",
}


def report_of(text: str, tmp: Path) -> None:
    write(tmp / "metrics.jsonl", text)
    report([str(tmp)])


def report_out_of_reach(tmp: Path) -> None:
    write(tmp / "metrics.jsonl", '{"step": 1, "split": "train", "loss": 2.0}\n')
    report([str(tmp), "--out", "/dev/null/report.html"])


REPORT: dict[str, Act] = {
    "no run": lambda tmp: report([str(tmp)]),
    "nothing logged": partial(report_of, ""),
    "out of reach": report_out_of_reach,
}


def copied_run(tmp: Path) -> Path:
    return Path(shutil.copytree(run_folder(), tmp / "run"))


def damaged_checkpoint(tmp: Path) -> None:
    run = copied_run(tmp)
    path = next(run.glob("checkpoints/*/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    load_gpt(run)


def checkpoint_of_a_task(tmp: Path) -> None:
    run = copied_run(tmp)
    _, state, _ = load_gpt(run)
    task = tmp / "task"
    save_weights(task, {"head.weight": torch.zeros(2, 16)}, state)
    load_gpt(task)


def tokenizer_of_another_run(tmp: Path) -> None:
    run = run_folder()
    run_tokenizer(
        next(run.glob("checkpoints/*")),
        CheckpointState(step=0, model={}, tokenizer_sha256="another"),
    )


CHECKPOINTS: dict[str, Act] = {
    "damaged": damaged_checkpoint,
    "of a task": checkpoint_of_a_task,
    "other tokenizer": tokenizer_of_another_run,
}


def shard_data(**settings: Any) -> tuple[DataConfig, Manifest]:
    root = random_shards().root
    return DataConfig(shards=str(root), **settings), read_manifest(root)


def damaged_shard(tmp: Path) -> None:
    """Another byte, and a byte fewer in a second one."""
    root = Path(shutil.copytree(random_shards().root, tmp / "shards"))
    first, second = (root / shard.file for shard in read_manifest(root).shards()[:2])
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.write_bytes(second.read_bytes()[:-1])
    sound_manifest(DataConfig(shards=str(root)), read_manifest(root))


def streams_of_an_unknown_corpus(tmp: Path) -> None:
    open_streams(*shard_data(weights={"c": 1.0}), "train")


def streams_without_tokens(tmp: Path) -> None:
    open_streams(*shard_data(weights={"a": 0.0}), "train")


def streams_of_an_empty_split(tmp: Path) -> None:
    open_streams(*shard_data(), "valid")


SHARDS: dict[str, Act] = {
    "damaged": damaged_shard,
    "unknown corpus": streams_of_an_unknown_corpus,
    "no weight": streams_without_tokens,
    "empty split": streams_of_an_empty_split,
}


def two_tokenizers(tmp: Path) -> None:
    shutil.copy(tokenizer_folder() / "tokenizer.model", tmp)
    write(tmp / "vocab_40000.bpe", "")
    load_tokenizer(tmp)


def half_of_openai(tmp: Path) -> None:
    write(tmp / "vocab_40000.bpe", "#version: 0.2\n")
    load_tokenizer(tmp)


def openai_with_a_gap(tmp: Path) -> None:
    write(tmp / "vocab_40000.bpe", "#version: 0.2\n")
    write(tmp / "encoder_bpe_40000.json", '{"<unk>": 0, "a": 2}')
    load_tokenizer(tmp)


def no_model(tmp: Path) -> None:
    write(tmp / "tokenizer.model", "no model")
    load_tokenizer(tmp)


TOKENIZERS: dict[str, Act] = {
    "none": load_tokenizer,
    "two": two_tokenizers,
    "half of OpenAI's": half_of_openai,
    "OpenAI's with a gap": openai_with_a_gap,
    "no model": no_model,
    "another choice": lambda tmp: load_tokenizer(tokenizer_folder()).check_choice("openai", None),
}


def fine_tune(argv: list[str]) -> int | None:
    return finetune(["--deepspeed_config", f"{ROOT}/ds_configs/cpu.json", *argv])


def lines(main: Any, words: dict[str, str]) -> dict[str, Act]:
    return {name: partial(with_run, main, words[name]) for name in words}


add(RUN_ERRORS, "generate", lines(generate, GENERATE))
add(RUN_ERRORS, "eval", lines(evaluate, EVALUATE))
add(RUN_ERRORS, "export", lines(export, EXPORT))
add(RUN_ERRORS, "suite", lines(suite, SUITE))
add(RUN_ERRORS, "finetune", lines(fine_tune, FINETUNE))
add(RUN_ERRORS, "report", REPORT)
add(RUN_ERRORS, "checkpoint", CHECKPOINTS)
add(RUN_ERRORS, "shards", SHARDS)
add(RUN_ERRORS, "tokenizer", TOKENIZERS)
