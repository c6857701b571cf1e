"""Words seen by a run, and its checkpoints at some numbers of them, which stay for good."""

import json
import shutil
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.checkpoints.folder import checkpoint_folders, read_state, step_of
from gpt1_ds.data.manifest import MANIFEST, read_manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.runs.words import reached, words_a_token, words_of_corpora
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from tests.settings.test_deepspeed_json import FOLDER
from tests.support.shards_built import build

N_CTX, BATCH = 32, 8


def kept(folder: Path) -> list[tuple[int, int | None]]:
    """Step and mark of each checkpoint of a run, oldest first."""
    folders = reversed(checkpoint_folders(folder / "checkpoints"))
    return [(step_of(path), read_state(path).at_words) for path in folders]


def test_checkpoints_at_words_stay_and_a_resume_goes_on_counting(ranks, tiny_shards, tmp_path):
    """Steps of 8 windows, then of 16: the words seen go on from those that were trained."""
    manifest = read_manifest(tiny_shards)
    (ratio,) = words_of_corpora(manifest).values()
    text = manifest.preparation["corpora"]["books"]["text"]["train"]
    assert ratio == text["words"] / manifest.splits["train"]["books"].tokens
    window = N_CTX * ratio
    marks = [5.0 * window, 20 * window, 24 * window, 60 * window, 75 * window]
    at_words = f"checkpoint.at_words={[round(mark) for mark in marks]}"
    names = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path), "r"

    def start(*words: str) -> list[dict]:
        more = ["train.epochs=null", "checkpoint.every=2", "checkpoint.keep=1", at_words, *words]
        case = "tests.support.cases_losses:pretrain"
        return [line for line in ranks(2).run(case, *names, more)[0][1] if "tokens" in line]

    lines = start("train.max_steps=6")
    assert [line["words"] for line in lines] == [round(n * BATCH * window) for n in range(1, 7)]
    # Step 3 reaches two of them; step 6 is the newest, and reaches none.
    first, third = round(marks[0]), round(marks[2])
    assert kept(tmp_path / "r") == [(1, first), (3, third), (6, None)]
    lines = start("train.max_steps=9", "train.global_batch=16")
    assert [line["words"] for line in lines][6:] == [round(n * window) for n in (64, 80, 96)]
    later = [(7, round(marks[3])), (8, round(marks[4])), (9, None)]
    assert kept(tmp_path / "r") == [(1, first), (3, third), *later]


@pytest.mark.parametrize(
    "before, now, mark", [(0, 5, 0), (5, 10, 10), (10, 20, 0), (9, 30, 30), (None, None, 0)]
)
def test_the_step_that_reaches_a_number(before, now, mark):
    assert reached([10.0, 25, 30], before, now) == mark
    assert reached(None, before, now) == 0


def test_words_of_a_mixture(tmp_path):
    """Corpus b is read at three quarters of the windows, whatever its size."""
    manifest = build(tmp_path, {"a": [[4000]], "b": [[1000]]}).manifest
    words = {"a": 0.5, "b": 0.9}
    for name in words:
        text = manifest.preparation["corpora"][name]["text"]["train"]
        text["words"] = round(words[name] * manifest.splits["train"][name].tokens)
    assert words_of_corpora(manifest) == words
    order = WindowOrder({"a": 4000, "b": 1000}, 10, 1, {"a": 1.0, "b": 3.0})
    config = load(PretrainConfig, None, ["checkpoint.at_words=[1e6]"])
    assert words_a_token(order, words, config) == pytest.approx(0.25 * 0.5 + 0.75 * 0.9)
    assert words_a_token(order, {"a": 0.5}, PretrainConfig()) is None
    with pytest.raises(ConfigError, match="does not count the words of b; build the shards anew"):
        words_a_token(order, {"a": 0.5}, config)
    order = WindowOrder({"a": 4000, "b": 1000}, 10, 1, {"a": 1.0})
    assert words_a_token(order, {"a": 0.5}, config) == 0.5, "b is left out"


def test_shards_of_an_early_version_train_without_a_count(ranks, tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    raw = json.loads((shards / MANIFEST).read_text())
    for text in raw["preparation"]["corpora"]["books"]["text"].values():
        del text["words"]
    (shards / MANIFEST).write_text(json.dumps(raw))
    names = str(FOLDER / "cpu.json"), str(shards), str(tmp_path), "r", ["train.max_steps=2"]
    _, metrics, _ = ranks(1).run("tests.support.cases_losses:pretrain", *names)[0]
    lines = [line for line in metrics if "tokens" in line]
    assert lines and all("words" not in line for line in lines)
