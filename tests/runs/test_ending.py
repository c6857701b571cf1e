"""What a run says at its end, and when it is started again after that."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gpt1_ds import eval as evaluation
from gpt1_ds import export, generate
from gpt1_ds.base.records import read_metrics
from gpt1_ds.runs import ending
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig, TrainConfig
from tests.conftest import ROOT
from tests.support import fine_tuning
from tests.support.fine_tuning import arguments

TINY = (
    "model.preset=gpt1-tiny model.n_embd=32 model.n_ctx=32 model.n_layer=1 train.global_batch=4 "
    "run.name=r log.every=2 eval.batches=1"
).split()
COMMANDS = {"eval": evaluation, "export": export, "generate": generate}


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (TrainConfig(max_steps=10, epochs=None), "train.max_steps=20"),
        (TrainConfig(max_steps=10, epochs=3), "train.max_steps=20"),
        (TrainConfig(max_steps=50, epochs=1), "train.epochs=2"),
        (TrainConfig(max_steps=20, epochs=0.5), "train.epochs=1"),
        (TrainConfig(max_steps=20, epochs=1), "train.max_steps=40 train.epochs=2"),
    ],
)
def test_the_option_to_raise_is_the_one_that_ends_the_run(train, expected):
    def steps_with(train: TrainConfig) -> int:
        limits = [train.max_steps, train.epochs and 20 * train.epochs]
        return int(min(limit for limit in limits if limit))

    assert ending.longer(train, steps_with(train), steps_with) == expected


def parsed(command: str):
    """What the parser of the command makes of a line that is pasted into a shell."""
    python, flag, module, *words = shlex.split(command)
    assert flag == "-m" and "python" in python
    return COMMANDS[module.rpartition(".")[2]]._parser().parse_args(words)


def test_the_next_commands_can_be_pasted_whatever_the_names_are(tmp_path):
    folder = tmp_path / "it's a run; rm $HOME"
    config = load(PretrainConfig, None, ["data.shards=my shards"])
    first, second = map(parsed, ending.after_pretraining(config, folder))
    assert Path(first.run) == folder and first.prompt == ["One morning"]
    assert Path(second.run) == folder and second.data == Path("my shards")
    remote = replace(config, data=replace(config.data, shards="https://host/shards"))
    exported = parsed(ending.after_pretraining(remote, folder)[1])
    assert Path(exported.out) == Path(f"{folder}-hf")
    tuned = load(FinetuneConfig, ROOT / "gpt1_ds/configs/finetune_sst2.yaml", ["task.data=a b"])
    first, second = map(parsed, ending.after_fine_tuning(tuned, folder))
    assert (first.task, first.data) == ("sst2", Path("a b"))
    assert Path(second.out) == Path(f"{folder}-hf")


def test_a_run_tells_its_end_and_a_finished_one_that_there_is_nothing_to_do(
    ranks, tiny_shards, tmp_path
):
    words = ["--deepspeed_config", str(ROOT / "ds_configs/cpu_fp32.json"), *TINY]
    words += [f"data.shards={tiny_shards}", f"run.dir={tmp_path}", "train.max_steps=4"]
    run = tmp_path / "r"
    out, again = said(ranks, "train", words, [*words, "optim.lr=5e-2"])
    assert "step 4: the last step is done; validating, then saving the checkpoint\n" in out
    tail = out[out.index("done     ") :].splitlines()
    loss = read_metrics(run, "train")[-1]["loss"]
    assert tail[0].startswith("done     4 steps in ") and tail[0].endswith(f", loss {loss:.3f}")
    assert tail[1] == f"saved    {run}/checkpoints/step-00000004"
    assert [parsed(line[9:]).run for line in tail[2:]] == [str(run)] * 2

    assert again.splitlines()[:4] == [
        f"{run}: nothing to do, all 4 steps are done",
        "this run is done, so these settings have no effect on it:",
        "  optim.lr 2.5e-4 -> 5e-2",
        "go on    add train.max_steps=8 to train longer, or --from-scratch to start over",
    ]
    assert again.splitlines()[4:] == tail[2:]
    assert len(read_metrics(run, "start")) == 1

    # What looks done but is damaged is no finished run.
    damaged = next((run / "checkpoints/step-00000004").glob("*.pt"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (third,) = said(ranks, "train", words)
    assert "nothing to do" not in third and "no checkpoint passes its manifest" in third


def test_a_finished_fine_tuning_has_something_to_do_for_a_new_file_alone(
    ranks, sample, tiny_shards, tmp_path
):
    data = shutil.copytree(sample / "tasks" / "SST-2", tmp_path / "SST-2")
    words = arguments(tmp_path, "cpu_fp32", *fine_tuning.TINY, "init.checkpoint=none")
    words += ["task.name=sst2", f"task.data={data}", "run.name=r", f"data.shards={tiny_shards}"]
    words += ["task.max_examples=16", "train.global_batch=8", "train.epochs=1", "eval.batches=1"]
    run = tmp_path / "r"
    out, again = said(ranks, "finetune", words, words)
    assert "step 2: the last step is done; scoring dev, then saving the checkpoint\n" in out
    tail = out[out.index("done     2 steps in ") :].splitlines()
    assert tail[1] == f"saved    {run}/best"
    assert [parsed(line[9:]) for line in tail[2:]]
    assert again.startswith(f"{run}: nothing to do, all 2 steps are done\n")
    assert "add train.epochs=2 to train longer" in again

    (data / "test.tsv").write_text("index\tsentence\n0\ta fine story\n")
    out, again = said(ranks, "finetune", words, words)
    assert "nothing to do" not in out and (run / "predictions-test.tsv").exists()
    assert "nothing to do" in again
    (run / "predictions-test.tsv").unlink()
    (out,) = said(ranks, "finetune", words)
    assert "nothing to do" not in out and (run / "predictions-test.tsv").exists()


def said(ranks, command: str, *starts: list[str]) -> list[str]:
    function = "tests.support.cases_start:output_of_trainings"
    return ranks(2).run(function, command, *starts)[0]
