"""Zero-shot answers of a pre-trained model, by the heuristics of Radford et al. 2018.

See section 5, "Zero-shot Behaviors". The language model decides without fine-tuning by:

| task | heuristic                                                                            |
|------|--------------------------------------------------------------------------------------|
| cola | mean log-probability of a sentence's tokens; above a threshold it is acceptable      |
| sst2 | "very" is appended to the text; the likelier next word: "positive" or "negative"    |
| race | mean log-probability of each answer's tokens after passage and question              |
| dpr  | mean log-probability of the tokens after the pronoun, with each referent in its place |

The paper does not say how CoLA's threshold was chosen. Here it is the best one for 1,000 sentences
of the training file. A text is read as the beginning of a document, after `<eot>`. If it is too
long for the context, its beginning is cut off.
"""

import re
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
from gpt1_ds.tasks.tables import Line, read_lines

ZERO_SHOT_METRICS = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "race": ("accuracy",),
    "dpr": ("accuracy",),
}
SENTIMENTS = ("negative", "positive")
"""In the order of SST-2's classes."""
THRESHOLD_SENTENCES = 1000
DPR_LINES = 4
"""Number of lines of a block: sentence, pronoun, two candidates, answer."""


class Continuation(NamedTuple):
    """A text and its continuation; only the tokens of `after` are scored."""

    before: str
    after: str


class Answers(NamedTuple):
    """Indices of classes, or of answers."""

    gold: list[int]
    predicted: list[int]


class Referents(NamedTuple):
    """Pronouns with two possible referents each."""

    gold: list[int]
    """Index of the correct referent, for each pronoun."""
    groups: list[list[Continuation]]
    """For each pronoun, the sentence with each of the two referents in its place."""


def zero_shot(model: GPT, tokenizer: Tokenizer, task: str, folder: Path | str) -> Answers:
    """Answers for the dev set in `folder`; for dpr, for its one labelled file."""
    if task not in ZERO_SHOT_METRICS:
        raise ConfigError(f"--zero-shot {task}: {near(task, ZERO_SHOT_METRICS)}")
    if task == "dpr":
        gold, groups = read_dpr(Path(folder))
        return Answers(gold, _likeliest(log_probabilities(model, tokenizer, groups, task)))
    dev = TASKS[task].read(folder, "dev")
    gold = [example.label for example in dev]
    if task == "cola":
        train = TASKS[task].read(folder, "train")
        train = [train[index] for index in subset(len(train), THRESHOLD_SENTENCES, seed=0)]
        return Answers(gold, _acceptable(model, tokenizer, train, dev))
    continuations: Callable[[Example], list[Continuation]] = _sentiments
    if task == "race":
        continuations = _answers
    groups = [continuations(example) for example in dev]
    # sst2 compares the sums for two words. Answers have different lengths, so means are compared.
    scores = log_probabilities(model, tokenizer, groups, task, mean=task != "sst2")
    return Answers(gold, _likeliest(scores))


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


def read_dpr(folder: Path) -> Referents:
    """Reads Rahman and Ng's file. It consists of blocks with an empty line after each.

    A block has four lines: sentence, pronoun, two candidates, answer. For another form it raises
    DataError with the row.
    """
    path = next(iter(sorted(folder.glob("*.c.txt"))), folder)
    found = Referents([], [])
    block: list[str] = []
    for row, line in [*read_lines(path), Line(0, "")]:
        if line.strip():
            block.append(line.strip())
        elif block:
            where = f"{path} row {row - len(block)}" if row else f"{path}, last block"
            gold, group = _parse_dpr(block, where)
            found.gold.append(gold)
            found.groups.append(group)
            block = []
    return found


def _parse_dpr(block: list[str], where: str) -> tuple[int, list[Continuation]]:
    """The index of the correct candidate, and the sentence with each candidate."""
    fault = DataError(
        f"{where}: expected a sentence, a pronoun of it, two candidates and the right one"
    )
    if len(block) != DPR_LINES:
        raise fault
    sentence, pronoun, names, right = block
    candidates = [name.strip() for name in names.split(",")]
    place = re.search(rf"\b{re.escape(pronoun)}\b", sentence)
    if place is None or len(candidates) != 2 or right not in candidates:
        raise fault
    before, after = sentence[: place.start()], sentence[place.end() :]
    group = [Continuation(f"{before}{name}", after) for name in candidates]
    return candidates.index(right), group


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The threshold with the highest Matthews correlation: scores above it mean acceptable."""
    from sklearn.metrics import matthews_corrcoef

    def correlation(threshold: float) -> float:
        return matthews_corrcoef(labels, [score > threshold for score in scores])

    return max(sorted(scores), key=correlation)


def _likeliest(groups: Sequence[Sequence[float]]) -> list[int]:
    return [max(range(len(scores)), key=scores.__getitem__) for scores in groups]
