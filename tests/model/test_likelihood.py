"""Log-likelihoods of many sequences against a softmax for each token."""

import numpy as np
import pytest
import torch

from gpt1_ds.model.likelihood import Query, log_likelihoods
from tests.support.cases_likelihood import queries, scored_by_this_rank, small_model


def one_at_a_time(query: Query) -> tuple[float, bool]:
    """Sum of log-probabilities of the scored tokens, and whether each is the likeliest."""
    model, (ids_T, scored) = small_model(), query
    total, greedy = 0.0, True
    for place in range(len(ids_T) - scored, len(ids_T)):
        with torch.no_grad():
            _, logits_BV = model(torch.from_numpy(ids_T[:place])[None], logits=True)
        total += logits_BV[0].double().log_softmax(-1)[ids_T[place]].item()
        greedy &= int(logits_BV[0].argmax()) == ids_T[place]
    return total, greedy


def with_likely_ends(asked: list[Query]) -> list[Query]:
    """Every second sequence ends with the tokens that the model finds likeliest."""
    model, changed = small_model(), []
    for number, (ids_T, scored) in enumerate(asked):
        ids_T = ids_T.copy()
        for place in range(len(ids_T) - scored, len(ids_T) if number % 2 else 0):
            with torch.no_grad():
                _, logits_BV = model(torch.from_numpy(ids_T[:place])[None], logits=True)
            ids_T[place] = int(logits_BV[0].argmax())
        changed.append(Query(ids_T, scored))
    return changed


@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_sums_and_likeliest_tokens_are_those_of_a_token_at_a_time(batch_tokens):
    asked = with_likely_ends(queries())
    found = log_likelihoods(small_model(), asked, "test", True, batch_tokens)
    expected = [one_at_a_time(query) for query in asked]
    np.testing.assert_allclose(found.nats_N, [nats for nats, _ in expected], rtol=1e-5, atol=1e-5)
    assert found.greedy_N.tolist() == [greedy for _, greedy in expected]
    assert 10 < found.greedy_N.sum() < 30


def test_equal_sequences_get_equal_results_in_whatever_batch():
    asked = queries()
    found = log_likelihoods(small_model(), [*asked, *asked[::-1]], "test", batch_tokens=60)
    assert found.nats_N[:40].tolist() == found.nats_N[:39:-1].tolist()
    assert not found.greedy_N.any(), "not asked for"
    ids_T = asked[5].ids_T
    one, two = log_likelihoods(small_model(), [Query(ids_T, 1), Query(ids_T, 2)], "test").nats_N
    assert one > two, "other scored tokens of the same sequence"


def test_ranks_share_the_batches_and_have_every_bit_of_one_rank(ranks):
    alone = scored_by_this_rank(60)
    assert ranks(2).run("tests.support.cases_likelihood:scored_by_this_rank", 60) == [alone] * 2


def test_a_stop_request_ends_it_without_a_result():
    asked = iter([False, False, True])
    assert (
        log_likelihoods(
            small_model(), queries(), "test", batch_tokens=60, stopping=lambda: next(asked)
        )
        is None
    )
