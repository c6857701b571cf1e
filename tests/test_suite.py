"""A suite of fine-tuning runs: what it plans, and real ones that are stopped and killed."""

import itertools
import json
import re
import shutil
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
from gpt1_ds.reports.suite_files import RUN_NAME, VARIANTS, read_json
from gpt1_ds.runs import planned
from gpt1_ds.runs.planned import planned_facts
from gpt1_ds.runs.suite_options import sorted_words
from gpt1_ds.runs.suite_resampling import resample_suite
from gpt1_ds.settings.loading import load, to_dict
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.settings.shipped import CONFIGS
from tests.conftest import ROOT, run
from tests.reports.test_suite_table import made, tables
from tests.support.benchmark_files import make_benchmarks


def arguments(init: Path, out: Path, **changes) -> Namespace:
    usual = {
        "init": str(init),
        "tasks": ["sst2", "rte"],
        "seeds": [1, 2],
        "data": Path("tasks"),
        "lstm": None,
        "ablations": ["none"],
        "layers": [],
        "grid": None,
        "sample": None,
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
    runs = itertools.product(("sst2", "rte"), (1, 2), variants)
    assert list(configs) == [f"{task}-seed-{n}{variant}" for task, n, variant in runs]
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
    """What the suite plans is run, beside zero-shot scores; the launcher is in a test below."""
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
    scores = {variant: result["score"] for variant, result in results.items()}
    init = {variant: result["init"] for variant, result in results.items()}
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
    resampled = resample_suite(out, {})
    assert not resampled.lost
    columns_of = {score.column: score for score in resampled.scores}
    assert set(columns_of) == {*VARIANTS.values(), "layers-0"}
    assert columns_of["full"].mean == scores[""] and len(resampled.differences) == 7
    by_layers = found["Score on dev by layers transferred (0: embeddings only)"]
    assert by_layers[0] == ["task", "layers 0", "layers 2"]
    assert by_layers[2] == ["race", f"{100 * scores['-layers-0']:.1f}", shown[0]]
    zero_shot = read_json(out / "zero_shot.json")
    step, last = zero_shot["scores"]["60"], zero_shot["lstm_scores"]["1"]
    assert (zero_shot["init"], zero_shot["lstm"]) == (str(tiny_run), str(tmp_path / "lstm"))
    assert found[f"Zero-shot score by pre-training step of {tiny_run.name}"] == [
        ["task", "step 1", "step 60"],
        ["---", "---:", "---:"],
        ["race", "", f"{100 * step['race']['score']:.1f}"],
        ["race LSTM", f"{100 * last['race']['score']:.1f}", ""],
    ]


def test_a_grid_is_the_product_of_its_lists_for_each_task_and_ablation(
    tiny_run: Path, tmp_path: Path
):
    line = "--tasks sst2 rte --grid optim.lr=1e-4,1e-3 optim.betas=[0.9,0.95],[0.9,0.99] --seeds 1"
    words = sorted_words([*line.split(), "train.epochs=1"])
    assert words.overrides == ["train.epochs=1"] and len(words.grid) == 2
    args = arguments(tiny_run, tmp_path, seeds=[1], ablations=["none", "scratch"], grid=words.grid)
    jobs = suite.plan(args, tmp_path, words.overrides)
    assert len({job.name for job in jobs}) == len(jobs) == 2 * 2 * 4
    name = "rte-optim.lr=1e-3,optim.betas=_0.9,0.95_-seed-1-scratch"
    (job,) = [job for job in jobs if job.name == name]
    config = load(FinetuneConfig, job.config, job.overrides)
    assert (config.optim.lr, config.optim.betas) == (1e-3, [0.9, 0.95])
    assert (config.run.name, config.task.n_transfer, config.train.epochs) == (name, -1, 1)
    assert all(RUN_NAME.fullmatch(job.name)["point"] for job in jobs)
    assert not RUN_NAME.fullmatch(f"{jobs[0].name}.1"), "set aside by --from-scratch"


def test_a_grid_that_was_run_stands_in_the_tables(ranks, tiny_run, sample, tmp_path):
    args = arguments(
        tiny_run,
        tmp_path,
        tasks=["sst2"],
        seeds=[1],
        data=sample / "tasks",
        grid=["optim.lr=1e-3,1e-8"],
    )
    zero2 = ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2_bf16.json")]
    short = ["task.max_examples=160", "train.global_batch=16", "train.epochs=1", "eval.batches=4"]
    for job in suite.plan(args, tmp_path, short):
        ranks(2).run("gpt1_ds.finetune:main", [*zero2, "--config", str(job.config), *job.overrides])
    done = sorted(path.parent.name for path in tmp_path.glob("*/result.json"))
    assert done == [f"sst2-optim.lr={lr}-seed-1" for lr in ("1e-3", "1e-8")]
    best = max(json.loads((tmp_path / name / "result.json").read_text())["score"] for name in done)
    resampled = resample_suite(tmp_path, {})
    (chosen,) = [score for score in resampled.scores if score.is_best]
    assert chosen.mean == best and len(resampled.scores) == 2 and not resampled.lost
    (difference,) = resampled.differences
    assert difference.first == chosen.column and difference.difference >= 0
    assert tables(tmp_path)["Scores"][2][3] == f"{100 * best:.1f}"
    assert suite.plan(args, tmp_path, short), "the same command continues"
    with pytest.raises(ConfigError, match="sst2-optim.lr=1e-3-seed-1: made with train.epochs"):
        suite.plan(args, tmp_path, [*short[:2], "train.epochs=2", short[3]])


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ("--tasks sst2", ConfigError, "--init is not set"),
        ("--init {run} --tasks sst3", ConfigError, "--tasks sst3: did you mean 'sst2'"),
        ("--init nowhere --tasks sst2", DataError, "nowhere: no checkpoint"),
        ("--init {run} --tasks sst2 run.name=mine", ConfigError, "option 'run.name=mine'"),
        ("--init {run} --tasks sst2 optim.lrr=1", ConfigError, "optim.lrr"),
        ("--init {run} --tasks sst2 --grid", ConfigError, "--grid is empty"),
        ("--init {run} --tasks sst2 --grid lr", ConfigError, "option 'lr': expected"),
        ("--init {run} --tasks sst2 --grid optim.lrr=1,2", ConfigError, "optim.lrr"),
        ("--init {run} --tasks sst2 --grid optim.lr=1,1", ConfigError, "each value once"),
        ("--init {run} --tasks sst2 --grid optim.lr=1,", ConfigError, "each value once"),
        ("--init {run} --tasks sst2 --grid run.seed=1,2", ConfigError, "each run gets its own"),
        ("--init {run} optim.lr=3 --tasks sst2 --grid optim.lr=1,2", ConfigError, "elsewhere too"),
        (
            "--init {run} --tasks sst2 --ablations no_lm --grid task.lm_coef=0,1",
            ConfigError,
            "task.lm_coef is set elsewhere too",
        ),
        ("--init {run} --tasks sst2 --ablations lstm", ConfigError, "needs --lstm RUN"),
        ("--init {run} --tasks sst2 --sample 9", ConfigError, "--sample 9 needs --zero-shot blimp"),
        ("--init {run} --zero-shot cola --sample 9", ConfigError, "--sample 9 needs --zero-shot"),
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
    config = load(FinetuneConfig, CONFIGS / "finetune_rte.yaml", [f"init.checkpoint={tiny_run}"])
    (tmp_path / "rte-seed-1" / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    with pytest.raises(kind, match=says) as error:
        suite.main(words.format(run=tiny_run, out=tmp_path).split())
    assert "\n" not in str(error.value)


def test_a_finished_run_of_other_settings_weights_or_data_is_refused(
    tiny_run: Path, sample: Path, tmp_path: Path
):
    """Whatever the result was made from is compared; the paths of the same content are not."""
    data = tmp_path / "tasks"
    shutil.copytree(sample / "tasks" / "SST-2", data / "SST-2")
    args = arguments(tiny_run, tmp_path, tasks=["sst2"], seeds=[1], data=data)
    [job] = suite.plan(args, tmp_path, [])
    facts = planned_facts(load(FinetuneConfig, job.config, job.overrides))
    made(tmp_path, job.name, [0.5], made_from=facts)
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert suite.plan(Namespace(**{**vars(args), "data": moved}), tmp_path, [])
    for word, said in (
        ("eval.batches=1", "eval.batches None, now 1"),
        ("model.resid_pdrop=0", "model.resid_pdrop 0.1, now 0"),
        ("optim.betas=[0.9,0.95]", "optim.betas"),
        ("task.patience=3", "task.patience None, now 3"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            suite.plan(args, tmp_path, [word])
    assert suite.plan(args, tmp_path, ["train.micro_batch=1", "log.every=3"])
    with (data / "SST-2" / "dev.tsv").open("a") as file:
        file.write("a further line\t1\n")
    planned.cached_data.cache_clear()
    with pytest.raises(ConfigError, match="data of dev 400 examples, .* now 401 examples"):
        suite.plan(args, tmp_path, [])
    facts["init_sha256"] = "0" * 64
    (tmp_path / job.name / "result.json").write_text(json.dumps({"made_from": facts}))
    with pytest.raises(ConfigError, match="init sha256 000000000000, now "):
        suite.plan(args, tmp_path, [])


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
    monkeypatch.setattr(suite, "zero_shot_score", None)  # the second time nothing is left to do
    suite.score_checkpoints(args, tmp_path)
    assert read_json(tmp_path / "zero_shot.json") == found
    # Those of another checkpoint of this name are made anew.
    monkeypatch.undo()
    found |= {"lstm_scores": 3}
    found["scores"]["60"]["sst2"] |= {"checkpoint": "0", "score": 7}
    (tmp_path / "zero_shot.json").write_text(json.dumps(found))
    suite.score_checkpoints(args, tmp_path)
    assert read_json(tmp_path / "zero_shot.json")["scores"]["60"]["sst2"]["score"] < 1
    args = arguments(
        tiny_run, tmp_path, data=make_benchmarks(tmp_path / "data"), zero_shot=["blimp", "lambada"]
    )
    suite.score_checkpoints(args, tmp_path)
    scores = read_json(tmp_path / "zero_shot.json")["scores"]["60"]
    assert set(scores) == {"sst2", "blimp", "lambada"}, "those of two folders stand together"
    assert scores["blimp"]["majority"] == 0.5 and 0 < scores["blimp"]["score"] < 1
    args.sample = 1  # another sample is another score
    suite.score_checkpoints(args, tmp_path)
    sampled = read_json(tmp_path / "zero_shot.json")["scores"]["60"]
    assert sampled["blimp"]["sample"] == 1 and sampled["sst2"] == scores["sst2"]
    curves = tables(tmp_path, zero_shot=read_json(tmp_path / "zero_shot.json"))
    rows = curves[f"Zero-shot score by pre-training step of {tiny_run.name}"]
    assert [row[0] for row in rows[2:]] == ["blimp", "lambada", "sst2"]
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
        "ds_configs/cpu_fp32.json",
        "task.max_examples=160",
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
    assert stopped["exit_code"] == 75 and 0 < stopped["step"] < 40 and not second.exists()
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
            range(1, 41)
        )
        begun = re.findall(
            r"steps +(\d+) of 40 done", (out / "logs" / f"{folder.name}.log").read_text()
        )
        assert len(begun) == 2 and begun[0] == "0" < begun[1]
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    majority = ", ".join(sorted({f"{100 * result['majority']:.1f}" for result in results}))
    score = 50 * sum(result["score"] for result in results)
    assert f"| sst2 | accuracy | {majority} | {score:.1f} |" in done.stdout.replace("**", "")
    assert f"| sst2 | full | 2 | {score:.1f} |" in done.stdout
    failure = json.loads((out / "runs.json").read_text())["rte-seed-2"]
    assert failure["exit_code"] == 3 and "no train file" in failure["error"]
    assert "| rte-seed-2 | 3 |" in (out / "table.md").read_text()
    again = run("python", "-m", "gpt1_ds.suite", "--table-only", "--out", out)
    assert again.returncode == 0 and again.stdout == done.stdout.partition("sst2-seed-2\n")[2]
