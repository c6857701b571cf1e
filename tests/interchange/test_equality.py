"""The model gives the same numbers as `transformers`' OpenAIGPTLMHeadModel.

Tolerances: float32 1e-5 relative to the largest value of each tensor; bfloat16 both models rounded
alike.
"""

import pytest
import torch
import torch.nn.functional as F

from gpt1_ds.model.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=1000, n_layer=3, n_head=4, n_embd=64, n_ctx=512)
GPT1 = GPTConfig(vocab_size=40_478)


def reference(config: GPTConfig):
    """The other implementation at the same shape, its dropout off."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    shape = {
        "n_positions": config.n_ctx,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
    }
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=config.vocab_size, **shape)).eval()


def pairs(ours: GPT, theirs) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter, bool]]:
    """Parameter of ours, of theirs, and whether theirs is transposed (their Conv1D)."""
    named, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    names = {"wte": "transformer.tokens_embed.weight", "wpe": "transformer.positions_embed.weight"}
    names |= {
        name: "transformer." + name.replace("blocks.", "h.")
        for name in named
        if name.startswith("blocks.")
    }
    assert set(names) == set(named) and {*names.values()} == set(other)
    return {
        name: (named[name], other[names[name]], "c_" in name and named[name].ndim == 2)
        for name in named
    }


def copy_weights(ours: GPT, theirs) -> None:
    with torch.no_grad():
        for mine, other, transposed in pairs(ours, theirs).values():
            other.copy_(mine.T if transposed else mine[: len(other)])


@pytest.fixture(scope="module", params=["random", "trained"])
def models(request):
    torch.manual_seed(0)
    ours = GPT(CONFIG)
    if request.param == "trained":
        optimizer = torch.optim.AdamW(ours.parameters(), lr=2e-3)
        text = torch.randint(0, 1000, (4, 1)) + torch.arange(65) * torch.randint(1, 9, (4, 1))
        for _ in range(60):
            optimizer.zero_grad()
            loss = ours(text[:, :-1] % 1000, text[:, 1:] % 1000)[1].mean()
            loss.backward()
            optimizer.step()
        assert loss < 3  # it has learnt something: of 1,000 entries, 6.9 is chance
    theirs = reference(CONFIG)
    copy_weights(ours.eval(), theirs)
    return ours, theirs


def close(mine: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    difference, scale = (mine - other).abs().max().item(), other.abs().max().item()
    assert difference <= tolerance * scale + 1e-12, f"{difference:.2e} of {scale:.2e}"


def compare(ours: GPT, theirs, ids_BT: torch.Tensor, tolerance: float) -> None:
    """Last logits, the loss of every token, and the gradient of every parameter."""
    logits_BTV = theirs(ids_BT).logits
    close(ours(ids_BT, logits=True)[1], logits_BTV[:, -1].float(), tolerance)
    targets_BT = ids_BT.roll(-1, 1)
    nll_BT = ours(ids_BT, targets_BT)[1]
    their_nll_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    close(nll_BT.detach(), their_nll_BT.detach(), tolerance)
    loss, expected = nll_BT.mean(), their_nll_BT.mean()
    ours.zero_grad(), theirs.zero_grad()
    loss.backward(), expected.backward()
    for mine, other, transposed in pairs(ours, theirs).values():
        close(
            (mine.grad.T if transposed else mine.grad[: len(other)]).float(),
            other.grad.float(),
            tolerance,
        )


@pytest.mark.parametrize(
    "batch, length", [(1, 1), (8, 2), (3, 17), (2, 127), (2, 129), (8, 64), (1, 511), (2, 512)]
)
def test_logits_loss_and_every_gradient_equal_in_float32(models, batch, length):
    torch.manual_seed(length)
    compare(*models, torch.randint(0, 1000, (batch, length)), 1e-5)


def test_bfloat16_differs_by_no_more_than_its_own_rounding(models):
    """Each is as far from the float32 numbers as the other: within twice the reference's own
    distance."""
    ours, theirs = models
    ids_BT = torch.randint(0, 1000, (4, 256))
    exact = theirs(ids_BT).logits[:, -1]
    rounded, twin = GPT(CONFIG).eval(), reference(CONFIG)
    rounded.load_state_dict(ours.state_dict()), twin.load_state_dict(theirs.state_dict())
    mine = rounded.bfloat16()(ids_BT, logits=True)[1] - exact
    other = twin.bfloat16()(ids_BT).logits[:, -1].float() - exact
    assert mine.square().mean().sqrt() <= 2 * other.square().mean().sqrt()
    assert mine.square().mean().sqrt() < 0.02 * exact.std()


def test_the_released_shape_has_the_released_number_of_parameters():
    torch.manual_seed(0)
    ours, theirs = GPT(GPT1).eval(), reference(GPT1)
    assert (
        sum(parameter.numel() for parameter in theirs.parameters())
        == GPT1.parameters
        == 116_534_784
    )
    copy_weights(ours, theirs)
    ids_BT = torch.randint(0, 40_478, (1, 32))
    with torch.no_grad():
        close(ours(ids_BT, logits=True)[1], theirs(ids_BT).logits[:, -1], 1e-5)
