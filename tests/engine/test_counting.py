"""What counts as an operator, and as a wait for the device."""

import torch

from gpt1_ds.engine.counting import counted


def test_operators_without_views_and_waits_by_their_cause():
    x = torch.arange(6.0)
    elsewhere = torch.empty(6, device="meta")
    with counted() as counts:
        y = (x.view(2, 3).t() * 2 + 1).sum()
        y.item()
        x.nonzero()
        elsewhere.copy_(x)
        x.clone().copy_(x)
    assert counts.operators == {
        **dict.fromkeys(("mul", "add", "sum", "_local_scalar_dense", "nonzero", "clone"), 1),
        "copy_": 2,
    }
    assert counts.waits == {"_local_scalar_dense": 1, "nonzero": 1, "pageable copy": 1}
    assert counts.messages == 0


def test_a_call_of_synchronize_is_a_wait_and_its_method_is_put_back():
    from deepspeed.accelerator import get_accelerator

    before = get_accelerator().synchronize
    with counted() as counts:
        get_accelerator().synchronize()
        get_accelerator().synchronize()
    assert counts.waits == {"synchronize": 2} and not counts.operators
    assert get_accelerator().synchronize == before
