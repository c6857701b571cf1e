"""The shape of GPT-1, and the sizes that follow from a shape."""

from gpt1_ds.model.gpt import GPTConfig

SHAPE = GPTConfig(vocab_size=100, n_layer=3, n_head=2, n_embd=8, n_ctx=10)


def test_the_shape_of_gpt_1():
    shape = GPTConfig(7)
    assert (shape.n_layer, shape.n_head, shape.n_embd, shape.n_ctx) == (12, 12, 768, 512)
    assert (shape.embd_pdrop, shape.attn_pdrop, shape.resid_pdrop, shape.kind) == (
        0.1,
        0.1,
        0.1,
        "transformer",
    )


def test_sizes_of_the_model():
    assert [GPTConfig(size).padded_vocab_size for size in (1, 128, 129)] == [128, 128, 256]
    # 110 rows of embeddings, and 3 blocks of 12 matrices of 8 x 8 and 13 vectors of 8.
    assert SHAPE.parameters == 110 * 8 + 3 * (12 * 64 + 13 * 8)
    assert SHAPE.flops_per_token == 6 * (3 * 12 * 64 + 100 * 8) + 12 * 3 * 10 * 8
    assert GPTConfig(40_478).parameters == 116_534_784
    lstm = GPTConfig(vocab_size=100, n_embd=9, n_ctx=10, kind="lstm")
    assert lstm.lstm_units == 24
    assert lstm.parameters == 110 * 9 + 24 * (4 * 24 + 5 * 9 + 8) + 9
    assert lstm.flops_per_token == 6 * (lstm.parameters - 10 * 9)
