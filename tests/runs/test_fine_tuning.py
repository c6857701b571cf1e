"""The files of a fine-tuning run: GLUE's submission."""

from pathlib import Path

import torch

from gpt1_ds.runs.predictions import write_predictions
from gpt1_ds.tasks import TASKS

PAIR = "index\tsentence1\tsentence2"
# Columns of GLUE's own test files, and what its site takes for an answer.
GLUE = {
    "CoLA": ("cola", "test", "test.tsv", "index\tsentence", {"0", "1"}),
    "SST-2": ("sst2", "test", "test.tsv", "index\tsentence", {"0", "1"}),
    "MRPC": ("mrpc", "test", "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", {"0", "1"}),
    "QQP": ("qqp", "test", "test.tsv", "id\tquestion1\tquestion2", {"0", "1"}),
    "STS-B": (
        "stsb",
        "test",
        "test.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        None,
    ),
    "MNLI-m": (
        "mnli",
        "test",
        "test_matched.tsv",
        PAIR,
        {"entailment", "neutral", "contradiction"},
    ),
    "MNLI-mm": (
        "mnli",
        "test_mismatched",
        "test_mismatched.tsv",
        PAIR,
        {"entailment", "neutral", "contradiction"},
    ),
    "AX": (
        "mnli",
        "test_diagnostic",
        "diagnostic.tsv",
        PAIR,
        {"entailment", "neutral", "contradiction"},
    ),
    "QNLI": (
        "qnli",
        "test",
        "test.tsv",
        "index\tquestion\tsentence",
        {"entailment", "not_entailment"},
    ),
    "RTE": ("rte", "test", "test.tsv", PAIR, {"entailment", "not_entailment"}),
    "WNLI": ("wnli", "test", "test.tsv", PAIR, {"0", "1"}),
}


def test_every_glue_task_writes_the_file_its_site_takes(tmp_path: Path):
    """One answer for each row of the test file, in its order, numbered from 0, spelled as there."""
    names = set[str]().union(*(task.glue.values() for task in TASKS.values()))
    assert names == set(GLUE)
    generator = torch.Generator().manual_seed(0)
    for name, (key, split, file, header, answers) in GLUE.items():
        folder, task = tmp_path / name, TASKS[key]
        folder.mkdir()
        width = header.count("\t")
        rows = ["\t".join([str(i), *[f'a "{i}\u2028 b'] * width]) for i in range(50)]
        (folder / file).write_text("\n".join([header, *rows]) + "\n")
        gold = [example.label for example in task.read(folder, split)]
        logits = 5 * torch.randn(50, task.n_outputs, generator=generator)
        write_predictions(
            folder, task, split, gold, [task.predict(row, None) for row in logits.tolist()]
        )
        first, *lines = (folder / "glue" / f"{name}.tsv").read_text().splitlines()
        numbers, shown = zip(*(line.split("\t") for line in lines), strict=True)
        assert first == "index\tprediction" and list(map(int, numbers)) == list(range(50)), name
        assert (
            set(shown) == answers if answers else all(0 <= float(value) <= 5 for value in shown)
        ), name
