"""Zero-shot heuristics against direct arithmetic on a small decoder, and on the real files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import matthews_corrcoef

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.tasks.zero_shot import (
    ZERO_SHOT_METRICS,
    best_threshold,
    log_probabilities,
    zero_shot,
)

FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "race": "RACE", "dpr": "DPR"}


@pytest.fixture(scope="module")
def tokenizer(tiny_shards: Path) -> Tokenizer:
    return load_tokenizer(tiny_shards / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16, n_ctx=32)).eval()
    with torch.no_grad():
        model.wte.mul_(20.0)  # at initialisation all tokens are nearly alike
    return model


def plain(model: GPT, tokenizer: Tokenizer, before: str, after: str) -> list[float]:
    """Log-probability of each token of `after`, one full softmax a token."""
    ids = [tokenizer.special_ids["eot"], *tokenizer.encode(before)]
    result = []
    for token in tokenizer.encode(after):
        _, logits_BV = model(torch.tensor([ids[-model.config.n_ctx :]]), logits=True)
        result.append(F.log_softmax(logits_BV[0], -1)[token].item())
        ids.append(token)
    return result


def test_log_probabilities_are_those_of_a_token_at_a_time(model: GPT, tokenizer: Tokenizer):
    groups = [
        [("the old miller", "smiled at Maria"), ("", "an old house")],
        [("Maria " * 3, "very")],
    ]
    with torch.no_grad():
        expected = [
            [plain(model, tokenizer, *continuation) for continuation in group] for group in groups
        ]
    for mean in (True, False):
        found = log_probabilities(model, tokenizer, groups, "test", mean=mean)
        wanted = [
            [sum(tokens) / (len(tokens) if mean else 1) for tokens in group] for group in expected
        ]
        assert [pytest.approx(group, rel=1e-4) for group in wanted] == found


def test_a_text_too_long_loses_its_beginning_and_never_its_answer(model: GPT, tokenizer: Tokenizer):
    long, answer = "the old miller " * 300, "smiled"
    tail = [[(long, answer)], [("another beginning " + long, answer)]]
    first, second = log_probabilities(model, tokenizer, tail, "test")
    assert first == pytest.approx(second)


def test_the_threshold_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (60,), generator=generator)
    scores = (torch.randn(60, generator=generator) + labels).tolist()
    bar = best_threshold(scores, labels.tolist())
    fits = [matthews_corrcoef(labels, [score > other for score in scores]) for other in scores]
    assert matthews_corrcoef(labels, [score > bar for score in scores]) == max(fits) > 0.2


def cola_files(folder: Path, *names: str) -> Path:
    """A folder of CoLA's files, with the sentences of each file in opposite order of goodness."""
    folder.mkdir()
    for name in names:
        good = name == "train.tsv"
        rows = [f"x\t{int(good)}\t\tthe old miller smiled", f"x\t{int(not good)}\t*\tMaria the the"]
        (folder / name).write_text("\n".join([*rows, ""]))
    return folder


def test_cola_never_takes_its_threshold_from_the_sentences_it_scores(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
):
    folder = cola_files(tmp_path / "CoLA", "train.tsv", "dev.tsv")
    by_folder = zero_shot(model, tokenizer, "cola", folder)
    by_file = zero_shot(model, tokenizer, "cola", folder / "dev.tsv")
    assert by_file == by_folder
    assert by_folder.note == (
        f"the threshold is the best one for 2 sentences of {folder / 'train.tsv'}"
    )
    # The labels of dev are the opposite ones, so a threshold of dev itself would be another.
    assert 2 in map(len, [set(by_folder.gold), set(by_folder.predicted)])
    for alone in (folder / "train.tsv", cola_files(tmp_path / "alone", "dev.tsv") / "dev.tsv"):
        with pytest.raises(DataError, match="no training file beside it"):
            zero_shot(model, tokenizer, "cola", alone)


def test_an_unknown_task_is_a_usage_error(model: GPT, tokenizer: Tokenizer):
    with pytest.raises(ConfigError, match="did you mean 'sst2'"):
        zero_shot(model, tokenizer, "sst", "nowhere")


@pytest.mark.parametrize("task", ZERO_SHOT_METRICS)
def test_answers_every_example_of_the_real_files(
    shared_data: Path, model: GPT, tokenizer: Tokenizer, task: str
):
    gold, predicted, *_ = zero_shot(model, tokenizer, task, shared_data / "tasks" / FOLDERS[task])
    assert (
        len(gold)
        == len(predicted)
        == {"cola": 527, "sst2": 872, "dpr": 1316}.get(task, len(gold))
        > 500
    )
    assert set(predicted) <= set(gold) and (task == "sst2" or len(set(predicted)) > 1)
