"""What DeepSpeed gets where a resolved JSON leaves it open: buckets, overlap, its timer.

The choices follow from the model's size, the device and the number of ranks. They are not written
into the JSON of a run, which its checkpoints repeat. `docs/deepspeed.md` explains them.
"""

from typing import NamedTuple

from gpt1_ds.base.protocols import Json

LARGEST_BUCKET = 500_000_000
"""Elements; DeepSpeed's own default."""
SMALLEST_BUCKET = 25_000_000
SHARE_OF_MODEL = 16
"""A bucket on a GPU is the model divided by this number, between the two sizes above.

The reduction of a bucket overlaps with the backward pass of the rest. So a bucket must be much
smaller than the model, and large enough that its message is not bound by latency.
"""


class Buckets(NamedTuple):
    """How the gradients of a model are reduced."""

    elements: int
    """Of a bucket; 0 without ZeRO."""
    overlap: bool
    """Whether they are reduced while the backward pass goes on. There are two buckets then."""


def buckets(ds: Json, parameters: float, on_gpu: bool) -> Buckets:
    """The buckets of a model of so many `parameters`, under a resolved JSON."""
    zero = ds.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if not stage:
        return Buckets(0, False)
    overlaps = zero.get("overlap_comm")
    if overlaps is None:
        overlaps = stage == 3 or (on_gpu and not _is_left_alone(ds))
    size = LARGEST_BUCKET
    if on_gpu and overlaps:
        size = min(LARGEST_BUCKET, max(SMALLEST_BUCKET, int(parameters) // SHARE_OF_MODEL))
    # A bucket of the model's size is never full before all gradients are in it.
    return Buckets(min(zero.get("reduce_bucket_size", size), int(parameters)), overlaps)


def with_defaults(ds: Json, parameters: int, on_gpu: bool) -> Json:
    """`ds` as DeepSpeed gets it. What it says itself stays.

    timers                the throughput timer is off: it waits for the device twice a step
    reduce_bucket_size    see `buckets`; DeepSpeed allocates the whole bucket, one or two times
    overlap_comm          see `buckets`
    reduce_scatter        false: DeepSpeed cuts each bucket by the rank that a part belongs to, in
                          Python, and then reduces the whole all the same
    prescale_gradients    true with it: gradients are divided before they are added up, as with
                          reduce_scatter
    """
    given = {"timers": {"throughput": {"enabled": False}}, **ds}
    chosen = buckets(ds, parameters, on_gpu)
    if not chosen.elements:
        return given
    zero = {**ds["zero_optimization"], "reduce_bucket_size": chosen.elements}
    stage = zero["stage"]
    if stage < 3:
        zero["overlap_comm"] = chosen.overlap
    open_keys = {"reduce_scatter", "use_multi_rank_bucket_allreduce"}.isdisjoint(zero)
    scaled = {"prescale_gradients", "gradient_predivide_factor"} & ds.keys()
    if stage < 3 and open_keys and not scaled and not _is_left_alone(ds):
        zero["reduce_scatter"] = False
        given["prescale_gradients"] = True
    return {**given, "zero_optimization": zero}


def _is_left_alone(ds: Json) -> bool:
    """Offload, ZenFlow and Muon read the parts that DeepSpeed cuts a bucket into."""
    zero = ds.get("zero_optimization", {})
    offloads = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    kind = ds.get("optimizer", {}).get("type") or ""
    older = bool(zero.get("cpu_offload") or zero.get("zenflow"))
    return offloads or older or kind.lower() == "muon"
