"""An exported classifier in transformers' pipeline, and its card."""

from pathlib import Path

import pytest
import transformers

from gpt1_ds import eval as gpt1_eval
from gpt1_ds import export
from gpt1_ds.runs.fine_tuned import load_fine_tuned, predictions
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
    inputs = [{"text": a[0], "text_pair": a[1]} if len(a) > 1 else a[0] for a in texts]
    classify = transformers.pipeline(
        "text-classification", model=str(tmp_path / "hf"), truncation=True
    )
    found = [result["label"] for result in classify(inputs, batch_size=16)]
    assert found == expected
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    lengths = [len(tokenizer(*text)["input_ids"]) for text in texts]
    assert max(lengths) > 32 and len(set(lengths)) > 5
    assert set(tokenizer("a").keys()) == {"input_ids", "attention_mask"}
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "states: at `<e>`." in card and f'model="{tmp_path / "hf"}", truncation=True' in card


def test_the_snippet_for_similarity_adds_both_orders(tiny_run, sample, tmp_path, capsys):
    data = sample / "tasks" / FOLDERS["mrpc"]
    run = save_tuned(tmp_path / "run", tiny_run, name="mrpc", data=str(data))
    assert "dev examples in its pipeline" in exported(run, tmp_path / "hf", capsys)
    card = (tmp_path / "hf" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    *lines, answer = [line for line in snippet.split("\n") if line]
    expected = labels_of_run(run, data)[:4]
    for example, label in zip(TASKS["mrpc"].read(data, "dev"), expected, strict=False):
        program = "\n".join(lines).replace('"a text", "another text"', repr(example.texts))
        names: dict = {}
        exec(program, names)
        assert eval(answer, names) == label


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
