"""Bytes that sum, dropout and LayerNorm move in one compiled graph, forward and backward.

    python benchmarks/dropout_bytes.py

Counted by torch's compiler for the CPU, of bf16 states (4, 512, 768): without dropout, with torch's
own, and with a mask that is a function of the window's key and the element's place, as in
`gpt1_ds/model/kernels.py`. About half a minute.
"""

import argparse
import os

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what is cached is not counted

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import metrics

SHAPE = 4, 512, 768
P = 0.1


def keyed(x: Tensor, keys_B2: Tensor) -> Tensor:
    places = torch.arange(x[0].numel(), dtype=torch.int32)
    hash_Bn = places ^ keys_B2[:, :1]
    hash_Bn = (hash_Bn ^ (hash_Bn >> 15)) * -2048144789 + keys_B2[:, 1:]
    hash_Bn = (hash_Bn ^ (hash_Bn >> 13)) * -1028477387
    kept = (hash_Bn.view(x.shape) & 0xFFFF) >= int(P * 65536)
    return torch.where(kept, x / (1 - P), torch.zeros((), dtype=x.dtype))


WAYS = {
    "no dropout": lambda x, keys_B2: x,
    "torch's": lambda x, keys_B2: F.dropout(x, P),
    "keyed": keyed,
}


def count(way: str) -> tuple[float, float, float]:
    """Bytes an element, forward and both; the share of elements that are kept."""
    torch._dynamo.reset()
    metrics.reset()

    def place(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor, keys_B2: Tensor) -> Tensor:
        return F.layer_norm(x + WAYS[way](y, keys_B2), SHAPE[-1:], gain, bias)

    keys_B2 = torch.randint(-(2**31), 2**31 - 1, (SHAPE[0], 2)).int()
    x, y = (torch.randn(SHAPE, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    gain, bias = (torch.ones(SHAPE[-1], dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    out = torch.compile(place)(x, y, gain, bias, keys_B2)
    forward = metrics.num_bytes_accessed
    out.backward(torch.randn_like(out))
    kept = (y.grad != 0).float().mean().item()
    return forward / x.numel(), metrics.num_bytes_accessed / x.numel(), kept


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.manual_seed(0)
    torch._logging.set_logs(inductor_metrics=True)  # else they are not counted
    for way in WAYS:
        forward, whole, kept = count(way)
        print(
            f"{way:10}  {whole:.2f} bytes an element, {forward:.2f} of them forward; "
            f"{kept:.1%} of the gradients are not 0",
            flush=True,
        )


if __name__ == "__main__":
    main()
