"""What the ranks send each other: the planner's formula held to a count, and what can hide."""

import json
import subprocess
import sys

import pytest

from gpt1_ds.engine.defaults import Buckets
from gpt1_ds.engine.traffic import (
    Link,
    Traffic,
    exposed_gathers,
    exposed_reduction,
    parts_of,
    step_traffic,
)
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.settings.sections import PRESETS
from tests.conftest import ROOT
from tests.support.cases_traffic import SHAPE

GPT1 = GPTConfig(40_005, **PRESETS["gpt1"])
SMALL_BUCKETS = {"overlap_comm": True, "reduce_scatter": False, "reduce_bucket_size": 60_000}
DIVIDED = {
    "stage": 3,
    "stage3_param_persistence_threshold": 1000,
    "stage3_prefetch_bucket_size": 10_000,
}
FAR = {**DIVIDED, "stage3_max_reuse_distance": 0}
SMALL_MEMORY = {"stage3_max_live_parameters": 120_000, "stage3_max_reuse_distance": 120_000}
CASES = [
    (8, {"stage": 0}, "fp32", 2),
    (8, {"stage": 0}, "bf16", 1),
    (8, {"stage": 1}, "bf16", 2),
    (512, {"stage": 1, **SMALL_BUCKETS}, "bf16", 2),
    (8, {"stage": 2}, "fp32", 1),
    (512, {"stage": 2, **SMALL_BUCKETS}, "bf16", 2),
    (8, {"stage": 3}, "bf16", 1),
    (8, DIVIDED, "bf16", 2),
    (512, DIVIDED, "fp32", 1),
    (8, {**FAR, **SMALL_MEMORY}, "bf16", 2),
    (8, {**FAR, "stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0}, "bf16", 1),
]


@pytest.fixture(scope="module")
def counts() -> list[tuple[Traffic, Traffic]]:
    """Counted and planned, for each case, from one process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cases_traffic"],
        input=json.dumps(CASES),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pairs = json.loads(done.stdout.splitlines()[-1])
    return [(Traffic(*counted), Traffic(*planned)) for counted, planned in pairs]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: str(CASES[case]))
def test_the_planner_counts_what_deepspeed_sends(counts, case):
    """Every byte of ZeRO-0 to 2.

    ZeRO-3 pads the parts of parameters, and lets whole ones go: its sums are within a tenth.
    """
    counted, planned = counts[case]
    if CASES[case][1]["stage"] < 3:
        assert counted == planned
    else:
        assert list(planned) == pytest.approx(list(counted), rel=0.1)


def test_passes_over_the_network():
    """ZeRO-1 and 2 send the gradients twice and the weights once, and not 1 and 1 as in the paper.

    ZeRO-2 reduces in each micro-batch, ZeRO-3 gathers in each of them too.
    """
    size = 2 * sum(part.elements for part in parts_of(GPT1))
    one, four = (
        [step_traffic(GPT1, {}, stage, "bf16", 16, count).passes(size) for stage in range(4)]
        for count in (1, 4)
    )
    assert one == pytest.approx([2, 3, 3, 2], abs=0.001)
    assert four == pytest.approx([2, 3, 9, 8], abs=0.01)
    large = GPTConfig(40_005, **PRESETS["13b"])
    size = 2 * sum(part.elements for part in parts_of(large))
    assert 2.9 < step_traffic(large, {}, 3, "bf16", 16, 1).passes(size) < 3
    assert step_traffic(GPT1, {}, 2, "bf16", 1, 4) == (0, 0, 0)


def test_what_hides_depends_on_the_buckets():
    """In one bucket of the model's size, as DeepSpeed takes by default, nothing of GPT-1 hides."""
    link = Link(seconds_per_byte=1e-9, backward_seconds=1.0)
    elements = sum(part.elements for part in parts_of(GPT1))
    whole = 2 * 2e-9 * elements

    def exposed(stage: int, size: int, overlap: bool, link: Link = link) -> float:
        return exposed_reduction(GPT1, Buckets(size, overlap), stage, "bf16", link)

    assert exposed(2, elements, overlap=True) == pytest.approx(whole)
    assert exposed(2, 25_000_000, overlap=False) == pytest.approx(whole)
    assert exposed(0, 0, overlap=False) == pytest.approx(whole)
    # The last bucket is never hidden: it has the tied embedding, 31 of 116 million elements.
    embeddings = sum(part.elements for part in parts_of(GPT1) if not part.work)
    rest = exposed(2, 25_000_000, overlap=True)
    assert 2 * 2e-9 * embeddings <= rest < 0.55 * whole
    slow = Link(seconds_per_byte=1e-6, backward_seconds=1.0)
    assert exposed(2, 25_000_000, True, slow) > 0.98 * 1000 * whole - 1.0


def test_what_zero_3_fetches_ahead():
    """The embeddings and a block come first; the rest hides behind the forward pass."""
    link = Link(seconds_per_byte=1e-9, backward_seconds=1.0)
    sizes = parts_of(GPT1)
    first = sum(p.elements for p in sizes if not p.work) + sum(p.work for p in sizes) / 12
    assert exposed_gathers(GPT1, {}, "bf16", link, 1.0) == pytest.approx(2e-9 * first)
    everything = 2e-9 * sum(part.elements for part in sizes)
    assert exposed_gathers(GPT1, {}, "bf16", link, 0.0) == pytest.approx(everything)
    far = {"stage3_max_live_parameters": 0}
    idle = Link(1e-9, 0.0)
    assert exposed_gathers(GPT1, far, "bf16", idle, 0.0) > 1.7 * everything


def test_parts_are_the_parameters():
    assert sum(part.elements for part in parts_of(SHAPE)) == 266_496
    assert [part.work > 0 for part in parts_of(SHAPE)] == [True] * 48 + [False] * 2
