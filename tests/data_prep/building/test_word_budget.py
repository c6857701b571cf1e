"""The choice of at most so many words of training text: the first documents of a random order."""

import numpy as np
import pytest

from data_prep.building import word_budget
from data_prep.building.layout import plan_shards
from data_prep.building.word_budget import MAX_WORDS, WordBudget
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.order import mix
from tests.data_prep.building.test_layout import parts_of

SEED = 7
VALID_BELOW = 1 << 62


def two_corpora(rng: np.random.Generator) -> dict[str, list[tuple[int, int]]]:
    """(tokens, key) of the documents of each corpus; two words a token."""
    sizes = rng.integers(2, 60, 300).tolist()
    keys = rng.integers(0, 1 << 64, 300, np.uint64, endpoint=False).tolist()
    documents = list(zip(sizes, keys, strict=True))
    return {"a": documents[:120], "b": documents[120:]}


def units(corpora: dict[str, list[tuple[int, int]]]) -> list:
    """Each corpus in parts of 50 documents."""
    found = []
    for name, documents in corpora.items():
        rows = [(tokens, key, False, False) for tokens, key in documents]
        parts = [(rows[first : first + 50], []) for first in range(0, len(rows), 50)]
        found.append((name, False, parts))
    return found


@pytest.mark.parametrize("bits", [2, 16])
@pytest.mark.parametrize("words", [130, 3_000, 10_000, 10**9])
def test_the_first_documents_of_the_order_that_fit(tmp_path, monkeypatch, bits, words):
    monkeypatch.setattr(word_budget, "GROUP_BITS", bits)
    corpora = two_corpora(np.random.default_rng(bits * words))
    layout = plan_shards(parts_of(tmp_path, units(corpora)), 0.25, 10**6, WordBudget(words, SEED))
    every = [
        (int(mix(SEED, 5, key)), name, tokens, key)
        for name in corpora
        for tokens, key in corpora[name]
        if key >= VALID_BELOW
    ]
    every.sort()
    ends = np.cumsum([2 * tokens for _, _, tokens, _ in every])
    taken = every[: int((ends <= words).sum())]
    assert len(taken) < len(every) or words == 10**9
    for name, documents in corpora.items():
        record = layout.corpora[name]
        mine = [2 * tokens for _, corpus, tokens, _ in taken if corpus == name]
        assert record["text"]["train"]["words"] == sum(mine)
        valid = [2 * tokens for tokens, key in documents if key < VALID_BELOW]
        assert record["text"]["valid"]["words"] == sum(valid), "validation keeps all"
        assert record["dropped"][MAX_WORDS] == len(documents) - len(valid) - len(mine)


def test_a_number_that_no_document_fits_into_is_refused(tmp_path):
    parts = parts_of(tmp_path, units(two_corpora(np.random.default_rng(1))))
    with pytest.raises(ConfigError, match=r"--max-words 3: the first document of --seed 7 has \d+"):
        plan_shards(parts, 0.25, 10**6, WordBudget(3, SEED))
