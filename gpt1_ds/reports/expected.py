"""The figures that are expected of a run, beside those it has: chance, and the paper's results."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.checking import is_number
from gpt1_ds.reports.expected_curves import compared
from gpt1_ds.reports.run_files import RunFiles, with_number

PAPER = {
    "mnli": "82.1",
    "mnli dev_mismatched": "81.4",
    "snli": "89.9",
    "scitail": "88.3",
    "qnli": "88.1",
    "rte": "56.0",
    "storycloze": "86.5",
    "race": "59.0",
    "race dev_middle": "62.9",
    "race dev_high": "57.4",
    "cola": "45.4",
    "sst2": "91.3",
    "mrpc": "82.3",
    "stsb": "82.0",
    "qqp": "70.3",
}
"""The paper's Tables 2 to 4, on the test sets. Its score for all of GLUE is 72.8."""
TABLE_5_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
TABLE_5 = {
    "none": (45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0),
    "no_lm": (47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4),
    "scratch": (18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
    "lstm": (30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6),
}
PAPER_PERPLEXITY = 18.4
"""Of the paper's model on BooksCorpus, after 100 epochs of it (section 4.1)."""
PAPER_MODEL = {"kind": "transformer", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 512}


class Expected(NamedTuple):
    """A figure of a run, and what to compare it with."""

    figure: str
    measured: str
    expected: str
    source: str
    score: float | None = None
    """What the chart of task scores shows as a line, if it is such a figure."""


def paper_score(row: str, variant: str) -> str:
    """The paper's score, times 100, of a task (or `TASK SPLIT`); empty if it has none.

    `variant` is "none", or an ablation of Table 5.
    """
    if variant == "none":
        return PAPER.get(row, "")
    return str(TABLE_5[variant][TABLE_5_TASKS.index(row)]) if row in TABLE_5_TASKS else ""


def expected_of(run: RunFiles) -> list[Expected]:
    """Everything that is known beforehand about the figures that this run has."""
    return [*_first_loss(run), *_curves(run), *_perplexity(run), *_task_scores(run)]


def _first_loss(run: RunFiles) -> Iterator[Expected]:
    """Weights that were just drawn give each token of the vocabulary about the same chance."""
    vocabulary = _model(run).get("vocab_size", 0)
    starts_anew = run.config.get("init", {}).get("checkpoint") is None and not run.result
    if not starts_anew or not is_number(vocabulary) or vocabulary < 1:
        return
    source = f"ln({vocabulary:,}): each of the {vocabulary:,} tokens is equally likely"
    for record in with_number(run.valid, "loss"):
        if record["step"] == 0:
            name = f"validation loss before training, {record.get('corpus', 'all')}"
            yield Expected(name, f"{record['loss']:.4f}", f"{math.log(vocabulary):.4f}", source)


def _curves(run: RunFiles) -> Iterator[Expected]:
    """The last step of each expected curve that the run has come to."""
    for curve, point, loss in compared(run):
        name = f"validation loss at step {point.step:,}, {curve.corpus}"
        is_inside = abs(loss - point.loss) <= point.tolerance
        verdict = "within it" if is_inside else "outside of it"
        expected = f"{point.loss:.3f} ± {point.tolerance:.3f}, {verdict}"
        yield Expected(name, f"{loss:.4f}", expected, f"{curve.name}: {curve.source}")


def _perplexity(run: RunFiles) -> Iterator[Expected]:
    if not PAPER_MODEL.items() <= _model(run).items():
        return
    for corpus in run.corpora:
        losses = with_number(run.valid_of(corpus), "loss")
        if losses and losses[-1]["step"]:
            perplexity = math.exp(min(losses[-1]["loss"], 100))
            source = "the paper, on BooksCorpus after 100 epochs"
            name = f"perplexity, {corpus}"
            yield Expected(name, f"{perplexity:,.1f}", f"{PAPER_PERPLEXITY}", source)


def _task_scores(run: RunFiles) -> Iterator[Expected]:
    result = run.result
    if "score" not in result or "metric" not in result:
        return
    name, measured = f"dev {result['metric']}", f"{result['score']:.4f}"
    if "majority" in result:
        chance = result["majority"]
        source = "the training set's commonest answer"
        yield Expected(name, measured, f"{chance:.4f}", source, chance)
    task, variant = result.get("task", ""), _variant(run)
    splits = {"dev": result["score"]}
    for split, scores in result.get("splits", {}).items():
        if result["metric"] in scores:
            splits[split] = scores[result["metric"]]
    for split, score in splits.items():
        # The paper's score is of the test set, which stands under the task's own name.
        row = task if split in ("dev", "test") else f"{task} {split}"
        paper = paper_score(row, variant)
        if paper:
            value = float(paper) / 100
            source = f"the paper, {VARIANT_NAMES[variant]}, on its test set"
            shown = value if split == "dev" else None
            figure = f"{split} {result['metric']}"
            yield Expected(figure, f"{score:.4f}", f"{value:.4f}", source, shown)


VARIANT_NAMES = {
    "none": "in full",
    "no_lm": "without the auxiliary objective",
    "scratch": "without pre-training",
    "lstm": "with an LSTM",
}


def _variant(run: RunFiles) -> str:
    """The row of the paper's Table 5 that this fine-tuning is."""
    task = run.config.get("task", {})
    if run.config.get("model", {}).get("kind") == "lstm":
        return "lstm"
    if task.get("n_transfer") == -1 or run.result.get("init") == "none":
        return "scratch"
    return "no_lm" if task.get("lm_coef") == 0 else "none"


def _model(run: RunFiles) -> Json:
    model = run.state.get("model")
    return model if isinstance(model, dict) else {}
