"""Zero-shot answers of a pre-trained model, by the heuristics of Radford et al. 2018.

See section 5, "Zero-shot Behaviors". The language model decides without fine-tuning by:

| task | heuristic                                                                            |
|------|--------------------------------------------------------------------------------------|
| cola | mean log-probability of a sentence's tokens; above a threshold it is acceptable      |
| sst2 | "very" is appended to the text; the likelier next word: "positive" or "negative"    |
| race | mean log-probability of each answer's tokens after passage and question              |
| dpr  | mean log-probability of the tokens after the pronoun, with each referent in its place |

The paper does not say how CoLA's threshold was chosen. Here it is the best one for 1,000 sentences
of the training file, never for those that are scored. A text is read as the beginning of a
document, after `<eot>`. If it is too long for the context, its beginning is cut off.
"""

from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError, near
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.perplexity import token_nll
from gpt1_ds.tasks import TASKS
from gpt1_ds.tasks.batches import subset
from gpt1_ds.tasks.examples import Example
from gpt1_ds.tasks.pronouns import Continuation, read_dpr

ZERO_SHOT_METRICS = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "race": ("accuracy",),
    "dpr": ("accuracy",),
}
SENTIMENTS = ("negative", "positive")
"""In the order of SST-2's classes."""
THRESHOLD_SENTENCES = 1000


class Answers(NamedTuple):
    """Indices of classes, or of answers."""

    gold: list[int]
    predicted: list[int]
    parts: list[str]
    """The part of the data that each answer belongs to; empty strings if there are no parts."""
    note: str | None = None
    """What a user should know about the answers."""


def zero_shot(model: GPT, tokenizer: Tokenizer, task: str, source: Path | str) -> Answers:
    """Answers for the dev set in the folder `source`, or for one file; for dpr, for all its files.

    The parts are the files of dpr, and the levels of RACE.
    """
    source = Path(source)
    if task not in ZERO_SHOT_METRICS:
        raise ConfigError(f"--zero-shot {task}: {near(task, ZERO_SHOT_METRICS)}")
    if task == "dpr":
        gold, groups, parts = read_dpr(source)
        predicted = _likeliest(log_probabilities(model, tokenizer, groups, task))
        return Answers(gold, predicted, parts)
    dev = TASKS[task].read(source, "dev")
    gold, parts = [example.label for example in dev], [example.part for example in dev]
    if task == "cola":
        train, note = _threshold_sentences(source)
        return Answers(gold, _acceptable(model, tokenizer, train, dev), parts, note)
    continuations: Callable[[Example], list[Continuation]] = _sentiments
    if task == "race":
        continuations = _answers
    groups = [continuations(example) for example in dev]
    # sst2 compares the sums for two words. Answers have different lengths, so means are compared.
    scores = log_probabilities(model, tokenizer, groups, task, mean=task != "sst2")
    return Answers(gold, _likeliest(scores), parts)


def _threshold_sentences(source: Path) -> tuple[list[Example], str]:
    """Sentences of CoLA's training file in or beside `source`, and a line about them.

    Raises DataError if the scored file is the only one: its own best threshold is no score.
    """
    cola = TASKS["cola"]
    folder = source if source.is_dir() else source.parent
    path = cola.path(folder, "train")
    if path is None or (source.is_file() and path.samefile(source)):
        raise DataError(
            f"--data {source}: no training file beside it to take the threshold from; give the "
            "folder of CoLA, or a dev file beside its train.tsv"
        )
    every = cola.examples(path, "train")
    train = [every[index] for index in subset(len(every), THRESHOLD_SENTENCES, seed=0)]
    return train, f"the threshold is the best one for {len(train):,} sentences of {path}"


def _acceptable(
    model: GPT, tokenizer: Tokenizer, train: Sequence[Example], dev: Sequence[Example]
) -> list[int]:
    groups = [[Continuation("", example.texts[0])] for example in [*train, *dev]]
    scores = [mean for [mean] in log_probabilities(model, tokenizer, groups, "cola")]
    threshold = best_threshold(scores[: len(train)], [example.label for example in train])
    return [int(score > threshold) for score in scores[len(train) :]]


def _sentiments(example: Example) -> list[Continuation]:
    return [Continuation(f"{example.texts[0]} very", word) for word in SENTIMENTS]


def _answers(example: Example) -> list[Continuation]:
    passage, question, *answers = example.texts
    return [Continuation(f"{passage} {question}", answer) for answer in answers]


def log_probabilities(
    model: GPT,
    tokenizer: Tokenizer,
    groups: Sequence[Sequence[Continuation | tuple[str, str]]],
    name: str,
    mean: bool = True,
) -> list[list[float]]:
    """The log-probability of each continuation in nats, in the same groups.

    It is the mean over the tokens, or their sum without `mean`. The progress shows `name`.
    """
    continuations = [Continuation(*pair) for pair in chain.from_iterable(groups)]
    texts: dict[str, None] = {}
    for continuation in continuations:
        texts.update(dict.fromkeys(continuation))
    ids = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True))
    eot = tokenizer.special_ids["eot"]
    n_ctx = model.config.n_ctx
    documents = []
    for before, after in continuations:
        documents.append(np.array([eot, *ids[before], *ids[after]])[-(n_ctx + 1) :])
    nll_T = token_nll(model, documents, n_ctx, name)
    scores = []
    end = 0
    for continuation, document in zip(continuations, documents, strict=True):
        end += len(document) - 1
        count = min(len(ids[continuation.after]), len(document) - 1)
        total = -float(nll_T[end - count : end].sum(dtype=np.float64))
        scores.append(total / max(1, count) if mean else total)
    in_order = iter(scores)
    return [list(islice(in_order, len(group))) for group in groups]


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The threshold with the highest Matthews correlation: scores above it mean acceptable."""
    from sklearn.metrics import matthews_corrcoef

    def correlation(threshold: float) -> float:
        return matthews_corrcoef(labels, [score > threshold for score in scores])

    return max(sorted(scores), key=correlation)


def _likeliest(groups: Sequence[Sequence[float]]) -> list[int]:
    return [max(range(len(scores)), key=scores.__getitem__) for scores in groups]
