"""The README's way from text to a fine-tuned model, line by line, at a tiny size."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys

from tests.conftest import ROOT

SMALLER = {
    "--vocab-size 8000": "--vocab-size 600",
    "--num_accelerators 2": "--num_accelerators 1",
    "pretrain_small": "pretrain_small model.preset=gpt1-tiny model.n_ctx=32 "
    "train.max_steps=8 train.global_batch=4 schedule.warmup_steps=2 eval.batches=1",
    "finetune_own": "finetune_own train.max_steps=2 train.global_batch=4",
    "--prompt": "--max-new-tokens 5 --prompt",
}
REVIEWS = "text,label\n" + "a fine day,good\nthe rain is cold,bad\n" * 20


def steps() -> list[str]:
    """The commands of that section, made smaller."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## From your text to a fine-tuned model")[1]
    block = re.search(r"(?s)```\n(.*?)```", section)[1].replace("\\\n", " ")
    for whole, small in SMALLER.items():
        assert whole in block
        block = block.replace(whole, small)
    return block.strip().splitlines()


def take(step: str) -> None:
    """Commands of one process run in this one, which has imported torch already."""
    step, _, stdin = step.partition(" < ")
    words = shlex.split(step)
    if words[:2] == ["python", "-m"]:
        with open(stdin or os.devnull, encoding="utf-8") as sys.stdin:
            assert not importlib.import_module(words[2]).main(words[3:])
    elif words[0] != "export":
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert not done.returncode, f"{step}\n{done.stderr[-4000:]}"


def test_every_command_of_the_main_path_runs(sample, tmp_path, monkeypatch, capsys):
    for name in ("gpt1_ds", "data_prep", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(sample / "books" / "train", tmp_path / "BOOKS")
    (tmp_path / "reviews.csv").write_text(REVIEWS)
    (tmp_path / "new_reviews.txt").write_text("a fine day\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    for step in steps():
        take(step)
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^(good|bad)\ta fine day$", printed)
    assert "perplexity" in printed and "the captain looked at the sea and" in printed
    assert (tmp_path / "report.html").exists()
