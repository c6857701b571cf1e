"""Task heads on a small decoder: the state they read, padding, and the joint objective."""

import pytest
import torch
import torch.nn.functional as F

from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import IGNORE, TASKS, Encoded, Example, batches
from gpt1_ds.tasks.batches import collate, micro_batches, n_lm_targets, n_targets
from gpt1_ds.tasks.heads import Counts, TaskModel, dropout_keys, objective
from gpt1_ds.tasks.predicting import predict

SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}
SHAPE = {"vocab_size": 60, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_ctx": 32}
CONFIG = TaskConfig(lm_coef=0.5, task_coef=1.0)


def model(
    kind: str = "classification",
    n_classes: int = 2,
    pool: str = "last",
    clf_pdrop: float = 0.0,
    pdrop: float = 0.0,
) -> TaskModel:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE, embd_pdrop=pdrop, attn_pdrop=pdrop, resid_pdrop=pdrop))
    task_model = TaskModel(gpt, kind, n_classes, pool, clf_pdrop)
    with torch.no_grad():
        for parameter in task_model.parameters():
            parameter.add_(
                0.2 * torch.randn_like(parameter)
            )  # at initialisation all logits are nearly alike
    return task_model


def sequence(*ids: int) -> list[int]:
    return [SPECIAL["s"], *ids, SPECIAL["e"]]


def logits_of(task_model: TaskModel, examples: list[Encoded]) -> torch.Tensor:
    batch = collate(examples, SPECIAL, examples[0])
    return task_model.eval()(batch.ids_BST, batch.end_BS, batch.targets)[2]


SHORT, LONG = sequence(7, 8), sequence(9, 10, 11, 12, 13, 14)
EXAMPLE = Encoded([LONG], [1.0, 0.0])


def test_padding_and_neighbours_change_nothing():
    alone = logits_of(model(), [Encoded([SHORT], [1.0, 0.0])])
    beside = logits_of(model(), [Encoded([LONG], [1.0, 0.0]), Encoded([SHORT], [1.0, 0.0])])
    torch.testing.assert_close(beside[1], alone[0])


@pytest.mark.parametrize("name", ["sst2", "mrpc", "stsb", "race", "wnut17"])
def test_predictions_do_not_depend_on_batch_size(name: str, monkeypatch):
    """Each of 23 examples alone, in batches of 4 with their padding, and all at once."""
    task, generator = TASKS[name], torch.Generator().manual_seed(0)
    examples = []
    for _ in range(23):
        length = int(torch.randint(2, 20, (), generator=generator))
        ids = [torch.randint(5, 60, (length,), generator=generator).tolist() for _ in range(6)]
        ids = ids[: {"sst2": 1, "mrpc": 2, "stsb": 2}.get(name, 6)]
        examples.append(task.arrange(Example(("x",) * len(ids)), ids, SPECIAL, SHAPE["n_ctx"]))
    task_model = model(task.kind, task.n_outputs).eval()
    answers = []
    for size in (1, 4, 23):
        monkeypatch.setattr(batches, "SCORED_EXAMPLES", size)
        answers.append(predict(task_model, task, examples, SPECIAL, name))
    first, *others = answers
    assert len({str(answer) for answer in first}) > 2 or name in ("sst2", "mrpc")
    for other in others:
        assert other == (pytest.approx(first, rel=1e-4) if name == "stsb" else first)


def test_last_pool_reads_the_whole_text_and_first_only_the_start():
    other = sequence(7, 9)
    examples = [Encoded([SHORT], [1.0, 0.0]), Encoded([other], [1.0, 0.0])]
    last, first = logits_of(model(), examples), logits_of(model(pool="first"), examples)
    assert (last[0] - last[1]).abs().max() > 1e-3
    torch.testing.assert_close(first[0], first[1])


def test_last_pool_is_the_state_at_e():
    task_model = model().eval()
    hidden_BTC, _ = task_model.gpt(torch.tensor([SHORT]))
    logits_BK = logits_of(task_model, [Encoded([SHORT], [1.0, 0.0])])
    torch.testing.assert_close(logits_BK, task_model.head(hidden_BTC[:, -1]))


def test_similarity_adds_the_states_of_both_orders():
    task_model = model("similarity").eval()
    forth, back = sequence(7, 8, 3, 9), sequence(9, 3, 7, 8)
    logits = logits_of(
        task_model, [Encoded([forth, back], [1.0, 0.0]), Encoded([back, forth], [1.0, 0.0])]
    )
    torch.testing.assert_close(logits[0], logits[1])
    states = [task_model.gpt(torch.tensor([ids]))[0][:, -1] for ids in (forth, back)]
    torch.testing.assert_close(logits[:1], task_model.head(states[0] + states[1]))


def test_multiple_choice_scores_each_answer_by_itself():
    answers = [sequence(5, 3, ending) for ending in (20, 21, 22, 23)]
    task_model, target = model("multiple_choice", 1), [0.0, 0.0, 1.0, 0.0]
    logits = logits_of(task_model, [Encoded(answers, target), Encoded(answers[::-1], target[::-1])])
    assert logits.shape == (2, 4) and task_model.head.out_features == TASKS["race"].n_outputs == 1
    torch.testing.assert_close(logits[0], logits[1].flip(0))
    assert logits[0].std() > 1e-3


def test_equal_answers_get_equal_logits_under_dropout():
    task_model = model("multiple_choice", 1, clf_pdrop=0.5).train()
    batch = collate(
        [Encoded([SHORT, SHORT], [1.0, 0.0])] * 8, SPECIAL, Encoded([SHORT, SHORT], [1.0, 0.0])
    )
    keys = dropout_keys(1, 0, range(8), 2)
    logits_BS = task_model(batch.ids_BST, batch.end_BS, batch.targets, None, keys)[2]
    torch.testing.assert_close(logits_BS[:, 0], logits_BS[:, 1])
    assert logits_BS[:, 0].std() > 1e-3


def test_token_classification_labels_every_marked_token():
    task_model = model("token_classification", 5).eval()
    examples = [
        Encoded([LONG], [IGNORE, 1, IGNORE, 4, 0, IGNORE, 2, IGNORE]),
        Encoded([SHORT], [IGNORE, 3, 3, IGNORE]),
    ]
    batch = collate(examples, SPECIAL, examples[0])
    loss, _, logits_BTK = task_model(batch.ids_BST, batch.end_BS, batch.targets)
    assert logits_BTK.shape == (2, 8, 5)
    log_probabilities = logits_BTK.log_softmax(-1)
    marked = [
        (b, t, k)
        for b, example in enumerate(examples)
        for t, k in enumerate(example.target)
        if k != IGNORE
    ]
    assert len(marked) == sum(map(n_targets, examples)) == 6
    torch.testing.assert_close(loss, -sum(log_probabilities[b, t, k] for b, t, k in marked))


def test_soft_targets_take_the_cross_entropy_of_a_distribution():
    examples = [Encoded([SHORT, LONG], [0.0, 0.0, 0.6, 0.4, 0.0, 0.0])]
    batch, task_model = collate(examples, SPECIAL, examples[0]), model("similarity", 6).eval()
    loss, _, logits_BK = task_model(batch.ids_BST, batch.end_BS, batch.targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits_BK, torch.tensor([examples[0].target])))


def test_lm_loss_is_over_real_tokens_only():
    task_model = model().eval()
    examples = [Encoded([LONG], [1.0, 0.0]), Encoded([SHORT], [0.0, 1.0])]
    batch = collate(examples, SPECIAL, examples[0])
    _, lm_loss, _ = task_model(batch.ids_BST, batch.end_BS, batch.targets, batch.lm_targets_BST)
    expected = 0.0
    for ids in (LONG, SHORT):
        hidden_BTC, _ = task_model.gpt(torch.tensor([ids[:-1]]))
        logits_TV = F.linear(hidden_BTC[0], task_model.gpt.wte)[:, : SHAPE["vocab_size"]]
        expected += F.cross_entropy(logits_TV, torch.tensor(ids[1:]), reduction="sum").item()
    assert lm_loss.item() == pytest.approx(expected, rel=1e-5)
    assert sum(map(n_lm_targets, examples)) == len(LONG) + len(SHORT) - 2


@pytest.mark.parametrize(
    "kind", ["classification", "similarity", "multiple_choice", "token_classification"]
)
@pytest.mark.parametrize("world_size,micro_batch", [(1, 8), (1, 1), (2, 2), (4, 4)])
def test_the_objective_does_not_depend_on_how_a_batch_is_divided(
    kind: str, world_size: int, micro_batch: int
):
    """Five examples of unlike lengths, dropout on; with 4 ranks x 4 some ranks have none and run
    the blank example."""
    generator = torch.Generator().manual_seed(0)
    examples, n_sequences = [], {"similarity": 2, "multiple_choice": 3}.get(kind, 1)
    for length in (3, 9, 5, 14, 4):
        ids = [
            torch.randint(5, 60, (length - i,), generator=generator).tolist()
            for i in range(n_sequences)
        ]
        labels = [IGNORE, *[i % 3 if i % 2 else IGNORE for i in range(length)], IGNORE]
        examples.append(
            Encoded(
                [sequence(*part) for part in ids],
                labels if kind == "token_classification" else [0.0, 1.0, 0.0],
            )
        )
    counts = Counts(sum(map(n_targets, examples)), sum(map(n_lm_targets, examples)))
    n_outputs, lengths = (
        1 if kind == "multiple_choice" else 3,
        [example.length for example in examples],
    )

    def part(task_model: TaskModel, share: list[int]) -> torch.Tensor:
        batch = collate([examples[index] for index in share], SPECIAL, examples[0], max(lengths))
        keys = dropout_keys(1, 7, [100 + index for index in share], n_sequences)
        task_loss, lm_loss, _ = task_model(
            batch.ids_BST, batch.end_BS, batch.targets, batch.lm_targets_BST, keys
        )
        return objective(task_loss, lm_loss, counts, CONFIG)

    whole_model, parted_model = (model(kind, n_outputs, clf_pdrop=0.2, pdrop=0.2) for _ in range(2))
    whole = part(whole_model, [0, 1, 2, 3, 4])
    whole.backward()
    total = 0.0
    for rank in range(world_size):
        for share in micro_batches(lengths, micro_batch, None, rank, world_size):
            loss = part(parted_model, share)
            loss.backward()
            total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-5)
    for (name, one), other in zip(
        whole_model.named_parameters(), parted_model.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_is_a_function_of_seed_step_example_and_sequence():
    """All keys differ, and the key of an example does not depend on its position."""
    keys = torch.stack(
        [dropout_keys(seed, step, [3, 0, 7], 2) for seed in (1, 2) for step in (0, 1)]
    )
    assert (
        keys.dtype == torch.int32
        and len({tuple(key) for key in keys.view(-1, 2).tolist()}) == 2 * 2 * 3 * 2
    )
    assert torch.equal(dropout_keys(1, 0, [7, 3], 2), keys[0][[2, 0]]) and dropout_keys(
        1, 0, [], 2
    ).shape == (1, 2, 2)
    task_model, batch = model(clf_pdrop=0.5).train(), collate([EXAMPLE] * 3, SPECIAL, EXAMPLE)
    logits = [
        task_model(batch.ids_BST, batch.end_BS, batch.targets, None, key_BS2[:, :1])[2]
        for key_BS2 in keys
    ]
    assert torch.equal(
        logits[0], task_model(batch.ids_BST, batch.end_BS, batch.targets, None, keys[0][:, :1])[2]
    )
    assert len({tuple(row) for logits_BK in logits for row in logits_BK.tolist()}) == 2 * 2 * 3


def test_both_notations_of_the_objective():
    """The paper's L2 + lambda L1 is lm_coef=lambda; L1 + lambda L2 is lm_coef=1,
    task_coef=lambda."""
    task_loss, lm_loss, counts = (
        torch.tensor(6.0),
        torch.tensor(40.0),
        Counts(targets=3, lm_targets=20),
    )
    assert objective(task_loss, lm_loss, counts, TaskConfig()).item() == pytest.approx(
        2.0 + 0.5 * 2.0
    )
    swapped = TaskConfig(lm_coef=1.0, task_coef=0.25)
    assert objective(task_loss, lm_loss, counts, swapped).item() == pytest.approx(2.0 + 0.25 * 2.0)
    no_auxiliary = TaskConfig(lm_coef=0.0)
    assert objective(task_loss, torch.zeros(()), counts, no_auxiliary).item() == pytest.approx(2.0)


def test_the_head_starts_as_documented():
    head = model("classification", 3).head
    torch.manual_seed(1)
    fresh = TaskModel(
        GPT(GPTConfig(**SHAPE | {"n_embd": 256})), "classification", 40, "last", 0.1
    ).head
    assert head.weight.shape == (3, 16) and fresh.bias.abs().max() == 0
    assert fresh.weight.std().item() == pytest.approx(0.02, rel=0.05)
