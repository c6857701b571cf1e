"""Checks of the arithmetic: the model and its kernels on this device against the CPU.

Each returns `passed`, and in `found` what was measured. On a machine without a GPU they compare the
CPU with itself, which tests the checks.
"""

import math
import re

import torch
from torch import Tensor
from torch.profiler import profile

from gpt1_ds.distributed import collectives, rendezvous
from gpt1_ds.engine import peak
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.kernels import causal_attention, dropout

RATE = 0.1
LOSS_BOUND, BF16_LOSS_BOUND = 1e-3, 5e-3
BF16_GRADIENT_BOUND, BF16_PARAMETER_BOUND = 0.05, 0.2
"""Of all gradients together, and of one parameter's: sums in bfloat16 cost biases the most."""
SIGMAS = 5.0
"""A measured rate may be so many standard deviations off."""
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
SDPA = re.compile(r"aten::_scaled_dot_product_(\w+?)(_attention\w*)?$|aten::_(\w*flash\w*)$")


def device() -> dict:
    """Names and versions, and the measured peak beside that of the data sheet."""
    deepspeed = import_deepspeed()
    found = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "deepspeed": deepspeed.__version__,
    }
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if not torch.cuda.is_available():
        return {"passed": True, "found": f"CPU, {text}"}
    name = torch.cuda.get_device_name()
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
    return {"passed": True, "found": f"{name}, {gigabytes:.0f} GB, {text}"}


def peaks() -> dict:
    """FLOP/s of large products of random numbers, beside the peak that MFU is a share of."""
    if not torch.cuda.is_available():
        return {"untried": "the peak of a CPU is itself measured"}
    parts, passed = [], True
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        measured = _product_flops(dtype)
        known = peak.peak_flops(precision)
        parts.append(
            f"{precision} {measured / 1e12:,.1f} of {known / 1e12:,.1f} TFLOP/s "
            f"({measured / known:.0%})"
        )
        passed = passed and 0.4 < measured / known < 1.1
    return {"passed": passed, "found": ", ".join(parts)}


def _product_flops(dtype: torch.dtype) -> float:
    size, rounds = 8192, 8
    a = torch.randn(size, size, device="cuda").to(dtype)
    moments = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    a @ a
    moments[0].record()
    for _ in range(rounds):
        a @ a
    moments[1].record()
    torch.cuda.synchronize()
    return 2 * size**3 * rounds / (moments[0].elapsed_time(moments[1]) / 1000)


def float32_losses() -> dict:
    """Losses of six steps with AdamW, without dropout, on the device and on the CPU."""
    shape = GPTConfig(1000, n_layer=2, n_head=4, n_embd=128, n_ctx=64, **NO_DROPOUT)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 1000, (4, 65), generator=generator) for _ in range(6)]
    sides = []
    for place in (torch.device("cpu"), collectives.device()):
        torch.manual_seed(0)
        model, losses = GPT(shape).to(place), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for ids_BT in (ids_BT.to(place) for ids_BT in batches):
            loss = model(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        sides.append(losses)
    difference = max(abs(ours - theirs) for ours, theirs in zip(*sides, strict=True))
    found = f"losses of 6 steps within {difference:.1e} of the CPU's"
    return {"passed": difference < LOSS_BOUND, "found": found, "difference": difference}


def bf16_gradients() -> dict:
    """Loss and gradients in bfloat16 against float32 on the CPU, from the same weights.

    On a GPU 4,608 rows: more than one chunk of the head, and 512 tokens: the attention of training.
    A CPU may lack bfloat16 instructions and then needs a minute for so many.
    """
    windows = 9 if torch.cuda.is_available() else 1
    shape = GPTConfig(5000, n_layer=2, n_head=4, n_embd=256, n_ctx=512, **NO_DROPOUT)
    torch.manual_seed(0)
    reference = GPT(shape).bfloat16().float()
    model = GPT(shape).to(collectives.device(), torch.bfloat16)
    model.load_state_dict(reference.state_dict())
    ids_BT = torch.randint(0, 5000, (windows, 513))
    losses, gradients = [], []
    for part in (reference, model):
        ids = ids_BT.to(next(part.parameters()).device)
        loss = part(ids[:, :-1], ids[:, 1:])[1].mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.float().cpu() for p in part.parameters()])
    difference = abs(losses[0] - losses[1])
    pairs = list(zip(*gradients, strict=True))
    errors = [_relative(ours, theirs) for theirs, ours in pairs]
    names = [name for name, _ in reference.named_parameters()]
    worst = max(errors)
    theirs, ours = (torch.cat([part.flatten() for part in side]) for side in gradients)
    overall = _relative(ours, theirs)
    found = (
        f"loss {losses[1]:.4f} and {losses[0]:.4f} on the CPU in float32, gradients within "
        f"{overall:.1%} of their norm, {worst:.1%} for {names[errors.index(worst)]}"
    )
    passed = difference < BF16_LOSS_BOUND and overall < BF16_GRADIENT_BOUND
    return {"passed": passed and worst < BF16_PARAMETER_BOUND, "found": found, "error": overall}


def _relative(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def residual_dropout() -> dict:
    """The measured rate of the dropout on states, bfloat16."""
    place = collectives.device()
    x_BTC = torch.ones(8, 512, 768, dtype=torch.bfloat16, device=place)
    y_BTC = dropout(x_BTC, RATE, _keys(8))
    dropped = int((y_BTC == 0).sum())
    result = _rate(dropped, y_BTC.numel())
    scaled = y_BTC[y_BTC != 0].float().mean().item()
    result["passed"] = result["passed"] and abs(scaled * (1 - RATE) - 1) < 0.005
    return result


def attention_dropout() -> dict:
    """The measured rate of the dropout on attention's weights, by the kernel that training takes.

    All scores are equal, and the values are one-hot for 64 keys at a time: so the output is the
    weights of these keys after dropout. Their sum over queries must be the gradient of the values,
    or backward has another mask than forward.
    """
    rendezvous.join_process_group(60.0)  # chooses the attention kernels, as a run does
    place = collectives.device()
    B, H, T, D = (4, 12, 512, 64) if torch.cuda.is_available() else (1, 2, 512, 64)
    q_BHTD = torch.zeros(B, H, T, D, dtype=torch.bfloat16, device=place, requires_grad=True)
    dropped, seen, apart = 0, 0, 0.0
    for first in range(0, T, D):
        v_BHTD = torch.zeros_like(q_BHTD)
        v_BHTD[:, :, first : first + D] = torch.eye(D, device=place)
        v_BHTD.requires_grad_()
        out_BHTD = causal_attention(q_BHTD, q_BHTD.detach(), v_BHTD, RATE, _keys(B))
        out_BHTD.sum().backward()
        visible_TD = torch.ones(T, D, device=place).tril(-first) > 0
        dropped += int((out_BHTD.detach()[:, :, visible_TD] == 0).sum())
        seen += B * H * int(visible_TD.sum())
        sums_BHD = out_BHTD.detach().float().sum(2)
        backward_BHD = v_BHTD.grad[:, :, first : first + D].float().sum(3) / D
        apart = max(apart, (sums_BHD - backward_BHD).abs().max().item() / sums_BHD.max().item())
    result = _rate(dropped, seen)
    result["passed"] = result["passed"] and apart < 0.05
    result["found"] += f"; masks of forward and backward agree within {apart:.1%}"
    return result


def attention_kernel() -> dict:
    """The name of the attention kernel that training takes; cuDNN's rounds the dropout rate."""
    rendezvous.join_process_group(60.0)
    place = collectives.device()
    q_BHTD = torch.randn(2, 12, 512, 64, device=place).bfloat16().requires_grad_()
    with profile() as profiler:
        causal_attention(q_BHTD, q_BHTD, q_BHTD, RATE, _keys(2)).sum().backward()
    names = sorted({event.key for event in profiler.key_averages()})
    taken = [name for name in names if "scaled_dot_product" in name or "BlockAttention" in name]
    return {"passed": not any("cudnn" in name for name in taken), "found": ", ".join(taken)}


def head_and_loss() -> dict:
    """The loss's kernel on this device against plain torch, on the same bfloat16 logits."""
    if not torch.cuda.is_available():
        return {"untried": "the kernel is for GPUs"}
    try:
        from gpt1_ds.model import loss
    except ImportError:
        return {"untried": "not in this version"}
    ours = loss.loss_for("cuda")
    logits_nV = torch.randn(4096, 40_576, device="cuda").bfloat16()
    targets_n = torch.randint(0, 40_478, (4096,), device="cuda")
    sides, seconds = [], []
    for write in (loss.cross_entropy, ours.write):
        for _ in range(2):  # the first call compiles
            gradient_nV, nll_n = logits_nV.clone(), torch.zeros(4096, device="cuda")
            moments = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            moments[0].record()
            write(gradient_nV, targets_n, nll_n, 40_478, True)
            moments[1].record()
        torch.cuda.synchronize()
        sides.append((nll_n, gradient_nV.float()))
        seconds.append(moments[0].elapsed_time(moments[1]))
    of_loss, of_gradient = (
        (theirs - own).abs().max().item() for theirs, own in zip(*sides, strict=True)
    )
    plain, own = seconds
    in_use = ours.write is not loss.cross_entropy
    found = (
        f"{'Triton kernel' if in_use else 'plain torch, not the Triton kernel'}: loss within "
        f"{of_loss:.1e}, gradient within {of_gradient:.1e}; {own:.2f} ms, plain torch {plain:.2f}"
    )
    return {"passed": in_use and of_loss < 1e-4 and of_gradient < 4e-3, "found": found}


def _keys(sequences: int) -> Tensor:
    keys_B2 = torch.empty(sequences, 2, dtype=torch.int32).random_(-(2**31), None)
    return keys_B2.to(collectives.device())


def _rate(dropped: int, of: int) -> dict:
    rate, sigma = dropped / of, math.sqrt(RATE * (1 - RATE) / of)
    found = f"{rate:.5f} measured, {RATE} asked for ({of:,} elements)"
    return {"passed": abs(rate - RATE) < SIGMAS * sigma + 2**-15, "found": found, "rate": rate}
