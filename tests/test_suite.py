"""A suite of fine-tuning runs: its tables against runs written by hand, and a real one that is stopped and killed."""

import base64
import json
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from gpt1_ds import suite
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.reports.suite_table import (
    PAPER,
    TABLE_5,
    TABLE_5_TASKS,
    VARIANTS,
    read_json,
    sections,
    write,
)
from gpt1_ds.settings.loading import load, to_dict
from gpt1_ds.settings.sections import FinetuneConfig
from tests.conftest import ROOT, run


def made(
    out: Path,
    name: str,
    scores: list[float],
    metric: str = "accuracy",
    majority: float = 0.5,
    **more,
) -> None:
    """The files of a run of two steps an epoch, whose dev scores after each epoch are `scores`."""
    folder = out / name
    folder.mkdir(parents=True)
    result = {
        "metric": metric,
        "score": max(scores),
        "majority": majority,
        "splits": {},
        "epochs": len(scores),
    }
    (folder / "result.json").write_text(json.dumps(result | more))
    records = [{"step": 1, "split": "train", "epoch": 0.5}]
    for epoch, score in enumerate(scores, 1):
        records.append({"step": 2 * epoch, "split": "train", "epoch": float(epoch)})
        records.append({"step": 2 * epoch, "split": "task", metric: score})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = load(FinetuneConfig, None, ["model.n_layer=4", "model.n_embd=96"])
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))


def tables(out: Path, failures: dict = {}, zero_shot: dict = {}) -> dict[str, list[list[str]]]:  # noqa: B006
    """Cells of each table of the Markdown, by its title."""
    text = write(out, sections(out, failures, zero_shot))
    parts = re.findall(r"(?ms)^## (.*?)\n\n((?:\|.*?\n)+)", text)
    return {
        title: [re.split(r" (?<!\\)\| ", line[2:-2]) for line in body.splitlines()]
        for title, body in parts
    }


def test_medians_spreads_and_the_papers_figures(tmp_path: Path):
    for seed, score in enumerate((0.90, 0.80, 0.84), 1):
        made(tmp_path, f"sst2-seed-{seed}", [score])
        made(tmp_path, f"cola-seed-{seed}", [score / 2], metric="matthews", majority=0.0)
    made(tmp_path, "sst2-seed-1-scratch", [0.6])
    made(tmp_path, "cola-seed-1-scratch", [0.1], metric="matthews", majority=0.0)
    made(tmp_path, "mnli-seed-7", [0.5], splits={"dev_mismatched": {"accuracy": 0.4}})
    (tmp_path / "mnli-seed-8").mkdir()  # begun
    made(tmp_path, "sst2-seed-1.1", [0.1])  # set aside by --from-scratch
    failures = {
        "rte-seed-1": {"exit_code": 3, "error": "no train file"},
        "mnli-seed-9": {"exit_code": 4, "error": "x"},
    }
    found = tables(tmp_path, failures)
    header, _, *rows = found["Scores"]
    assert header == [
        "task",
        "metric",
        "majority",
        "full",
        "spread",
        "seeds",
        "paper",
        "no pre-training",
        "spread",
        "seeds",
        "paper",
    ]
    by_task = {row[0]: row[1:] for row in rows}
    assert by_task["sst2"] == [
        "accuracy",
        "50.0",
        "84.0",
        "80.0..90.0",
        "3",
        "91.3",
        "60.0",
        "",
        "1",
        "84.0",
    ]
    assert by_task["cola"] == [
        "matthews",
        "0.0",
        "42.0",
        "40.0..45.0",
        "3",
        "45.4",
        "10.0",
        "",
        "1",
        "18.9",
    ]
    assert by_task["mnli"][2:6] == ["50.0", "", "1, 1 failed, 1 unfinished", "82.1"]
    assert by_task["mnli dev_mismatched"][:6] == [
        "accuracy",
        "",
        "40.0",
        "",
        "1, 1 failed, 1 unfinished",
        "81.4",
    ]
    assert by_task["rte"] == ["", "", "", "", "0, 1 failed", "56.0", "", "", "0", "53.8"]
    mean = by_task["mean of 2 tasks of Table 5"]
    assert mean == [
        "",
        "",
        "63.0",
        "",
        "",
        f"{(91.3 + 45.4) / 2:.1f}",
        "35.0",
        "",
        "",
        f"{(84.0 + 18.9) / 2:.1f}",
    ]
    assert found["Runs that failed"][2:] == [
        ["mnli-seed-9", "4", "x"],
        ["rte-seed-1", "3", "no train file"],
    ]


def test_the_figures_of_the_paper_are_consistent():
    """Table 5's averages (the LSTM's eight make 69.2 where 69.1 is printed), and its first row in Tables 2 and 4."""
    means = {name: sum(figures) / 8 for name, figures in TABLE_5.items()}
    assert means == pytest.approx(
        {"none": 74.7, "no_lm": 75.0, "scratch": 59.9, "lstm": 69.1}, abs=0.07
    )
    full = dict(zip(TABLE_5_TASKS, TABLE_5["none"], strict=True))
    assert all(PAPER[task] == str(figure) for task, figure in full.items() if task != "mnli")


def test_scores_by_epoch_by_layer_and_by_pre_training_step(tmp_path: Path):
    made(tmp_path, "rte-seed-1", [0.5, 0.7, 0.6])
    made(tmp_path, "rte-seed-2", [0.6, 0.5, 0.8])
    made(tmp_path, "rte-seed-1-layers-0", [0.52])
    made(tmp_path, "rte-seed-1-layers-2", [0.61])
    late = {"sst2": {"score": 0.7, "majority": 0.51}, "dpr": {"score": 0.55, "majority": 0.5}}
    scores = {"10": {"sst2": {"score": 0.5, "majority": 0.51}}, "2000000": late}
    found = tables(tmp_path, zero_shot={"init": "runs/gpt1", "scores": scores})
    assert found["Score on dev after each epoch"][::2] == [
        ["task", "epoch 1", "epoch 2", "epoch 3"],
        ["rte", "55.0", "60.0", "70.0"],
    ]
    assert found["Score on dev by layers transferred (0: embeddings only)"][::2] == [
        ["task", "layers 0", "layers 2", "layers 4"],
        ["rte", "52.0", "61.0", "75.0"],
    ]
    assert found["Zero-shot score by pre-training step of gpt1"][2:] == [
        ["dpr", "", "55.0"],
        ["sst2", "50.0", "70.0"],
    ]
    markdown, page = ((tmp_path / f"table.{kind}").read_text() for kind in ("md", "html"))
    pictures = [
        base64.b64decode(data) for data in re.findall(r"src='data:image/png;base64,([^']+)'", page)
    ]
    names = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert names == ["epochs.png", "layers.png", "zero_shot.png"]
    assert pictures == [(tmp_path / name).read_bytes() for name in names]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in pictures)
    assert not re.search(r"(src|href)=['\"]?http", page)


def test_what_a_run_said_is_text_on_the_page(tmp_path: Path):
    failures = {"rte-seed-1": {"exit_code": 3, "error": "<script>alert('a|b')</script> & more"}}
    found = tables(tmp_path, failures)
    assert found["Runs that failed"][2][2] == r"<script>alert('a\|b')</script> & more"
    page = (tmp_path / "table.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(&#x27;a|b&#x27;)" in page


def arguments(init: Path, out: Path, **changes) -> Namespace:
    usual = {
        "init": str(init),
        "tasks": ["sst2", "rte"],
        "seeds": [1, 2],
        "data": Path("tasks"),
        "lstm": None,
        "ablations": ["none"],
        "layers": [],
        "out": out,
    }
    return Namespace(**usual | changes)


def test_every_variant_is_what_it_says(tiny_run: Path, tmp_path: Path):
    args = arguments(
        tiny_run,
        tmp_path,
        ablations=["none", "no_lm", "scratch", "lstm"],
        lstm="runs/lstm",
        layers=[0, 1, 2],
    )
    jobs = suite.plan(args, tmp_path, ["optim.lr=1e-3"])
    configs = {job.name: load(FinetuneConfig, job.config, job.overrides) for job in jobs}
    variants = [
        "",
        "-no_lm",
        "-scratch",
        "-lstm",
        "-layers-0",
        "-layers-1",
    ]  # two layers are all that it has
    assert list(configs) == [
        f"{task}-seed-{n}{v}" for task in ("sst2", "rte") for n in (1, 2) for v in variants
    ]
    for name, config in configs.items():
        variant = name.partition("-seed-")[2][2:]
        assert (
            config.run.name == name and config.run.dir == str(tmp_path) and config.optim.lr == 1e-3
        )
        assert config.run.seed == int(name.split("-seed-")[1][0])
        assert config.task.data == {"sst2": "tasks/SST-2", "rte": "tasks/RTE"}[config.task.name]
        assert config.init.checkpoint == ("runs/lstm" if variant == "lstm" else str(tiny_run))
        assert config.task.lm_coef == (0 if variant == "no_lm" else 0.5)
        assert config.task.n_transfer == {"scratch": -1, "layers-0": 0, "layers-1": 1}.get(variant)


def test_every_variant_trains_on_two_ranks_and_stands_in_the_table(
    ranks, tiny_run, tiny_shards, sample, tmp_path
):
    """The launcher apart, which is the next test's: what the suite plans, run, beside zero-shot scores."""
    zero2 = ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2_bf16.json")]
    lstm = [
        "model.kind=lstm",
        "model.n_embd=32",
        "model.n_head=2",
        "model.n_ctx=32",
        "train.max_steps=1",
        "train.global_batch=4",
        "eval.batches=1",
        f"data.shards={tiny_shards}",
    ]
    ranks(2).run("gpt1_ds.train:main", [*zero2, *lstm, f"run.dir={tmp_path}", "run.name=lstm"])
    out = tmp_path / "out"
    args = arguments(
        tiny_run,
        out,
        tasks=["race"],
        seeds=[3],
        data=sample / "tasks",
        layers=[0, 2],
        zero_shot=["race"],
        ablations=[*VARIANTS],
        lstm=str(tmp_path / "lstm"),
    )
    short = [
        "task.max_examples=8",
        "train.global_batch=4",
        "eval.batches=2",
        "train.epochs=1",
        "log.every=1",
    ]
    for job in suite.plan(args, out, short):
        ranks(2).run("gpt1_ds.finetune:main", [*zero2, "--config", str(job.config), *job.overrides])
    suite.score_checkpoints(args, out)
    found = tables(out, zero_shot=read_json(out / "zero_shot.json"))
    results = {
        path.parent.name.partition("-seed-3")[2]: json.loads(path.read_text())
        for path in out.glob("race-seed-3*/result.json")
    }
    scores, init = (
        {variant: result[key] for variant, result in results.items()} for key in ("score", "init")
    )
    assert set(scores) == {"", "-no_lm", "-scratch", "-lstm", "-layers-0"}
    assert init.pop("-scratch") == "none" and str(tmp_path / "lstm") in init.pop("-lstm")
    assert all(str(tiny_run) in source for source in init.values())
    header, _, whole, middle = found["Scores"]
    shown = [f"{100 * scores[variant]:.1f}" for variant in ("", "-no_lm", "-scratch", "-lstm")]
    columns = [place for place, title in enumerate(header) if title in VARIANTS.values()]
    assert (
        len(columns) == 4
        and [whole[place] for place in columns] == [middle[place] for place in columns] == shown
    )
    assert (whole[0], whole[columns[0] + 3]) == ("race", "59.0")
    assert (middle[0], middle[columns[0] + 3]) == ("race dev_middle", "62.9")
    by_layers = found["Score on dev by layers transferred (0: embeddings only)"]
    assert by_layers[0] == ["task", "layers 0", "layers 2"]
    assert by_layers[2] == ["race", f"{100 * scores['-layers-0']:.1f}", shown[0]]
    assert found[f"Zero-shot score by pre-training step of {tiny_run.name}"][0] == [
        "task",
        "step 60",
    ]


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ("--tasks sst2", ConfigError, "--init is not set"),
        ("--init {run} --tasks sst3", ConfigError, "--tasks sst3: did you mean 'sst2'"),
        ("--init nowhere --tasks sst2", DataError, "nowhere: no checkpoint"),
        ("--init {run} --tasks sst2 run.name=mine", ConfigError, "option 'run.name=mine'"),
        ("--init {run} --tasks sst2 optim.lrr=1", ConfigError, "optim.lrr"),
        ("--init {run} --tasks sst2 --ablations lstm", ConfigError, "needs --lstm RUN"),
        ("--init {run} --tasks sst2 --layers 0 3", ConfigError, "--layers 3: .* has 2 blocks"),
        (
            "--init {run} --tasks rte --out {out} --seeds 1 optim.lr=1",
            ConfigError,
            "optim.lr 6.25e-05, now 1.0",
        ),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(
    tiny_run: Path, tmp_path: Path, words: str, kind: type, says: str
):
    made(tmp_path, "rte-seed-1", [0.5])
    config = load(
        FinetuneConfig, suite.CONFIGS / "finetune_rte.yaml", [f"init.checkpoint={tiny_run}"]
    )
    (tmp_path / "rte-seed-1" / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    with pytest.raises(kind, match=says) as error:
        suite.main(words.format(run=tiny_run, out=tmp_path).split())
    assert "\n" not in str(error.value)


def test_checkpoints_are_scored_zero_shot_once(
    tiny_run: Path, sample: Path, tmp_path: Path, monkeypatch
):
    args = arguments(tiny_run, tmp_path, data=sample / "tasks", zero_shot=["sst2"])
    suite.score_checkpoints(args, tmp_path)
    found = read_json(tmp_path / "zero_shot.json")
    assert (
        found["init"] == str(tiny_run)
        and list(found["scores"]) == ["60"]
        and 0 < found["scores"]["60"]["sst2"]["score"] < 1
    )
    monkeypatch.setattr(suite.zero_shot, "zero_shot", None)  # the second time nothing is left to do
    suite.score_checkpoints(args, tmp_path)
    assert read_json(tmp_path / "zero_shot.json") == found
    with pytest.raises(ConfigError, match="--zero-shot rte"):
        suite.score_checkpoints(arguments(tiny_run, tmp_path, zero_shot=["rte"]), tmp_path)


def start(words: list[str], until: Path, number: signal.Signals) -> int:
    """Exit code of a suite that gets a signal once the run with the log `until` has made a step."""
    command = [sys.executable, "-m", "gpt1_ds.suite", *words]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 150
        while process.poll() is None and time.monotonic() < deadline:
            if until.exists() and '"train"' in until.read_text():
                break
            time.sleep(0.05)
        assert process.poll() is None, "the suite ended before it was stopped"
        process.send_signal(number)
        return process.wait(timeout=90)


def test_a_stopped_and_a_killed_suite_go_on_and_a_failing_run_stops_no_other(
    tiny_run: Path, sample: Path, tmp_path
):
    out, data = tmp_path / "out", tmp_path / "tasks"
    data.mkdir()
    (data / "SST-2").symlink_to(sample / "tasks" / "SST-2")  # and no RTE
    words = [
        "--init",
        str(tiny_run),
        "--data",
        str(data),
        "--out",
        str(out),
        "--ranks",
        "2",
        "--deepspeed_config",
        "ds_configs/zero2_bf16.json",
        "task.max_examples=320",
        "train.global_batch=4",
        "train.epochs=1",
        "eval.batches=4",
        "log.every=1",
    ]
    first, second = out / "sst2-seed-1", out / "sst2-seed-2"
    assert (
        start(
            ["--tasks", "sst2", "--seeds", "1", "2", *words],
            first / "metrics.jsonl",
            signal.SIGTERM,
        )
        == 75
    )
    stopped = json.loads((first / "status.json").read_text())
    assert stopped["exit_code"] == 75 and 0 < stopped["step"] < 80 and not second.exists()
    assert (
        start(
            ["--tasks", "sst2", "--seeds", "1", "2", *words],
            second / "metrics.jsonl",
            signal.SIGKILL,
        )
        == -9
    )
    assert (first / "result.json").exists() and not (second / "result.json").exists()
    before = (first / "result.json").stat().st_mtime_ns
    done = run("python", "-m", "gpt1_ds.suite", "--tasks", "rte", "sst2", "--seeds", "2", *words)
    assert done.returncode == 3, done.stderr
    assert (first / "result.json").stat().st_mtime_ns == before
    for folder in (
        first,
        second,
    ):  # the killed one, too, went on from a checkpoint: each step is there once
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records if record["split"] == "train"] == list(
            range(1, 81)
        )
        begun = re.findall(
            r"steps +(\d+) of 80 done", (out / "logs" / f"{folder.name}.log").read_text()
        )
        assert len(begun) == 2 and begun[0] == "0" < begun[1]
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    majority, score = (50 * sum(result[key] for result in results) for key in ("majority", "score"))
    assert f"| sst2 | accuracy | {majority:.1f} | {score:.1f} |" in done.stdout
    failure = json.loads((out / "runs.json").read_text())["rte-seed-2"]
    assert failure["exit_code"] == 3 and "no train file" in failure["error"]
    assert "| rte-seed-2 | 3 |" in (out / "table.md").read_text()
    again = run("python", "-m", "gpt1_ds.suite", "--table-only", "--out", out)
    assert again.returncode == 0 and again.stdout == done.stdout.partition("sst2-seed-2\n")[2]
