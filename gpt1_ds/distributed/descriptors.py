"""Room for the connections of thousands of ranks, and for shards: the limit of open files.

Rank 0 holds the connections of all ranks to the store. With gloo each rank is also connected to
every other one. Many systems give a process 1,024 files at first, and more only if it asks.
"""

import os
import resource

from gpt1_ds.base.errors import ConfigError

STORE_CONNECTIONS = 2
"""Connections of a rank to the store: one of the process group, one of the heartbeat."""
GLOO_MESHES = 2
"""Process groups of all ranks: the first one, and DeepSpeed's."""
SPARE = 256
"""Files that are asked for beyond the connections, for shards, logs and checkpoints."""


def make_room(rank: int, world_size: int, on_gpu: bool) -> None:
    """Raise the limit of open files for the connections of this rank, if it is too low.

    ConfigError if they do not fit into the hard limit, which a process cannot raise.
    """
    if world_size == 1:
        return
    needed = _open_files() + connections(rank, world_size, on_gpu)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed + SPARE:
        return
    wanted = needed + SPARE
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    if most < needed:
        raise ConfigError(
            f"{world_size:,} ranks need {needed:,} open files in rank {rank}, whose limit is "
            f"{hard:,}; raise the hard limit where the ranks are started (as root: ulimit -n "
            f"{wanted}; of a service: LimitNOFILE={wanted}; of a container: --ulimit "
            f"nofile={wanted}), or start fewer ranks"
        )


def room_for(files: int) -> int:
    """How many of `files` more files fit beside `SPARE`, after the limit is raised for them."""
    before = _open_files() + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return files
    if soft < before + files:
        wanted = before + files
        soft = max(soft, wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(0, min(files, soft - before))


def connections(rank: int, world_size: int, on_gpu: bool) -> int:
    """How many connections to other ranks this rank will have."""
    # torchrun's own process holds the store, not rank 0.
    of_others = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    clients = world_size if rank == 0 and not of_others else 1
    gloo = 0 if on_gpu else GLOO_MESHES * (world_size - 1)
    return STORE_CONNECTIONS * clients + gloo


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return SPARE
