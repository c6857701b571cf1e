"""Dropout masks, as numbers: a resumed run must draw the masks that the undisturbed one draws."""

import pytest
import torch

from gpt1_ds.model.kernels import causal_attention, dropout, keep_mask, site_keys

KEYS_B2 = torch.tensor([[1, 2], [-3, 2**31 - 1]], dtype=torch.int32)
SIX_KEYS = [
    [[792950368, 1454049460], [693434186, -227719754]],
    [[455439509, 1791314561], [356169087, -984853941]],
    [[619629023, 1626922007], [520561641, -1274485083]],
]


def bits(p: float, count: int) -> list[str]:
    """1 for each element that is kept."""
    return [
        "".join(str(-kept) for kept in row) for row in keep_mask((2, count), p, KEYS_B2).tolist()
    ]


def test_keys_of_the_places_that_drop():
    assert site_keys(KEYS_B2, 3).tolist() == SIX_KEYS
    assert site_keys(KEYS_B2, 1).tolist() == SIX_KEYS[:1]


def test_masks():
    assert bits(0.1, 40) == [
        "1111101111111111111111111111111111110111",
        "1101111111111111110111111101111011110111",
    ]
    assert bits(0.5, 40) == [
        "0111001101110100000110101011100111000010",
        "1000100011110111110010101100011010110001",
    ]
    assert bits(0.9, 40) == [
        "0100000000010000000100000000100000000000",
        "0000100000100000110010000000011000100000",
    ]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.1, [900_576, 899_460]), (0.5, [500_723, 499_383]), (0.9, [100_402, 99_686])]
)
def test_the_share_that_is_kept(p: float, kept: list[int]):
    """Of a million; the next smaller or larger bound of the draws keeps about 30 more or less."""
    assert (-keep_mask((2, 1_000_000), p, KEYS_B2)).sum(1, dtype=torch.int64).tolist() == kept


def test_a_mask_is_counted_row_by_row():
    odd = ["011100110111010", "100010001111011"]
    assert bits(0.5, 15) == odd
    assert keep_mask((2, 3, 5), 0.5, KEYS_B2).reshape(2, 15).tolist() == [
        [-int(bit) for bit in row] for row in odd
    ]
    assert keep_mask((2, 1), 0.5, KEYS_B2).tolist() == [[0], [-1]]


def test_kept_values_are_scaled():
    """Two of the eight values of each row are dropped; the others grow by 1 / (1 - 1/4)."""
    x = torch.arange(1.0, 9.0).view(1, 8).repeat(2, 1).requires_grad_()
    kept = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 1]])
    y = dropout(x, 0.25, site_keys(KEYS_B2, 1)[0])
    torch.testing.assert_close(y, x * kept * 4 / 3)
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept * 4 / 3)


def test_attention_drops_by_the_key_of_each_block_of_queries():
    """All weights are equal, and value s is s + 1: the outputs show the masks of both blocks."""
    values = torch.arange(1.0, 133.0).view(1, 1, 132, 1)
    nothing = torch.zeros(1, 1, 132, 1)
    out_T = causal_attention(nothing, nothing, values, 0.5, site_keys(KEYS_B2, 1)[0][:1])[
        0, 0, :, 0
    ]
    torch.testing.assert_close(out_T[:6], torch.tensor([2.0, 2.0, 2.0, 0.0, 4.8, 13 / 3]))
    second_block = torch.tensor([68.35658264, 63.47692108, 60.32061386, 58.22727203])
    torch.testing.assert_close(out_T[128:], second_block)


def test_probability_0_and_no_key_drop_nothing():
    values = torch.randn(1, 1, 5, 2)
    nothing = torch.zeros(1, 1, 5, 2)
    means = values.cumsum(2) / torch.arange(1.0, 6.0).view(1, 1, 5, 1)
    torch.testing.assert_close(causal_attention(nothing, nothing, values, 0.0, KEYS_B2[:1]), means)
    torch.testing.assert_close(causal_attention(nothing, nothing, values, 0.9, None), means)
    # One query at the end sees all keys; two see all but the last one each.
    torch.testing.assert_close(
        causal_attention(nothing[:, :, :1], nothing, values, 0.9, None), means[:, :, 4:]
    )
    torch.testing.assert_close(
        causal_attention(nothing[:, :, :2], nothing, values, 0.9, None), means[:, :, 3:]
    )
