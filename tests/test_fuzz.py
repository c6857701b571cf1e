"""Hostile options and files: every command ends with a documented code and at most one error line.

The draws are seeded, so a failure comes again. Only what ends before the engine starts is tried.
"""

import gzip
import importlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import build_shards, download, train_tokenizer
from gpt1_ds.base.errors import ConfigError, DataError, guard

DRAWS = 25
GOOD_CODES = (0, ConfigError.exit_code, DataError.exit_code)
NUMBERS = (
    *("", "-1", "0", "1", "1.5", "inf", "nan", "-inf", "1e309", "1e-320", "9" * 400, "0x10", "1_0"),
    *("2147483648", "9223372036854775808", "true", "null", "é", "[1]"),
)
WORDS = (
    "",
    "\udcff",
    "a\nb",
    "é\u2028’",
    "x" * 5000,
    "=",
    "x=y=z",
    "*",
    "[",
    "{}",
    "null",
    "-",
    "b",
    "1",
)
PLACES = (
    *(
        "",
        "/dev/null",
        "/proc/none/x",
        "/dev/full",
        "~",
        "~nobody/x",
        "absent",
        "loop",
        "empty",
        ".",
    ),
    *("file://x", "ssh://u:p@h", "http://u:p@127.0.0.1:9/?token=u:p@", "x" * 300, "\udcff", "a\nb"),
)
TARGETS = (
    "",
    "/dev/null",
    "/proc/none/x",
    "loop",
    "empty",
    "empty/x",
    "x" * 300,
    "out/a\nb",
    "out/\udcff",
)
FILES = {
    "empty": b"",
    "blank.txt": b" \n\t\n" * 9,
    "bom.jsonl": b'\xef\xbb\xbf{"text": "one"}\n',
    "nested.json": b"[" * 99_999,
    "deep.yaml": b"{a: " * 3000,
    "bad.jsonl": b'{"text": 1}\n[]\nnull\n{"text"',
    "binary.txt": bytes(range(256)) * 9,
    "latin.csv": b"text,label\n\xe9\xff," + b"x" * 200_000,
    "cut.txt.gz": gzip.compress(b"text " * 999)[:-9],
    "junk.parquet": b"PAR1junkPAR1",
    "junk.tar": b"\0" * 700 + b"x",
    "junk.zip": b"PK\3\4junk",
    "keys.yaml": b"run: {name: [1]}\ntrain: 3\n? {a: b}\n: c\n",
    "twice.json": b'{"optimizer": {"type": 1e999}, "optimizer": []}',
    "surrogate.json": b'{"\\ud800": "\\udfff", "zero_optimization": "\\ud800"}',
}
MANIFESTS = (b"", b"[]", b"{}", b"[" * 99_999, b"\xff", b'{"version": 1e400}', b'{"version": 1}')

# What stands for a value: `#` a number, `@` a file or folder, `>` one to write, `*` a word.
OPTIONS = {
    "data_prep.sample": "--megabytes=# --seed=# --out=>",
    "data_prep.train_tokenizer": "--corpus=b=@ --corpus=b=@ --corpus=* --vocab-size=# --out=>"
    " --sample-bytes=# --seed=# --normalization-rule=* --clean=*",
    "data_prep.build_shards": "--tokenizer=@ --corpus=b=@ --corpus=b=@ --corpus=* --validation=b=@"
    " --validation-fraction=# --shard-tokens=# --out=> --clean=* --bad-text=*"
    " --duplicate-paragraphs=# --near-duplicates=#",
    "data_prep.verify_shards": "@ --picture=>",
    "data_prep.inspect_shards": "@ --corpus=* --document=*",
    "data_prep.trace": "@ --step=# --shards=@",
    "data_prep.download": "* --out=> --url=@",
    "gpt1_ds.plan": "--config=@ --deepspeed_config=@ --tokens=# --nodes=# --gpu-memory=# --price=#"
    " --utilization=# --gpus-per-node=# train.global_batch=# model.n_embd=# data.shards=@ *",
    "gpt1_ds.report": "@ --out=>",
    "gpt1_ds.watch": "@ @ --once --every=#",
    "gpt1_ds.generate": "@ --prompt=* --max-new-tokens=# --top-p=# --top-k=# --seed=#"
    " --num-samples=# --temperature=#",
    "gpt1_ds.eval": "@ --data=@ --corpus=* --stride=# --task=* --zero-shot=* --average=#",
    "gpt1_ds.export": "@ --shard-gb=# --average=# --from-hf --from-openai --openai-pipeline=*",
    "gpt1_ds.suite": "--init=@ --tasks=* --seeds=# --data=@ --out=> --ranks=# --layers=#",
    "gpt1_ds.train": "--config=@ --deepspeed_config=@ run.name=* run.seed=# optim.lr=#"
    " data.shards=@ data.weights.b=# train.epochs=# schedule.kind=* run.dir=> *",
    "gpt1_ds.finetune": "--config=@ --deepspeed_config=@ task.name=* task.data=@ task.metrics=*"
    " init.checkpoint=@ task.lm_coef=# train.max_steps=# *",
}
# Without these, most draws would end at the parser. A hostile value of the same option wins.
NEEDED = {
    "data_prep.sample": ("--out=empty",),
    "data_prep.train_tokenizer": ("--corpus=b=text", "--out=out", "--vocab-size=275"),
    "data_prep.build_shards": ("--tokenizer=tok", "--corpus=b=text", "--out=out"),
    "data_prep.verify_shards": ("shards",),
    "data_prep.inspect_shards": ("shards",),
    "data_prep.trace": ("run", "--step=1"),
    "data_prep.download": ("dpr", "--out=out", "--url=http://u:p@127.0.0.1:9/x?token=u:p@"),
    "gpt1_ds.generate": ("run",),
    "gpt1_ds.eval": ("run", "--data=shards"),
    "gpt1_ds.export": ("run", "out"),
    "gpt1_ds.suite": ("--init=run", "--out=out", "--deepspeed_config=absent"),
    "gpt1_ds.train": ("--deepspeed_config=ds.json", "data.shards=absent"),
    "gpt1_ds.finetune": ("--deepspeed_config=ds.json", "init.checkpoint=absent"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hostile files, and with sound ones that a command needs to get further."""
    root = tmp_path_factory.mktemp("fuzz")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    (root / "folder").mkdir()
    (root / "loop").symlink_to("loop")
    (root / os.fsdecode(b"\xff.txt")).write_bytes(b"a name that is not UTF-8")
    (root / "text").mkdir()
    (root / "text" / "a.txt").write_text("the old sailor told a tale\n" * 40, encoding="utf-8")
    (root / "ds.json").write_text('{"train_micro_batch_size_per_gpu": "auto"}', encoding="utf-8")
    corpus = ["--corpus", f"b={root / 'text'}"]
    train_tokenizer.main([*corpus, "--vocab-size", "280", "--out", str(root / "tok")])
    build_shards.main([*corpus, "--tokenizer", str(root / "tok"), "--out", str(root / "shards")])
    for number, manifest in enumerate(MANIFESTS):
        copy = root / f"shards-{number}"
        copy.mkdir()
        (copy / "manifest.json").write_bytes(manifest)
        run = root / f"run-{number}"
        (run / "checkpoints" / "step-00000001").mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", "status.json", "checkpoints/latest"):
            (run / name).write_bytes(manifest)
        (run / "checkpoints" / "step-00000001" / "MANIFEST.json").write_bytes(manifest)
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text(
        f"data: {{shards: {json.dumps(str(root / 'shards'))}}}\nmodel: {{n_ctx: 8}}\n",
        encoding="utf-8",
    )
    return root


def hostile_words(dice: random.Random, module: str, paths: list[str]) -> list[str]:
    """The words of one call: one or two hostile ones, and what the command needs."""
    options = OPTIONS[module].split()
    values = {"#": NUMBERS, "*": WORDS, ">": TARGETS, "@": (*PLACES, *paths * 2)}
    words = []
    for option in dice.sample(options, min(dice.randint(1, 2), len(options))):
        kind = option[-1]
        words.append(option[:-1] + dice.choice(values[kind]) if kind in values else option)
    given = {name_of(word) for word in words}
    return [word for word in NEEDED.get(module, ()) if name_of(word) not in given] + words


def name_of(word: str) -> str:
    """The option; of other words the empty one."""
    return word.partition("=")[0] if word.startswith("--") or "." in word.partition("=")[0] else ""


def is_progress(line: str) -> bool:
    return "it/s" in line or "B/s" in line or "%|" in line


def ended(capfd, monkeypatch, module: str, words: list[str]) -> tuple[object, list[str]]:
    """Exit code, and the lines on stderr that are neither warnings nor progress."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as end:
        guard(importlib.import_module(module).main)
    said = capfd.readouterr().err.replace("\r", "\n").splitlines()
    lines = [line for line in said if line.strip() and not is_progress(line)]
    return end.value.code, [line for line in lines if not line.startswith("warning: ")]


@pytest.fixture
def alone(world, monkeypatch, tmp_path) -> Iterator[None]:
    """Relative paths, `~` and downloads stay here."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(sys, "stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115
    monkeypatch.chdir(world)
    yield
    shutil.rmtree(world / "out", ignore_errors=True)


@pytest.mark.parametrize("module", OPTIONS)
def test_hostile_words_end_in_one_line(module, world, alone, capfd, monkeypatch):
    dice = random.Random(f"{module} 1")
    paths = sorted(path.name for path in world.iterdir())
    for _ in range(int(os.environ.get("GPT1_FUZZ_DRAWS", DRAWS))):
        words = hostile_words(dice, module, paths)
        code, lines = ended(capfd, monkeypatch, module, words)
        assert code in GOOD_CODES and len(lines) <= 1, (words, code, lines)
        assert all(line.startswith(("error: ", "stopped: ")) for line in lines), (words, lines)
        assert "Traceback" not in " ".join(lines) and bool(code) == bool(lines), (words, lines)
        assert "u:p@" not in " ".join(lines), (words, lines)
