"""Zero-shot answers of a pre-trained model by the heuristics of Radford et al. 2018, section 5 ("Zero-shot Behaviors").

| task | the language model alone decides by                                                  |
|------|--------------------------------------------------------------------------------------|
| cola | mean log-probability of a sentence's tokens, above a threshold for acceptable        |
| sst2 | "very" appended to the text: which is likelier to follow, "positive" or "negative"   |
| race | mean log-probability of each answer's tokens after passage and question              |
| dpr  | each referent in the pronoun's place: mean log-probability of the tokens after it    |

The paper does not say how CoLA's threshold was set: here it is the best one for 1,000 sentences of the training file.
A text is read as the beginning of a document, after `<eot>`; one too long for the context is cut at its left.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError, near
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.perplexity import token_nll
from gpt1_ds.tasks import TASKS
from gpt1_ds.tasks.batches import subset
from gpt1_ds.tasks.tables import read_lines

ZERO_SHOT_METRICS = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "race": ("accuracy",),
    "dpr": ("accuracy",),
}
WORDS = ("negative", "positive")  # in the order of SST-2's classes
THRESHOLD_SENTENCES = 1000
Continuation = tuple[str, str]
"""A text, and what follows it: the log-probability is of the latter's tokens."""


def zero_shot(
    model: GPT, tokenizer: Tokenizer, task: str, folder: Path | str
) -> tuple[list[int], list[int]]:
    """(gold, predicted) of the dev set below `folder`; dpr: of its one labelled file."""
    if task not in ZERO_SHOT_METRICS:
        raise ConfigError(f"--zero-shot {task}: {near(task, ZERO_SHOT_METRICS)}")
    if task == "dpr":
        gold, groups = read_dpr(Path(folder))
        return gold, [
            _likeliest(pair) for pair in log_probabilities(model, tokenizer, groups, task)
        ]
    dev = TASKS[task].read(folder, "dev")
    gold = [example.label for example in dev]
    if task == "cola":
        train = TASKS[task].read(folder, "train")
        train = [train[index] for index in subset(len(train), THRESHOLD_SENTENCES, seed=0)]
        groups = [[("", example.texts[0])] for example in [*train, *dev]]
        scores = [mean for [mean] in log_probabilities(model, tokenizer, groups, task)]
        bar = best_threshold(scores[: len(train)], [example.label for example in train])
        return gold, [int(score > bar) for score in scores[len(train) :]]
    if task == "sst2":
        groups = [[(f"{example.texts[0]} very", word) for word in WORDS] for example in dev]
    else:
        groups = [
            [(" ".join(example.texts[:2]), answer) for answer in example.texts[2:]]
            for example in dev
        ]
    scores = log_probabilities(model, tokenizer, groups, task, mean=task != "sst2")
    return gold, [_likeliest(group) for group in scores]


def log_probabilities(
    model: GPT,
    tokenizer: Tokenizer,
    groups: Sequence[Sequence[Continuation]],
    name: str,
    mean: bool = True,
) -> list[list[float]]:
    """For each continuation its log-probability in nats, a token (`mean`) or in all, grouped as they came."""
    texts = dict.fromkeys(
        part for group in groups for continuation in group for part in continuation
    )
    ids = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True))
    eot, n_ctx = tokenizer.special_ids["eot"], model.config.n_ctx
    continuations = [continuation for group in groups for continuation in group]
    documents = [
        np.array([eot, *ids[before], *ids[after]])[-(n_ctx + 1) :]
        for before, after in continuations
    ]
    nll_T = token_nll(model, documents, n_ctx, name)
    ends_D = np.cumsum([len(ids_T) - 1 for ids_T in documents])
    scored_D = [
        min(len(ids[after]), len(ids_T) - 1)
        for (_, after), ids_T in zip(continuations, documents, strict=True)
    ]
    flat = (
        -float(nll_T[end - n : end].sum(dtype=np.float64)) / (max(1, n) if mean else 1)
        for end, n in zip(ends_D, scored_D, strict=True)
    )
    return [[next(flat) for _ in group] for group in groups]


def read_dpr(folder: Path) -> tuple[list[int], list[list[Continuation]]]:
    """Rahman and Ng's file: sentence, pronoun, two candidates, answer, blank line. (right candidate, both readings)."""
    path = next(iter(sorted(folder.glob("*.c.txt"))), folder)
    gold, groups = [], []
    block: list[str] = []
    for row, line in [*read_lines(path), (0, "")]:
        if line.strip():
            block.append(line.strip())
        elif block:
            where = f"{path} row {row - len(block)}" if row else f"{path}, last block"
            candidates = [name.strip() for name in block[2].split(",")] if len(block) == 4 else []
            place = re.search(rf"\b{re.escape(block[1])}\b", block[0]) if candidates else None
            if place is None or len(candidates) != 2 or block[3] not in candidates:
                raise DataError(
                    f"{where}: expected a sentence, a pronoun of it, two candidates and the right one"
                )
            before, after = block[0][: place.start()], block[0][place.end() :]
            groups.append([(f"{before}{name}", after) for name in candidates])
            gold.append(candidates.index(block[3]))
            block = []
    return gold, groups


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The score above which calling a sentence acceptable gives the highest Matthews correlation."""
    from sklearn.metrics import matthews_corrcoef

    return max(
        sorted(scores), key=lambda bar: matthews_corrcoef(labels, [score > bar for score in scores])
    )


def _likeliest(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
