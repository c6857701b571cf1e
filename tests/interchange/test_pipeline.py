"""An exported classifier in transformers' pipeline, and its card."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from gpt1_ds import eval as gpt1_eval
from gpt1_ds import export
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.interchange.tokenizer_json import tokenizer_config_json, tokenizer_json
from gpt1_ds.runs.fine_tuned import encode, load_fine_tuned, logits_of, predictions
from gpt1_ds.tasks import TASKS
from tests.support.fine_tuning import save_tuned
from tests.support.task_folders import FOLDERS


def exported(run: Path, out: Path, capsys: pytest.CaptureFixture) -> str:
    """What the export prints."""
    export.main([str(run), str(out)])
    return capsys.readouterr().out


def labels_of_run(run: Path, data: Path) -> list[str]:
    tuned = load_fine_tuned(str(run), None)
    examples = tuned.task.read(data, "dev")
    return [tuned.task.show(label) for label in predictions(tuned, examples)]


def labels_of_pipeline(folder: Path, texts: list[tuple[str, ...]], batch_size: int) -> list[str]:
    inputs = [{"text": a[0], "text_pair": a[1]} if len(a) > 1 else a[0] for a in texts]
    classify = transformers.pipeline("text-classification", model=str(folder), truncation=True)
    return [result["label"] for result in classify(inputs, batch_size=batch_size)]


@pytest.mark.parametrize("name", ["sst2", "rte", "snli"])
def test_the_pipeline_labels_every_dev_line_as_the_run_does(
    tiny_run, sample, tmp_path, capsys, name
):
    """Texts of many lengths in one batch; the context of 32 tokens cuts the longer ones."""
    data = sample / "tasks" / FOLDERS[name]
    run = save_tuned(tmp_path / "run", tiny_run, name=name, data=str(data))
    said = exported(run, tmp_path / "hf", capsys)
    assert "dev examples in its pipeline" in said
    expected = labels_of_run(run, data)
    texts = [example.texts for example in TASKS[name].read(data, "dev")]
    assert labels_of_pipeline(tmp_path / "hf", texts, 16) == expected
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    lengths = [len(tokenizer(*text)["input_ids"]) for text in texts]
    assert max(lengths) > 32 and len(set(lengths)) > 5
    assert set(tokenizer("a").keys()) == {"input_ids", "attention_mask"}
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "states: at `<e>`." in card and f'model="{tmp_path / "hf"}", truncation=True' in card


def test_openais_tokenizer_frames_and_cuts_texts_as_the_tasks_do(shared_data, tmp_path):
    home = shared_data / "openai_bpe"
    ours = load_tokenizer(home)
    for name, content in {
        "tokenizer.json": tokenizer_json(ours, home, for_task=True),
        "tokenizer_config.json": tokenizer_config_json(40),
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for name in ("sst2", "rte"):
        examples = TASKS[name].read(shared_data / "tasks" / FOLDERS[name], "dev")
        encoded = TASKS[name].encode(examples, ours, 40)
        assert sum(one.cut > 0 for one in encoded) > 10
        for example, one in zip(examples, encoded, strict=True):
            assert theirs(*example.texts, truncation=True)["input_ids"] == one.sequences[0]


def centred(run: Path, folder: Path, data: Path) -> Path:
    """A copy of `run` in which no class is preferred, so that the labels of `data` differ."""
    tuned = load_fine_tuned(run, None)
    encoded = encode(tuned, tuned.task.read(data, "dev")[:200])
    weights, state = load_weights(tuned.folder)
    weights["head.bias"] -= torch.tensor(logits_of(tuned, encoded)).median(0).values
    save_weights(folder / "best", weights, state)
    tuned.tokenizer.copy_to(folder / "best" / "tokenizer")
    return folder


@pytest.mark.parametrize("name", ["sst2", "rte", pytest.param("snli", marks=pytest.mark.soak)])
def test_every_line_of_the_published_dev_sets_gets_the_label_of_the_run(
    tiny_run, shared_data, tmp_path, capsys, name
):
    data = shared_data / "tasks" / FOLDERS[name]
    run = save_tuned(tmp_path / "run", tiny_run, name=name, data=str(data))
    run = centred(run, tmp_path / "centred", data)
    assert "dev examples in its pipeline" in exported(run, tmp_path / "hf", capsys)
    expected = labels_of_run(run, data)
    texts = [example.texts for example in TASKS[name].read(data, "dev")]
    assert labels_of_pipeline(tmp_path / "hf", texts, 64) == expected
    assert min(map(expected.count, TASKS[name].classes)) > len(expected) / 20


SNIPPETS = {
    "sst2": ({}, '"a text"'),
    "rte": ({}, '{"text": "a premise", "text_pair": "a hypothesis"}'),
    "mrpc": ({}, '"a text", "another text"'),
    "stsb": ({}, '"a text", "another text"'),
    "squared": ({"name": "stsb", "squared_error": True}, '"a text", "another text"'),
    "race": ({}, '"a context", "a question", ["one", "other"]'),
    "wnut17": ({}, '"some words of a sentence"'),
}
"""Options of the task, and what stands for an example in the program of its card."""


def pasted(name: str, texts: tuple[str, ...]) -> str:
    """An example in place of the one in the program."""
    if name == "wnut17":
        return repr(" ".join(texts))
    if name == "race":
        return repr((*texts[:2], list(texts[2:])))
    if name == "rte":
        return repr({"text": texts[0], "text_pair": texts[1]})
    return repr(texts if len(texts) > 1 else texts[0])


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_program_of_the_card_answers_as_the_run_does(tiny_run, sample, tmp_path, capsys, name):
    """The first example and the longest one, which the context of 32 tokens cuts."""
    options, example = SNIPPETS[name]
    task = {"name": name, **options}
    data = sample / "tasks" / FOLDERS[task["name"]]
    run = save_tuned(tmp_path / "run", tiny_run, data=str(data), **task)
    exported(run, tmp_path / "hf", capsys)
    program = (tmp_path / "hf" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert example in program
    tuned = load_fine_tuned(str(run), None)
    examples = tuned.task.read(data, "dev")
    if name == "wnut17":  # the program divides its sentence at spaces
        examples = [one for one in examples if " ".join(one.texts).split() == list(one.texts)]
    longest = max(examples, key=lambda one: len(" ".join(one.texts)))
    for one, expected in zip(
        (examples[0], longest), predictions(tuned, [examples[0], longest]), strict=True
    ):
        *lines, answer = program.replace(example, pasted(name, one.texts)).rstrip().split("\n")
        names: dict = {}
        exec("\n".join(lines), names)
        found = eval(answer.removeprefix("print(").removesuffix(")"), names)
        if name in ("sst2", "rte"):
            found = found[0]["label"] if isinstance(found, list) else found["label"]
        if name in ("stsb", "squared"):
            assert found == pytest.approx(expected, rel=1e-4)
        else:
            assert found == (
                tuned.task.show(expected) if name in ("sst2", "rte", "mrpc") else expected
            )


def test_the_card_says_which_state_the_head_reads(tiny_run, tmp_path, capsys):
    run = save_tuned(tmp_path / "run", tiny_run, name="sst2", data="nowhere", pool="first")
    said = exported(run, tmp_path / "hf", capsys)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "states: at `<s>` (task.pool=first)" in card and "`<e>`." not in card.split("states")[1]
    assert "no class for this head" in card and "pipeline" not in said
    run = save_tuned(tmp_path / "last", tiny_run, name="sst2", data="nowhere")
    assert "no dev examples at hand" in exported(run, tmp_path / "hf2", capsys)


def test_a_score_of_another_name_keeps_the_options_of_the_run(tiny_run, sample, tmp_path, capsys):
    data = sample / "tasks" / FOLDERS["stsb"]
    own = {"kind": "similarity_score", "columns": ["a", "b", "s"], "labels": list("012345")}
    run = save_tuned(tmp_path / "run", tiny_run, name="mine", squared_error=True, **own)
    tuned = load_fine_tuned(str(run), "stsb")
    assert tuned.task.squared_error and tuned.task.n_outputs == 1
    gpt1_eval.main([str(run), "--task", "stsb", "--data", str(data)])
    assert "pearson" in capsys.readouterr().out
