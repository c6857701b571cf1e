"""Today's code opens, resumes, evaluates and exports what commit 06665c5 wrote.

The tree of that commit, out of git, makes everything here: shards, a run of every ZeRO stage and
precision, a fine-tuned run. Each run exists twice: once to its end, and once stopped on the way.
Today's code continues the stopped one and must end with the bits of the other.
"""

import contextlib
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from safetensors.torch import load_file

from tests.conftest import ROOT, need
from tests.support.ranks import die_with_parent
from tests.support.report_content import report_content

COMMIT = "06665c5"
LAYOUTS = [f"{stage}-{precision}" for stage in range(4) for precision in ("bf16", "fp32")]
STEPS, STOPPED = 6, 3
COMMON = "log.every=1 eval.batches=2 checkpoint.every=4 optim.lr=1e-3".split()
TINY = [
    *COMMON,
    *f"train.max_steps={STEPS} eval.every={STEPS} train.global_batch=4".split(),
    *"model.preset=gpt1-tiny model.n_ctx=32 schedule.warmup_steps=2".split(),
]
TUNING = [
    *COMMON,
    *"task.name=sst2 task.max_examples=48 train.global_batch=8 train.epochs=1".split(),
]
# These values, and all with a name that ends in `seconds`, differ from one start to the next; a
# later version may log more of them.
MEASURED = "host_bytes mfu time tokens_per_second slowest_rank slowest_host slowest_ratio".split()
# What fine-tuning notes since then of itself, in state.json and result.json.
NOTED = ("data", "init_sha256", "made_from", "files", "by_class", "predicted", "task/config")
STATE_SEAL = ("/config_hash", "/files/state.json/bytes")
# What later versions say besides.
LATER = r", and within .* in its pipeline|\n  the tokenizer folds .*|(?s:  class +precision.*)"
# An exported tokenizer frames texts as its task does, and gives no token types.
OTHER_EXPORTS = ("tokenizer_config.json", "tokenizer.json", "README.md")


class Job(NamedTuple):
    """A command with the same arguments for the old tree and for today's."""

    module: str
    words: tuple[object, ...]
    folder: Path
    stop: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "words": list(map(str, self.words)), "folder": str(self.folder)}


class OldTree:
    """The tree of `COMMIT` in `root`; what it makes goes to `home`."""

    def __init__(self, root: Path, home: Path):
        self.root, self.home = root, home
        self.answers = 0

    def run(self, ranks: int, jobs: list[Job], timeout_seconds: float = 240.0) -> list[str]:
        """What the commands print under that tree's code, in one start of `ranks` processes."""
        self.answers += 1
        asked, answered = (
            self.home / f"{name}-{self.answers}.json" for name in ("jobs", "answers")
        )
        asked.write_text(json.dumps([job.to_dict() for job in jobs]))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command = [Path(__file__).parent / "support" / "old_commands.py", asked, answered]
        words = [sys.executable, *(launcher if ranks > 1 else ()), *command]
        done = subprocess.run(
            list(map(str, words)),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            preexec_fn=die_with_parent,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        report = json.loads(answered.read_text())
        # The project is installed in place: its own tree must not have been imported instead.
        assert report["files"] and all(
            Path(file).is_relative_to(self.root) for file in report["files"]
        )
        codes = [answer["exit_code"] for answer in report["answers"]]
        assert codes == [75 if job.stop else 0 for job in jobs]
        return [answer["printed"] for answer in report["answers"]]

    def ds_config(self, layout: str, name: str = "", **more: Any) -> Path:
        """The DeepSpeed JSON of a layout such as `2-bf16`, under `name` (default: the layout)."""
        stage, precision = layout.split("-")
        path = self.home / f"{name or layout}.json"
        zero = {"stage": int(stage), **more.pop("zero_optimization", {})}
        ds = {"zero_optimization": zero, "bf16": {"enabled": precision == "bf16"}, **more}
        path.write_text(json.dumps(ds))
        return path

    def training(self, runs: str, ds_config: Path, stop: int | None = None, *overrides: str) -> Job:
        words = (
            "--deepspeed_config",
            ds_config,
            *TINY,
            f"data.shards={self.home / 'shards'}",
            f"run.dir={self.home / runs}",
            f"run.name={ds_config.stem}",
            *overrides,
        )
        return Job("gpt1_ds.train", words, self.home, stop)

    def tuning(self, runs: str, ds_config: Path, stop: int | None = None) -> Job:
        words = (
            "--deepspeed_config",
            ds_config,
            *TUNING,
            f"task.data={self.home / 'sample' / 'tasks' / 'SST-2'}",
            f"init.checkpoint={self.home / 'whole' / '2-bf16'}",
            f"run.dir={self.home / runs}",
            "run.name=sst2",
        )
        return Job("gpt1_ds.finetune", words, self.home, stop)


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> OldTree:
    """The tree of `COMMIT`, and shards that it made."""
    root, home = tmp_path_factory.mktemp("old_tree"), tmp_path_factory.mktemp("old")
    git = ["git", "-c", f"safe.directory={ROOT}", "archive", "--format=tar", COMMIT]
    try:
        archive = subprocess.run(git, cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        need("history", "git is not installed, so that there is no older tree to compare with")
    if archive.returncode:
        # A shallow clone, or a folder that is no clone.
        reason = archive.stderr.decode(errors="replace").strip()
        need("history", f"git has no commit {COMMIT} here ({reason}): git fetch --unshallow")
    subprocess.run(["tar", "-x"], input=archive.stdout, cwd=root, check=True)
    tree = OldTree(root, home)
    corpus = ("--corpus", f"books={home / 'sample' / 'books' / 'train'}")
    held_out = ("--validation", f"books={home / 'sample' / 'books' / 'valid'}")
    tokenizer, shards = home / "tok", home / "shards"
    commands = {
        "data_prep.sample": ("--megabytes", 0.3, "--out", home / "sample"),
        "data_prep.train_tokenizer": (*corpus, "--vocab-size", 512, "--out", tokenizer),
        "data_prep.build_shards": ("--tokenizer", tokenizer, *corpus, *held_out, "--out", shards),
    }
    tree.run(1, [Job(module, words, home) for module, words in commands.items()])
    return tree


@pytest.fixture(scope="module")
def old_runs(old_tree: OldTree) -> OldTree:
    """That tree after its runs; `whole/` has those that ended, `stopped/` the others."""

    def whole_and_stopped(command: Callable[..., Job], layout: str) -> list[Job]:
        ds_config = old_tree.ds_config(layout)
        return [command("whole", ds_config), command("stopped", ds_config, STOPPED)]

    jobs = [job for layout in LAYOUTS for job in whole_and_stopped(old_tree.training, layout)]
    # ZeRO-3 comes last: that tree leaves its rounding of bf16 to what runs later in the process.
    before = 2 * LAYOUTS.index("3-bf16")
    jobs[before:before] = whole_and_stopped(old_tree.tuning, "2-bf16")
    old_tree.run(2, jobs)
    return old_tree


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value inside containers and objects, with the keys that lead to it."""
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        yield place, (value.dtype, tuple(value.shape), content)
        return
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, Enum):
        # An object of DeepSpeed's, such as its loss scaler.
        items = [("class", type(value).__name__), *vars(value).items()]
    else:
        yield place, value
        return
    for key, item in items:
        yield from leaves(item, f"{place}/{key}")


def content(path: Path) -> dict[str, Any]:
    """What a file of a checkpoint holds, every tensor as its bytes."""
    if path.suffix == ".pt":
        # The file was made by this test, a moment ago.
        return dict(leaves(torch.load(path, map_location="cpu", weights_only=False)))
    if path.suffix == ".safetensors":
        return dict(leaves(load_file(path)))
    return dict(leaves(json.loads(path.read_text())))


def without_notes(mine: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """`mine` as the old tree writes it: without what is new, and without its hash and bytes."""
    kept = {key: mine[key] for key in mine if key in there or not key[1:].startswith(NOTED)}
    return kept | {key: there[key] for key in STATE_SEAL if key in there}


def same_checkpoints(ours: Path, theirs: Path, tuned: bool = False) -> None:
    """Both folders have the same files with the same tensors and values in them."""
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    assert sum(name.endswith("_states.pt") for name in names) >= 1
    for name in names:
        if (ours / name).read_bytes() == (theirs / name).read_bytes():
            continue
        mine, there = content(ours / name), content(theirs / name)
        if name == "MANIFEST.json":
            # Hashes of files that hold the same content in other bytes.
            mine, there = (
                {k: v for k, v in side.items() if not k.endswith("/sha256")}
                for side in (mine, there)
            )
        if tuned:
            mine = without_notes(mine, there)
        differing = [key for key in mine.keys() | there.keys() if mine.get(key) != there.get(key)]
        assert not differing, f"{name}: {sorted(differing)[:5]}"


def records(run: Path, *splits: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; measured values are None, so that only their names count."""
    found = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["split"] in splits:
            measured = [name for name in line if name in MEASURED or name.endswith("seconds")]
            found.append({name: line[name] for name in line if name not in measured})
    return found


def same_runs(ours: Path, theirs: Path, tuned: bool = False) -> None:
    """Both runs have the same losses, and the same weights, moments and state at their end."""
    losses = records(theirs, "train", "valid", "task")
    found = records(ours, "train", "valid", "task")
    for line, there in zip(found, losses, strict=True):
        if there.get("grad_norm", 0.0) is None:
            line["grad_norm"] = None  # of plain float32, which later versions know
    assert losses and found == losses
    # The stopped run has one more checkpoint.
    saved = [line for line in records(ours, "checkpoint") if line["step"] != STOPPED]
    before = records(theirs, "checkpoint")
    for line in saved + before:
        del line["bytes"]  # pickles of the same content may be longer, and `NOTED` takes some
    assert saved == before
    mine, there = (json.loads((run / "status.json").read_text()) for run in (ours, theirs))
    assert mine.pop("wall_time") and mine == there, "later versions count the wall time"
    last = f"step-{STEPS:08d}"
    assert (ours / "checkpoints" / "latest").read_text() == f"{last}\n"
    same_checkpoints(ours / "checkpoints" / last, theirs / "checkpoints" / last, tuned)


def continued(ranks: Any, old: OldTree, job: Job, copy: Path) -> Path:
    """Continue a copy of a stopped run with today's code and the old tree's arguments."""
    words = [str(word).replace(str(old.home / "stopped"), str(copy)) for word in job.words]
    name = next(word.partition("=")[2] for word in words if word.startswith("run.name="))
    shutil.copytree(old.home / "stopped" / name, copy / name)
    stopped = json.loads((copy / name / "status.json").read_text())
    assert (stopped["state"], stopped["step"], stopped["exit_code"]) == ("stopped", STOPPED, 75)
    ranks(2).run(f"{job.module}:main", words)
    return copy / name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stopped_run_goes_on_to_the_same_bits(ranks, old_runs, tmp_path, layout):
    job = old_runs.training("stopped", old_runs.home / f"{layout}.json")
    same_runs(continued(ranks, old_runs, job, tmp_path), old_runs.home / "whole" / layout)


def same_results(ours: Path, theirs: Path) -> None:
    name = "predictions-dev.tsv"
    assert (ours / name).read_text() == (theirs / name).read_text()
    mine, there = (json.loads((run / "result.json").read_text()) for run in (ours, theirs))
    assert {key: mine[key] for key in mine if key not in NOTED} == there
    (mine,), (there,) = ([*(run / "best" / "checkpoints").glob("step-*")] for run in (ours, theirs))
    assert mine.name == there.name
    same_checkpoints(mine, there, tuned=True)


def test_a_stopped_fine_tuning_goes_on_to_the_same_bits(ranks, old_runs, tmp_path):
    job = old_runs.tuning("stopped", old_runs.home / "2-bf16.json")
    ours, theirs = continued(ranks, old_runs, job, tmp_path), old_runs.home / "whole" / "sst2"
    same_runs(ours, theirs, tuned=True)
    same_results(ours, theirs)


def test_a_fine_tuning_starts_from_an_old_run_as_it_did(ranks, old_runs, tmp_path):
    job = old_runs.tuning("whole", old_runs.home / "2-bf16.json")
    words = [
        str(word).replace(f"run.dir={old_runs.home / 'whole'}", f"run.dir={tmp_path}")
        for word in job.words
    ]
    ranks(2).run(f"{job.module}:main", words)
    same_runs(tmp_path / "sst2", old_runs.home / "whole" / "sst2", tuned=True)
    same_results(tmp_path / "sst2", old_runs.home / "whole" / "sst2")


def reading_jobs(old: OldTree, folder: Path) -> dict[str, Job]:
    """Commands that read what the old tree left, by title; they write below `folder`."""
    home, shards = old.home, old.home / "shards"
    run, tuned = home / "whole" / "2-bf16", home / "whole" / "sst2"
    task, short = home / "sample" / "tasks" / "SST-2", ("--num-samples", 2, "--max-new-tokens", 24)
    words: dict[str, tuple[object, ...]] = {
        "verify": ("data_prep.verify_shards", shards),
        "inspect": ("data_prep.inspect_shards", shards),
        "trace": ("data_prep.trace", run, "--step", STEPS),
        "generate": ("gpt1_ds.generate", run, "--prompt", "The old", *short),
        "report": ("gpt1_ds.report", run, tuned, "--out", "report.html"),
        "export": ("gpt1_ds.export", home / "whole" / "3-bf16", "exported"),
        "export tuned": ("gpt1_ds.export", tuned, "exported-tuned"),
        "eval tuned": ("gpt1_ds.eval", tuned, "--task", "sst2", "--data", task),
    }
    for layout in LAYOUTS:
        words[f"eval {layout}"] = ("gpt1_ds.eval", home / "whole" / layout, "--data", shards)
    folder.mkdir()
    return {
        title: Job(str(module), tuple(rest), folder) for title, (module, *rest) in words.items()
    }


@pytest.fixture(scope="module")
def old_readings(old_runs: OldTree) -> tuple[Path, dict[str, str]]:
    """What those commands of the old tree wrote and printed."""
    folder = old_runs.home / "readings"
    jobs = reading_jobs(old_runs, folder)
    return folder, dict(zip(jobs, old_runs.run(1, list(jobs.values())), strict=True))


def test_commands_read_old_artefacts_as_they_did(old_runs, old_readings, tmp_path, monkeypatch):
    theirs, printed = old_readings
    ours = tmp_path / "readings"
    for title, job in reading_jobs(old_runs, ours).items():
        monkeypatch.chdir(job.folder)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert not importlib.import_module(job.module).main(list(map(str, job.words)))
        text = re.sub(LATER, "", said.getvalue())
        assert text == printed[title] != "", title
    exported = files(theirs)
    assert len(exported) > 10 and files(ours) == exported
    other = {Path("exported-tuned") / name for name in OTHER_EXPORTS}
    card = Path("exported") / "README.md"
    other |= {Path("exported") / OTHER_EXPORTS[0], Path("report.html"), card}
    for name in exported - other:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    told = re.sub(r"(?m)^.*tokens, FLOPs.*\n", "", (ours / card).read_text())
    assert told == (theirs / card).read_text()
    *today, curves_today = report_content(ours / "report.html")
    *before, curves = report_content(theirs / "report.html")
    assert today == before and curves == {name: curves_today[name] for name in curves}


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not AsyncIOBuilder().is_compatible(verbose=False),
    reason="no libaio.h here: apt-get install libaio-dev",
)
@pytest.mark.parametrize("where", ["optimizer", "parameters"])
def test_a_stopped_run_on_nvme_goes_on_to_the_same_bits(ranks, old_tree, tmp_path, where):
    """The compilation of DeepSpeed's async_io takes minutes, once a machine."""
    section = {"device": "nvme", "nvme_path": str(old_tree.home / "nvme")}
    zero = {"sub_group_size": 1_200_000, "offload_optimizer": section}
    if where == "parameters":
        zero["offload_param"] = section | {
            "buffer_size": 8_000_000,
            "buffer_count": 40,
            "max_in_cpu": 0,
        }
    ds_config = old_tree.ds_config(
        "3-bf16", where, zero_force_ds_cpu_optimizer=False, zero_optimization=zero
    )
    # DeepSpeed leaves tensors below a MiB in memory.
    larger = ("model.n_embd=512",)
    whole = old_tree.training("whole", ds_config, None, *larger)
    stopped = old_tree.training("stopped", ds_config, STOPPED, *larger)
    old_tree.run(2, [whole, stopped], timeout_seconds=1200.0)
    pattern = "*_param.tensor.swp" if where == "parameters" else "exp_avg*.swp"
    assert list((old_tree.home / "nvme" / where).rglob(pattern)), "nothing was swapped out"
    ours = continued(ranks, old_tree, stopped, tmp_path)
    same_runs(ours, old_tree.home / "whole" / where)
