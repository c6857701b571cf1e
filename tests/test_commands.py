"""The command line as users and their scripts know it: frozen options, fast help, one-line errors,
exit codes.

A change of a table below breaks the scripts of users, so think of them first.
"""

import dataclasses
import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from data_prep import train_tokenizer
from gpt1_ds import __main__ as list_of_commands
from gpt1_ds import finetune, plan, suite, train
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.version import VERSION
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from tests.conftest import ROOT, run, succeed

TRAINING = {
    "--deepspeed_config",
    "--config",
    "--out",
    "--print-config",
    "--from-scratch",
    "--local_rank",
}
GENERAL = {"--help", "--version", "--traceback"}
"""Of every command."""
# Options of each entry point, without `GENERAL`.
OPTIONS = {
    "data_prep/sample.py": {"--out", "--megabytes", "--seed"},
    "data_prep/train_tokenizer.py": {
        "--corpus",
        "--vocab-size",
        "--out",
        "--documents-of",
        "--sample-bytes",
        "--seed",
        "--normalization-rule",
        "--case",
        "--clean",
    },
    "data_prep/build_shards.py": {
        "--tokenizer",
        "--corpus",
        "--validation",
        "--validation-fraction",
        "--shard-tokens",
        "--out",
        "--clean",
        "--bad-text",
        "--duplicate-paragraphs",
        "--near-duplicates",
        "--max-words",
        "--seed",
    },
    "data_prep/verify_shards.py": {"--stats", "--out"},
    "data_prep/inspect_shards.py": {"--corpus", "--document", "--split"},
    "data_prep/trace.py": {"--step", "--shards"},
    "data_prep/download.py": {"--out", "--url"},
    "gpt1_ds/train.py": TRAINING,
    "gpt1_ds/finetune.py": TRAINING,
    "gpt1_ds/eval.py": {
        "--data",
        "--corpus",
        "--lines",
        "--calibrate",
        "--ensemble",
        "--out",
        "--probabilities",
        "--uncalibrated",
        "--with-text",
        "--stride",
        "--task",
        "--predict",
        "--zero-shot",
        "--overlap",
        "--columns",
        "--sample",
        "--surprisal",
        "--average",
    },
    "gpt1_ds/export.py": {
        "--from-hf",
        "--from-openai",
        "--openai-pipeline",
        "--shard-gb",
        "--average",
        "--out",
    },
    "gpt1_ds/plan.py": {
        "--config",
        "--deepspeed_config",
        "--tokens",
        "--nodes",
        "--gpus-per-node",
        "--gpu-memory",
        "--host-memory",
        "--tflops",
        "--utilization",
        "--network",
        "--nvlink",
        "--storage",
        "--rehearse",
        "--rehearse-layers",
        "--price",
        "--sweep",
    },
    "gpt1_ds/suite.py": {
        "--init",
        "--tasks",
        "--seeds",
        "--data",
        "--ablations",
        "--lstm",
        "--layers",
        "--grid",
        "--zero-shot",
        "--sample",
        "--deepspeed_config",
        "--ranks",
        "--slurm",
        "--out",
        "--table-only",
    },
    "gpt1_ds/report.py": {"--out"},
    "gpt1_ds/watch.py": {"--once", "--every"},
    "gpt1_ds/generate.py": {
        "--prompt",
        "--max-new-tokens",
        "--num-samples",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
    },
}
SECTIONS = {"gpt1_ds/train.py": PretrainConfig, "gpt1_ds/finetune.py": FinetuneConfig}
# Keys that scripts outside set; the others are ours to change.
FROZEN_KEYS = """run.name run.dir run.seed model.preset model.n_layer model.n_head model.n_embd
    model.n_ctx data.shards data.weights train.max_steps train.epochs train.global_batch
    train.micro_batch optim.lr optim.weight_decay optim.kind schedule.kind
    schedule.warmup_steps eval.every eval.batches checkpoint.every checkpoint.keep log.every
    tokenizer.kind init.checkpoint""".split()
FROZEN_TASK_KEYS = (
    """task.name task.data task.lm_coef task.task_coef task.pool task.label_all_subtokens""".split()
)
CPU = ("--deepspeed_config", "ds_configs/cpu.json")


def command(path: str) -> tuple[str, ...]:
    """How a user starts it: the two that the deepspeed launcher runs by file, the others by
    module."""
    if path in SECTIONS:
        return ("python", path)
    return ("python", "-m", path.removesuffix(".py").replace("/", "."))


def test_every_entry_point_is_frozen_here():
    files = (path for folder in ("gpt1_ds", "data_prep") for path in (ROOT / folder).glob("*.py"))
    found = {
        str(path.relative_to(ROOT))
        for path in files
        if "\ncli = command(main, __name__" in path.read_text()
    }
    assert found == {*OPTIONS, "gpt1_ds/__main__.py"}


def test_an_installed_package_has_every_entry_point_as_a_command():
    installed = entry_points(group="console_scripts")
    scripts = {script.value: script for script in installed if script.dist.name == "gpt1-ds"}
    assert set(scripts) == {f"{path.removesuffix('.py').replace('/', '.')}:cli" for path in OPTIONS}
    for script in scripts.values():
        assert script.name == "gpt1-" + script.module.split(".")[1].replace("_", "-")
        assert callable(script.load())
    assert succeed("gpt1-verify-shards", "--help", timeout_seconds=60).stdout.startswith("usage:")


@pytest.mark.parametrize("path", OPTIONS)
def test_help_names_every_option(path):
    help_text = succeed(*command(path), "--help", timeout_seconds=60, COLUMNS="80").stdout
    shown = set(re.findall(r"(?m)^  (?:-h, )?(--[\w-]+)", help_text))
    assert shown == OPTIONS[path] | GENERAL
    assert max(map(len, help_text.splitlines())) <= 80
    example = rf"(?m)^    .*\b{path.removesuffix('.py').replace('/', '[./]')}\b"
    assert re.search(example, help_text), "no example"
    usage = help_text.split("\n\n")[0]
    for block in re.findall(r"(?ms)^  (--[\w-]+.*?)(?=^  \S|^\S|\Z)", help_text):
        takes_value = re.match(r"--[\w-]+ [\[{A-Z]", block)
        told = re.search(r"default|not used", block) or block.split()[0] in usage
        assert told or not takes_value, f"{block}: no default"
    if path in SECTIONS:
        keys = set(re.findall(r"(?m)^  (\w+\.\w+)=", help_text)) - {"section.key"}
        fields = dataclasses.fields(SECTIONS[path])
        assert keys == {
            f"{s.name}.{key.name}"
            for s in fields
            for key in dataclasses.fields(s.default_factory())
        }
        assert set(FROZEN_KEYS) <= keys
        assert path == "gpt1_ds/train.py" or set(FROZEN_TASK_KEYS) <= keys


@pytest.mark.parametrize("path", OPTIONS)
def test_every_command_has_a_version(path, capsys):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    with pytest.raises(SystemExit):
        module.main(["--version"])
    assert capsys.readouterr().out == f"gpt1_ds {VERSION}\n"


def test_the_list_of_commands(capsys):
    list_of_commands.main([])
    listed, _, more = capsys.readouterr().out.partition("\n\n")
    names = [line.split()[0] for line in listed.splitlines()]
    assert sorted(names) == sorted(p.removesuffix(".py").replace("/", ".") for p in OPTIONS)
    assert all(27 < len(line) <= 80 for line in listed.splitlines()) and "--help" in more
    for word, answer in (("train", "python -m gpt1_ds.train"), ("trian", "did you mean 'train'?")):
        with pytest.raises(ConfigError, match=re.escape(answer)):
            list_of_commands.main([word])
    imported = "import sys, gpt1_ds.__main__ as m; m.main([]); assert 'torch' not in sys.modules"
    succeed("python", "-c", imported)


@pytest.mark.parametrize("path", OPTIONS)
def test_an_unknown_option_is_a_usage_error(path):
    done = run(*command(path), "--no-such-option", timeout_seconds=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", SECTIONS)
def test_the_launchers_local_rank_is_taken(path):
    done = run("python", path, "--local_rank=1", *CPU, "optim.lr=high", timeout_seconds=60)
    assert done.returncode == 2 and "optim.lr is 'high'" in done.stderr


SLIPS = {
    "--lr 1e-3": "write optim.lr=1e-3",
    "--optim.lr=1e-3": "write optim.lr=1e-3",
    "--optim.lr 1e-3": "write optim.lr=1e-3",
    "--optim-lr 1e-3": "write optim.lr=1e-3",
    "-lr 1e-3": "write optim.lr=1e-3",
    "--dropout 0": "write model.embd_pdrop=0 or model.attn_pdrop=0 or model.resid_pdrop=0",
    "--workers 2": "no such option; see --help",
    "--learning_rate 1e-3": "write optim.lr=1e-3",
    "train.lr=1e-3": "write optim.lr=1e-3",
    "optim.lrate=1e-3": "write optim.lr=1e-3",
    "lr=1e-3": "write optim.lr=1e-3",
    "--max_steps=10": "write train.max_steps=10",
    "--model.n_layer 4": "write model.n_layer=4",
    "--compile data.shards=x": "write train.compile=VALUE",
    "--seed": "write run.seed=VALUE",
    "--data shards": "write data.shards=shards",
    "data.weight.books=2": "write data.weights.books=2",
    "--every 5": "write eval.every=5 or checkpoint.every=5 or log.every=5",
    "--num_gpus 2": "the launcher's",
    "--from-scrach": "did you mean '--from-scratch'?",
    "--xyzzy 1": "see --help",
    "--config pretrain_smal": "one of: pretrain_10m_words, pretrain_gpt1",
    "--deepspeed-config cqu": "one of: cpu, cpu_fp32, zero0_fp32",
    "--out runs/a run.name=b": "'run.name=b' does not go with --out runs/a",
}


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_answered_with_the_right_spelling(line):
    with pytest.raises(ConfigError, match=re.escape(SLIPS[line])):
        train.main(line.split())


def test_other_commands_answer_slips_too():
    for main, line, answer in (
        (train_tokenizer.main, "--corpuss books=x --out tok", "did you mean '--corpus'?"),
        (finetune.main, "--task cola", "write task.name=cola"),
        (finetune.main, "--data x", "write task.data=x"),
        (finetune.main, "optim.lr=1e-3", "no task: give --config NAME, out of finetune_cola,"),
        (plan.main, "--lr 3", "write optim.lr=3"),
        (suite.main, "--lr 3 --init runs/a", "write optim.lr=3"),
        (suite.main, "--seed 3", "--init is not set"),  # argparse's abbreviation of --seeds
    ):
        with pytest.raises(ConfigError, match=re.escape(answer)):
            main(line.split())


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refused(exit_code: int, *words: object) -> str:
    """The error line of a command that must end with `exit_code`, that one line, and no
    traceback."""
    done = run(*words, timeout_seconds=90)
    assert done.returncode == exit_code, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("exit_code", "words", "says"),
    [
        (2, ("optim.lrr=1e-4",), ["optim.lrr", "write optim.lr=1e-4"]),
        (2, ("train.global_batch=63", "train.micro_batch=2"), ["63", "micro-batch 2", "use 64"]),
        (2, ("--config", "absent.yaml"), ["absent.yaml", "--config"]),
        (2, ("--deepspeed_config", "absent.json"), ["absent.json", "ds_configs/"]),
        (3, ("data.shards=absent",), ["absent/manifest.json", "slurm/prepare_data.sh"]),
        (2, ("init.checkpoint",), ["init.checkpoint", "section.key=value"]),
    ],
    ids=["unknown key", "batch", "yaml", "json", "shards", "no value"],
)
def test_train_refuses_in_one_line(exit_code, words, says):
    line = refused(exit_code, "python", "gpt1_ds/train.py", *CPU, *words)
    assert all(text in line for text in says), line


def test_typos_in_files_are_named_with_the_file(tmp_path):
    yaml = write(tmp_path, "run.yaml", "trian: {max_steps: 3}\n")
    line = refused(2, "python", "gpt1_ds/train.py", *CPU, "--config", yaml)
    assert str(yaml) in line and "'train'" in line
    for text in ('{"zero_optimisation": {"stage": 2}}', '{"zero_optimization": '):
        json = write(tmp_path, "ds.json", text)
        assert str(json) in refused(2, "python", "gpt1_ds/train.py", "--deepspeed_config", json)


def test_data_preparation_refuses_in_one_line(tmp_path):
    tokenizer = ("python", "-m", "data_prep.train_tokenizer", "--out", tmp_path / "tok", "--corpus")
    assert "NAME=PATH" in refused(2, *tokenizer, "books")
    assert "/absent" in refused(3, *tokenizer, "books=/absent")
    empty = write(tmp_path, "empty.txt", "")
    assert "empty.txt" in refused(3, *tokenizer, f"books={empty}")
    shards = (
        "python",
        "-m",
        "data_prep.build_shards",
        "--corpus",
        f"books={empty}",
        "--out",
        tmp_path / "shards",
    )
    assert "/absent" in refused(3, *shards, "--tokenizer", "/absent")
    assert "manifest.json" in refused(3, "python", "-m", "data_prep.verify_shards", tmp_path)
    assert not (tmp_path / "tok" / "tokenizer.model").exists()


def test_generate_refuses_a_folder_without_checkpoint(tmp_path):
    assert str(tmp_path) in refused(3, "python", "-m", "gpt1_ds.generate", tmp_path)


def test_finetune_refuses_in_one_line(tmp_path):
    finetune = ("python", "gpt1_ds/finetune.py", *CPU)
    assert "'sst2'" in refused(2, *finetune, "task.name=sst3")
    assert "task.lm_coef" in refused(2, *finetune, "task.lm_coef=1.5")


def test_traceback_is_shown_on_request():
    done = run("python", "gpt1_ds/train.py", *CPU, "optim.lrr=1", "--traceback", timeout_seconds=60)
    assert (
        done.returncode == 2
        and "Traceback" in done.stderr
        and done.stderr.splitlines()[-1].startswith("error: ")
    )
