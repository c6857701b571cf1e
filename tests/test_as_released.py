"""`fidelity: as_released`: each part against the released code's formulas, and Story Cloze."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from gpt1_ds import eval as gpt1_eval
from gpt1_ds import export
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.engine.optimizer import lr_at
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.kernels import keep_mask, site_keys
from gpt1_ds.runs.task_data import read_task_data
from gpt1_ds.settings.fidelity import contradictions
from gpt1_ds.settings.loading import load, to_yaml
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig, ScheduleConfig, TaskConfig
from gpt1_ds.tasks import IGNORE, Example, build_task
from gpt1_ds.tasks.base import released_split
from gpt1_ds.tasks.batches import collate, epoch_batches, n_lm_targets
from gpt1_ds.tasks.heads import Counts, TaskModel, objective
from tests.support import released
from tests.support.fine_tuning import NO_DROPOUT, arguments, logged, weights

N_CTX = 32
STORIES = 40
CHOICES = {
    "tokenizer.openai_pipeline": "original",
    "optim.kind": "openai_adam",
    "schedule.progress": "absolute",
    "model.embd_dropout": "matrix",
    "model.position_logits": True,
    "task.lm_mean": "sequence",
    "task.sampling": "plain",
    "task.drop_last": True,
    "task.truncation": "fields",
    "task.split": "released",
}


def values(config: PretrainConfig) -> dict[str, object]:
    found = {}
    for name in CHOICES:
        section, _, key = name.partition(".")
        if hasattr(config, section):
            found[name] = getattr(getattr(config, section), key)
    return found


# The switch


@pytest.mark.parametrize("name", ["storycloze", "rte", "sst2", None])
def test_the_switch_sets_the_parts_that_fit_and_no_others(tmp_path: Path, name: str | None):
    cls = FinetuneConfig if name else PretrainConfig
    task = [f"task.name={name}"] if name else []
    usual, switched = load(cls, None, task), load(cls, None, [*task, "fidelity=as_released"])
    absent = {"rte": ["task.split"], "sst2": ["task.split", "task.truncation"]}.get(name, [])
    expected = {key: value for key, value in CHOICES.items() if key in values(usual)}
    assert values(switched) == expected | {key: values(usual)[key] for key in absent}
    assert all(values(usual)[key] != value for key, value in expected.items())
    assert contradictions(switched) == [] == contradictions(usual)
    path = tmp_path / "run.yaml"
    path.write_text("fidelity: as_released\n")
    assert load(cls, path, task) == switched
    path.write_text(to_yaml(switched))  # as in a run's folder
    assert load(cls, path, []) == switched


def test_a_part_of_the_users_own_stays_and_is_listed():
    own = ["optim.kind=adamw", "tokenizer.openai_pipeline=null", "task.split=released"]
    config = load(FinetuneConfig, None, ["task.name=storycloze", *own, "fidelity=as_released"])
    assert (config.optim.kind, config.tokenizer.openai_pipeline) == ("adamw", None)
    assert contradictions(config) == [
        "fidelity is as_released, but tokenizer.openai_pipeline is null, not original",
        "fidelity is as_released, but optim.kind is adamw, not openai_adam",
    ]
    with pytest.raises(ConfigError, match="fidelity.kind is 'exact'; choose from: as_released"):
        load(FinetuneConfig, None, ["fidelity=exact"])


@pytest.mark.parametrize("option", ["split=released", "truncation=fields"])
def test_a_part_that_does_not_fit_the_task_is_refused(option: str):
    key, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=f"task.{option} has no effect on sst2"):
        build_task(TaskConfig(name="sst2", **{key: value}))


# The parts


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total, warmup", [(138, None), (1000, 100)])
def test_the_rate_is_that_of_the_released_code(kind: str, total: int, warmup: int | None):
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, progress="absolute")
    share = 0.002 if warmup is None else warmup / total
    expected = [released.rate(t, total, 6.25e-5, kind, share) for t in range(1, total + 1)]
    found = [lr_at(step, total, 6.25e-5, schedule) for step in range(total)]
    assert found == pytest.approx(expected, abs=1e-18, rel=1e-12) and found[0] == 0


def test_no_warm_up_begins_at_the_peak():
    schedule = ScheduleConfig(kind="cosine", warmup_steps=0, progress="absolute")
    assert lr_at(0, 10, 1.0, schedule) == 1.0


def test_plain_batches_are_a_shuffle_cut_into_pieces():
    lengths = list(range(1497))
    batches = epoch_batches(lengths, 32, 7, 2, plain=True)
    order = np.random.default_rng((7, 0, 2)).permutation(1497)
    assert sum(batches, []) == order.tolist()
    assert [len(batch) for batch in batches] == [32] * 46 + [25]


@pytest.mark.parametrize("count, n_dev", [(1871, 374), (40, 8)])
def test_the_split_is_scikit_learns_with_the_released_seed(count: int, n_dev: int):
    examples = [Example((str(number),), 0) for number in range(count)]
    parts = released_split(examples, Path("val.csv"))
    train, dev = train_test_split(examples, test_size=n_dev, random_state=3535999445)
    assert parts == {"train": train, "dev": dev} and len(dev) == n_dev
    with pytest.raises(DataError, match="val.csv: 2 stories are too few"):
        released_split(examples[:2], Path("val.csv"))


def test_each_field_is_cut_by_itself():
    special = {"s": 1, "delim": 2, "e": 3}
    story, short, long = list(range(10, 40)), [50, 51], list(range(60, 90))
    task = build_task(TaskConfig(name="storycloze", truncation="fields"))
    found = task.sequences([story, [], short, long], special, N_CTX)
    expected = [released.transform_roc(story, ending, special, N_CTX) for ending in (short, long)]
    assert found.ids == expected and list(map(len, expected)) == [19, 31] and found.cut == 32
    pair = build_task(TaskConfig(name="rte", truncation="fields"))
    assert pair.sequences([story, short], special, N_CTX).ids == expected[:1]
    both = build_task(TaskConfig(name="mrpc", truncation="fields"))
    back = released.transform_roc(short, story, special, N_CTX)
    assert both.sequences([story, short], special, N_CTX).ids == [expected[0], back]


@pytest.fixture(scope="module")
def small() -> tuple[GPT, dict[str, np.ndarray]]:
    """A decoder of one layer, and its weights by their names in the release."""
    tensors = released.random_weights(100, N_CTX, 1)
    config = GPTConfig(100, 1, 1, 64, N_CTX, 0.3, 0, 0, "transformer", "matrix", True)
    gpt = GPT(config)
    with torch.no_grad():
        gpt.wte[:100] = tensors["tokens_embed.weight"]
        gpt.wpe[:] = tensors["positions_embed.weight"]
        for name, parameter in gpt.blocks.named_parameters():
            tensor = tensors[f"h.{name}"]
            parameter[:] = tensor.t() if tensor.ndim == 2 else tensor
    return gpt, {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("positions", [N_CTX, 9])
def test_the_softmax_has_rows_for_positions_and_sees_the_dropped_matrix(
    small: tuple[GPT, dict[str, np.ndarray]], training: bool, positions: int
):
    gpt, arrays = small
    gpt.train(training)
    gpt.position_rows = positions
    ids_BT = torch.arange(18).view(2, 9) * 5
    keys_B2 = torch.tensor([[5, 7], [11, 13]], dtype=torch.int32)
    hidden_BTC, nll_BT = gpt(ids_BT[:, :-1], ids_BT[:, 1:], dropout_keys_B2=keys_B2)

    rows = gpt.config.padded_vocab_size
    tokens = np.zeros((rows, 64))
    tokens[:100] = arrays["tokens_embed.weight"]
    matrix = np.concatenate([tokens, arrays["positions_embed.weight"]])
    if training:
        key_12 = site_keys(keys_B2, 4)[0][:1]
        kept = keep_mask(torch.Size((1, *matrix.shape)), 0.3, key_12)[0].numpy() != 0
        assert abs(kept.mean() - 0.7) < 0.01
        matrix = np.where(kept, matrix / 0.7, 0.0)
    softmax_rows = np.concatenate([matrix[:100], matrix[rows : rows + positions]])
    for b, ids in enumerate(ids_BT.tolist()):
        hidden = released.hidden_states(arrays, ids[:-1], matrix[:rows], matrix[rows:])
        np.testing.assert_allclose(hidden_BTC[b].detach().numpy(), hidden, rtol=1e-4, atol=1e-4)
        scores = released.log_softmax(hidden @ softmax_rows.T)
        expected = [-row[target] for row, target in zip(scores, ids[1:], strict=True)]
        np.testing.assert_allclose(nll_BT[b].detach().numpy(), expected, rtol=1e-4)
    gpt.zero_grad()
    nll_BT.sum().backward()
    assert gpt.wpe.grad[:positions].abs().sum(1).min() > 0  # also of positions beyond the tokens


def test_what_is_off_copies_no_matrix():
    copies = []
    for shape in ({}, {"position_logits": True}, {"embd_dropout": "matrix"}):
        gpt = GPT(GPTConfig(100, 1, 1, 64, N_CTX, **shape)).train()
        ids_BT = torch.arange(18).view(2, 9)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            gpt(ids_BT[:, :-1], ids_BT[:, 1:])[1].sum().backward()
        events = {event.key: event.count for event in profile.key_averages()}
        copies.append(events.get("aten::cat", 0))
    assert copies[1:] == [copies[0] + 1] * 2


def test_the_language_model_loss_is_a_mean_of_means(small: tuple[GPT, dict[str, np.ndarray]]):
    gpt, arrays = small
    gpt.eval()
    gpt.position_rows = N_CTX
    special = {"pad": 0, "s": 1, "e": 2, "delim": 3}
    task = build_task(TaskConfig(name="storycloze"))
    stories = [[9, 8], [], [7], [6, 5, 4, 3, 9]], [[4] * 9, [], [8, 8, 8], [7]]
    encoded = [task.arrange(Example((), 0), ids, special, N_CTX) for ids in stories]
    model = TaskModel(gpt, "multiple_choice", 1, "last", 0.0).eval()
    matrix = np.concatenate([arrays["tokens_embed.weight"], arrays["positions_embed.weight"]])
    tokens, positions = np.split(matrix, [100])
    means = []
    for example in encoded:
        for ids in example.sequences:
            hidden = released.hidden_states(arrays, ids, tokens, positions)
            means.append(released.lm_loss(hidden, ids, matrix))
    config = TaskConfig(task_coef=0.0, lm_coef=1.0)
    found = {}
    for mean in ("sequence", "token"):
        model.lm_mean = mean
        counts = Counts(2, sum(n_lm_targets(example, mean) for example in encoded))
        total = torch.tensor(0.0)
        for example in [*encoded, None]:  # one a micro-step, and one step without examples
            batch = collate([example] if example else [], special, encoded[0])
            output = model(batch.ids_BST, batch.end_BS, batch.targets, batch.lm_targets_BST)
            total = total + objective(output.task_loss, output.lm_loss, counts, config)
        found[mean] = total.item()
    assert found["sequence"] == pytest.approx(np.mean(means), rel=1e-5)
    assert abs(found["token"] - found["sequence"]) > 1e-3
    assert (batch.lm_targets_BST == IGNORE).all()


# Story Cloze, whole


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fabricated weights in the published form, imported."""
    folder = tmp_path_factory.mktemp("released")
    model = folder / "model"
    model.mkdir()
    released.small_bpe(model)
    rows = len(json.loads((model / "encoder_bpe_40000.json").read_text()))
    released.openai_arrays(model, released.random_weights(rows, N_CTX, 1), 1)
    export.main([str(model), "--from-openai", "--out", str(folder / "run")])
    return folder / "run"


def test_the_first_losses_on_story_cloze_are_those_of_the_released_code(
    ranks, imported: Path, tmp_path: Path
):
    """The update has rate 0, so the checkpoint has the weights of the losses."""
    data = tmp_path / "StoryCloze"
    data.mkdir()
    stories = released.write_stories(data, STORIES)
    argv = arguments(
        tmp_path,
        "zero0_fp32",
        *("task.name=storycloze", f"task.data={data}", "run.name=roc", *NO_DROPOUT),
        *(f"init.checkpoint={imported}", "train.global_batch=16", "train.max_steps=1"),
        *("fidelity=as_released", "schedule.warmup_fraction=0.5", "train.epochs=3"),
    )
    ranks(1).run("gpt1_ds.finetune:main", argv)
    (record,) = logged(tmp_path / "roc", "train")
    assert record["lr"] == 0.0

    tokenizer = load_tokenizer(imported / "tokenizer")
    order = np.random.RandomState(3535999445).permutation(STORIES)
    train, dev = [stories[i] for i in order[8:]], [stories[i] for i in order[:8]]
    result = json.loads((tmp_path / "roc" / "result.json").read_text())
    assert result["examples"] == {"train": 32, "dev": 8}
    config = load(
        FinetuneConfig, None, ["task.name=storycloze", "fidelity=as_released", f"task.data={data}"]
    )
    read = read_task_data(config, build_task(config.task), tokenizer, N_CTX)
    assert read.gold == [right for *_, right in dev]

    def sequences(story: str, *rest) -> list[list[int]]:
        ids, special = tokenizer.encode(story), tokenizer.special_ids
        return [
            released.transform_roc(ids, tokenizer.encode(ending), special, N_CTX)
            for ending in rest[:2]
        ]

    longest = read.longest_sequence(N_CTX)
    known = max(len(ids) for row in stories for ids in sequences(*row))
    assert known <= longest <= N_CTX - 1
    arrays = {name: tensor.double().numpy() for name, tensor in weights(tmp_path / "roc").items()}
    theirs = {
        f"h.{name.removeprefix('gpt.blocks.')}": array
        for name, array in arrays.items()
        if ".blocks." in name
    }
    theirs = {name: array.T if array.ndim == 2 else array for name, array in theirs.items()}
    tokens, positions = arrays["gpt.wte"][: tokenizer.vocab_size], arrays["gpt.wpe"]
    matrix = np.concatenate([tokens, positions[:longest]])
    task_losses, lm_losses = [], []
    for number in np.random.default_rng((42, 0, 0)).permutation(32)[:16]:
        *row, right = train[number]
        scores = []
        for ids in sequences(*row):
            hidden = released.hidden_states(theirs, ids, tokens, positions)
            lm_losses.append(released.lm_loss(hidden, ids, matrix))
            scores.append(hidden[-1] @ arrays["head.weight"][0] + arrays["head.bias"][0])
        task_losses.append(-released.log_softmax(np.array(scores))[right])
    assert record["task_loss"] == pytest.approx(np.mean(task_losses), rel=1e-5)
    assert record["lm_loss"] == pytest.approx(np.mean(lm_losses), rel=1e-5)
    assert record["grad_norm"] > 0


def test_story_cloze_is_fine_tuned_as_released_on_two_ranks(
    ranks, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    data = tmp_path / "StoryCloze"
    data.mkdir()
    released.write_stories(data, STORIES)
    argv = arguments(
        tmp_path,
        "cpu_fp32",
        *("task.name=storycloze", f"task.data={data}", "run.name=roc", "train.epochs=2"),
        *(f"init.checkpoint={imported}", "train.global_batch=10", "fidelity=as_released"),
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    run = tmp_path / "roc"
    records = logged(run, "train")
    assert [record["step"] for record in records] == list(range(1, 7))  # 32 // 10 an epoch
    assert records[2]["epoch"] == 1.0 and records[-1]["epoch"] == 2.0
    result = json.loads((run / "result.json").read_text())
    assert set(result["splits"]) == {"test"} and (run / "predictions-test.tsv").exists()
    gpt1_eval.main([str(run), "--task", "storycloze", "--data", str(data)])
    assert f"accuracy {result['score']:.4f}" in capsys.readouterr().out
