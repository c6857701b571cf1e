"""BLiMP and LAMBADA of an exported model by lm-evaluation-harness, example by example."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gpt1_ds import eval as evaluate
from tests.conftest import ROOT, succeed
from tests.interchange.test_weights import run_export
from tests.support.benchmark_files import NOUNS, json_lines, make_benchmarks


def task_file(name: str, data: str, folder: Path) -> None:
    """The task file that the repository has, with the files of the test."""
    text = (ROOT / "benchmarks" / "lm_eval" / f"{name}.yaml").read_text()
    lines = ["  data_files: {test: " + json.dumps(data) + "}", *text.splitlines()]
    kept = [line for line in lines[1:] if not line.startswith("  data_files:")]
    kept.insert(kept.index("dataset_kwargs:") + 1, lines[0])
    (folder / f"{name}.yaml").write_text("\n".join(kept))


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def samples(folder: Path, task: str) -> list[dict]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


def test_the_harness_decides_as_we_do(tiny_run, tmp_path, capsys):
    pytest.importorskip(
        "accelerate", reason="lm-eval reads models of transformers with accelerate: its extra `hf`"
    )
    data = make_benchmarks(tmp_path / "zero_shot", pairs=12)
    long = [{"context": f"{noun} and the " * 30, "continuation": noun} for noun in NOUNS]
    passages = (data / "lambada_openai.jsonl").read_text()
    (data / "lambada_openai.jsonl").write_text(
        passages + json_lines(tmp_path / "long.jsonl", long).read_text()
    )
    with zipfile.ZipFile(data / "BLiMP.zip") as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name[:2] == "da"])
    run_export(tiny_run, tmp_path / "hf")
    task_file("blimp", str(tmp_path / "data" / "*.jsonl"), tmp_path)
    shutil.copy(ROOT / "benchmarks" / "lm_eval" / "blimp.py", tmp_path)
    task_file("lambada", str(data / "lambada_openai.jsonl"), tmp_path)
    model = f"pretrained={tmp_path / 'hf'},dtype=float32,add_bos_token=True"
    words = ["--model", "hf", "--model_args", model, "--include_path", tmp_path]
    words += ["--tasks", "blimp_local,lambada_local", "--device", "cpu", "--batch_size", 8]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    succeed("lm_eval", "run", *words, "--output_path", tmp_path / "out", "--log_samples", **offline)
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]

    out = tmp_path / "pairs.tsv"
    evaluate.main([str(tiny_run), "--zero-shot", "blimp", "--data", str(data), "--out", str(out)])
    theirs = {}
    for row in samples(tmp_path / "out", "blimp_local"):
        nats = [float(answer[0][0]) for answer in row["resps"]]
        pair = row["doc"]
        theirs[pair["UID"], pair["sentence_good"], pair["sentence_bad"]] = nats, row["acc"]
    ours = table(out)
    ties = 0
    for paradigm, good, bad, *numbers in ours:
        nats, decision = theirs[paradigm, good, bad]
        own, credit = [float(number) for number in numbers[:2]], float(numbers[2])
        np.testing.assert_allclose(own, nats, rtol=1e-4)
        assert credit == (0.5 if own[0] == own[1] else decision)
        ties += credit == 0.5
    accuracy = sum(float(row[-1]) for row in ours) / len(ours)
    assert (len(ours), ties) == (48, 4) and 0 < accuracy < 1
    assert results["blimp_local"]["acc,none"] == pytest.approx(accuracy + ties / 2 / len(ours))

    out = tmp_path / "words.tsv"
    capsys.readouterr()
    evaluate.main([str(tiny_run), "--zero-shot", "lambada", "--data", str(data), "--out", str(out)])
    shown = capsys.readouterr().out
    rows = table(out)
    answers = [row["resps"][0][0] for row in samples(tmp_path / "out", "lambada_local")]
    nats = [float(nats) for nats, _ in answers]
    np.testing.assert_allclose([float(row[2]) for row in rows], nats, rtol=1e-4)
    assert [row[3] == "1" for row in rows] == [str(greedy) == "True" for _, greedy in answers]
    assert "6 of 12 passages are longer than the model's context of 32 tokens" in shown
    own = float(shown.split("its perplexity")[1].split()[0])
    assert results["lambada_local"]["perplexity,none"] == pytest.approx(own, rel=1e-3)
