"""Benchmarks that a pre-training run scores: they change nothing, and are all logged."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.records import read_metrics
from gpt1_ds.reports.facts import facts_of
from gpt1_ds.reports.page import report_page
from gpt1_ds.reports.run_files import RunFiles
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from tests.conftest import ROOT
from tests.support.benchmark_files import make_benchmarks

ZERO_SHOT = ["eval.zero_shot=[blimp,lambada]", "eval.zero_shot_every=2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_benchmarks(tmp_path_factory.mktemp("zero_shot"))


def trained(ranks, name: str, shards: Path, runs: Path, *overrides: str) -> dict[str, list[bytes]]:
    """All tensors and places in the last checkpoint, by file, after 6 steps on two ranks."""
    json = str(ROOT / "ds_configs" / "zero3_bf16.json")
    words = ["train.max_steps=6", "checkpoint.every=3", "eval.every=3", *overrides]
    ranks(2).run("tests.support.cases_losses:pretrain", json, str(shards), str(runs), name, words)
    folder = runs / name / "checkpoints" / "step-00000006"
    kept = [path for path in folder.iterdir() if path.name != "MANIFEST.json"]
    return {path.name: tensors(path) for path in kept}


def tensors(path: Path) -> list[bytes]:
    """The bytes of a file; of one by torch.save those of each tensor.

    The pickle beside them differs between two equal runs of one process: it refers to strings.
    """
    if path.suffix != ".pt":
        return [path.read_bytes()]
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist() if "/data/" in name]


def test_scores_change_no_bit_of_the_training_and_a_resume_scores_what_is_missing(
    ranks, tiny_shards, tmp_path, files
):
    """On two ranks under ZeRO-3."""
    data = f"eval.zero_shot_data={files}"
    plain = trained(ranks, "plain", tiny_shards, tmp_path)
    scored = trained(ranks, "scored", tiny_shards, tmp_path, *ZERO_SHOT, data)
    assert plain == scored and max(map(len, plain.values())) > 3

    def records(split: str = "zero_shot") -> list[dict]:
        found = read_metrics(tmp_path / "scored", split)
        return [{k: v for k, v in record.items() if "seconds" not in k} for record in found]

    whole = records()
    assert [(record["step"], record["corpus"]) for record in whole] == [
        (step, name) for step in (0, 2, 4, 6) for name in ("blimp", "lambada")
    ]
    assert all(record["pairs"] == 24 for record in whole[::2])
    assert {"phenomenon/island_effects", "standard_error", "ties"} <= set(whole[0])
    assert [record["step"] for record in records("valid")] == [0, 3, 6]

    # As after a kill between step 3 and the end.
    shutil.rmtree(tmp_path / "scored" / "checkpoints" / "step-00000006")
    (tmp_path / "scored" / "status.json").unlink()
    assert trained(ranks, "scored", tiny_shards, tmp_path, *ZERO_SHOT, data) == plain
    assert records() == whole

    shown = facts_of(RunFiles(tmp_path / "scored"))
    last = whole[-2]["accuracy"]
    assert shown["zero-shot blimp"].startswith(f"{100 * last:.1f} ± ")
    assert re.search(r"perplexity [\d,.]+ at step 6", shown["zero-shot lambada"])
    page = report_page([RunFiles(tmp_path / "scored")])
    for title in ("Zero-shot accuracy", "Zero-shot perplexity", "BLiMP by phenomenon"):
        assert title in page
    events = b"".join(path.read_bytes() for path in (tmp_path / "scored").glob("events.out*"))
    for tag in (b"zero_shot/accuracy/blimp", b"x_zero_shot/blimp/phenomenon/binding"):
        assert tag in events


def test_one_rank_scores_as_two_do(ranks, tiny_shards, tmp_path, files):
    """In float32, with the weights of the first step: every rank count has the same batches."""
    json = str(ROOT / "ds_configs" / "zero0_fp32.json")
    words = [*ZERO_SHOT, f"eval.zero_shot_data={files}", "train.max_steps=1", "train.micro_batch=4"]
    found = []
    for count in (1, 2):
        name = f"of-{count}"
        ranks(count).run(
            "tests.support.cases_losses:pretrain",
            json,
            str(tiny_shards),
            str(tmp_path),
            name,
            words,
        )
        records = read_metrics(tmp_path / name, "zero_shot")[:2]
        found.append([{k: v for k, v in r.items() if "seconds" not in k} for r in records])
    assert found[0] == found[1]


def test_what_cannot_be_scored_is_refused_before_training(ranks, tiny_shards, tmp_path):
    with pytest.raises(DataError, match="eval.zero_shot_data: .* no BLiMP here"):
        data = f"eval.zero_shot_data={tmp_path}"
        trained(ranks, "none", tiny_shards, tmp_path, "eval.zero_shot=[blimp]", data)
    with pytest.raises(ConfigError, match=r"eval.zero_shot\[0\] is 'blmp'; did you mean 'blimp'"):
        load(PretrainConfig, None, ["eval.zero_shot=[blmp]"])
    with pytest.raises(ConfigError, match="eval.zero_shot is for pre-training"):
        load(FinetuneConfig, None, ["eval.zero_shot=[blimp]"])
