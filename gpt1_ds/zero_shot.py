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

import torch
from torch import nn

from gpt1_ds import metrics
from gpt1_ds.errors import ConfigError, DataError, near
from gpt1_ds.kernels import IGNORE
from gpt1_ds.tasks import TASKS
from gpt1_ds.tasks.batches import subset
from gpt1_ds.tasks.tables import read_lines
from gpt1_ds.tokenizer import Tokenizer

METRICS = {"cola": ("matthews", "accuracy"), "sst2": ("accuracy",), "race": ("accuracy",), "dpr": ("accuracy",)}
WORDS = ("negative", "positive")  # in the order of SST-2's classes
THRESHOLD_SENTENCES = 1000
BATCH_TOKENS = 8192

Continuation = tuple[str, str]
"""A text, and what follows it: the log-probability is of the latter's tokens."""


def zero_shot(model: nn.Module, tokenizer: Tokenizer, task: str, folder: Path | str) -> tuple[list[int], list[int]]:
    """(gold, predicted) of the dev set below `folder`; dpr: of its one labelled file."""
    if task not in METRICS:
        raise ConfigError(f"--zero-shot {task}: {near(task, METRICS)}")
    if task == "dpr":
        gold, groups = read_dpr(Path(folder))
        return gold, [_likeliest(pair) for pair in log_probabilities(model, tokenizer, groups, task)]
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
        groups = [[(" ".join(example.texts[:2]), answer) for answer in example.texts[2:]] for example in dev]
    scores = log_probabilities(model, tokenizer, groups, task, mean=task != "sst2")
    return gold, [_likeliest(group) for group in scores]


@torch.inference_mode()
def log_probabilities(
    model: nn.Module, tokenizer: Tokenizer, groups: Sequence[Sequence[Continuation]], name: str, mean: bool = True
) -> list[list[float]]:
    """For each continuation its log-probability in nats, a token (`mean`) or in all, grouped as they came."""
    n_ctx, device = model.config.n_ctx, model.wte.device
    texts = dict.fromkeys(part for group in groups for continuation in group for part in continuation)
    ids = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True))
    sequences = []
    for before, after in (continuation for group in groups for continuation in group):
        sequence = [tokenizer.special_ids["eot"], *ids[before], *ids[after]][-(n_ctx + 1) :]
        sequences.append((sequence, min(len(ids[after]), len(sequence) - 1)))
    scores = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index][0]))
    with metrics.progress_bar(len(order), 0, "text", name) as bar:
        while order:
            T = len(sequences[order[0]][0]) - 1
            batch, order = order[: max(1, BATCH_TOKENS // T)], order[max(1, BATCH_TOKENS // T) :]
            ids_BT = torch.full((len(batch), T), tokenizer.special_ids["pad"])
            targets_BT = torch.full((len(batch), T), IGNORE)
            for row, index in enumerate(batch):
                sequence, n_scored = sequences[index]
                end = len(sequence) - 1
                ids_BT[row, :end] = torch.tensor(sequence[:-1])
                targets_BT[row, end - n_scored : end] = torch.tensor(sequence[len(sequence) - n_scored :])
            nll_B = model(ids_BT.to(device), targets_BT.to(device))[1].sum(1).tolist()
            for index, nll in zip(batch, nll_B, strict=True):
                scores[index] = -nll / (max(1, sequences[index][1]) if mean else 1)
            bar.update(len(batch))
    flat = iter(scores)
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
                raise DataError(f"{where}: expected a sentence, a pronoun of it, two candidates and the right one")
            before, after = block[0][: place.start()], block[0][place.end() :]
            groups.append([(f"{before}{name}", after) for name in candidates])
            gold.append(candidates.index(block[3]))
            block = []
    return gold, groups


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The score above which calling a sentence acceptable gives the highest Matthews correlation."""
    from sklearn.metrics import matthews_corrcoef

    return max(sorted(scores), key=lambda bar: matthews_corrcoef(labels, [score > bar for score in scores]))


def _likeliest(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
