"""Ranks find each other and form the process group."""

import ctypes
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from gpt1_ds.base.errors import ConfigError, PeerError
from gpt1_ds.distributed import heartbeat
from gpt1_ds.distributed.environment import RankEnv, rank_environment

PATIENCE_SECONDS = 20.0
MEETING_SECONDS = 40.0
PROBE_SECONDS = 5.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def join_process_group(timeout_seconds: float) -> RankEnv:
    """Join the process group (NCCL on GPUs, gloo on CPUs) and return this rank's place in it."""
    env = rank_environment(os.environ)
    os.environ.update(
        RANK=str(env.rank),
        WORLD_SIZE=str(env.world_size),
        LOCAL_RANK=str(env.local_rank),
        MASTER_ADDR=env.master_addr,
        MASTER_PORT=str(env.master_port),
    )
    os.umask(0o077)
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu(env.local_rank, torch.cuda.device_count()))
    elif (gpus := os.environ.get("SLURM_GPUS_ON_NODE", "0")) != "0":
        raise ConfigError(
            f"Slurm gave {socket.gethostname()} {gpus} GPUs, but torch sees none: look at its CUDA build "
            "and the driver, or ask for --gpus-per-node=0 to train on CPUs"
        )
    else:
        _prepare_cpu()
    backend, timeout = (
        "nccl" if torch.cuda.is_available() else "gloo",
        timedelta(seconds=timeout_seconds),
    )
    try:
        if not dist.is_initialized():
            with _patience(env):
                store = _private_store(env, timeout)
                _take_rank(store, env)
                dist.init_process_group(
                    backend, store=store, rank=env.rank, world_size=env.world_size, timeout=timeout
                )
            if env.world_size > 1:
                heartbeat.start_heartbeat(store, env.rank, env.world_size)
    except (RuntimeError, ValueError, OSError) as error:
        raise PeerError(
            f"rank {env.rank} of {env.world_size} found no process group at MASTER_ADDR={env.master_addr} "
            f"MASTER_PORT={env.master_port}: {error}; see that every rank is up, "
            "or give the launcher another --master_port",
            of_this_rank=True,
        ) from error
    return env


def _private_store(env: RankEnv, timeout: timedelta) -> dist.Store:
    """The ranks' meeting place, open on MASTER_ADDR alone: neither it nor gloo knows a password, and torch's own
    would listen on every interface; as it does where a name means rank 0's loopback, or the address is not its own (a
    service, NAT).
    """
    address = socket.gethostbyname(env.master_addr)
    alone = env.master_addr == "localhost" or env.master_addr.startswith("127.")
    if alone:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if env.rank > 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _reach(env, timeout, timeout)
    foreign = False
    try:
        own = address if alone or not address.startswith("127.") else ""
        server = socket.create_server((own, env.master_port), backlog=4096)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        server, foreign = socket.create_server(("", env.master_port), backlog=4096), True
    store = dist.TCPStore(
        own if own and not foreign else "127.0.0.1",
        env.master_port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=server.detach(),
    )
    if foreign:
        _reach(env, timeout, timedelta(0))
    return store


def _reach(env: RankEnv, timeout: timedelta, late: timedelta) -> dist.Store:
    """The store at MASTER_ADDR. `OSError` once nothing has answered there for `MEETING_SECONDS`.

    A machine that is up refuses at once what nobody listens for yet: a refusal is waited out for longer, `late`, since
    rank 0 may be minutes behind.
    """
    began, seconds = time.monotonic(), min(MEETING_SECONDS, timeout.total_seconds())
    while True:
        patience = seconds
        try:
            socket.create_connection((env.master_addr, env.master_port), PROBE_SECONDS).close()
            # Torch's own bound, which it may overrun, is not kept where somebody answers nothing at all.
            store = heartbeat.call_within(
                seconds + PROBE_SECONDS,
                lambda: dist.TCPStore(
                    env.master_addr,
                    env.master_port,
                    is_master=False,
                    timeout=timedelta(seconds=seconds),
                    wait_for_workers=False,
                ),
            )
            if store is not None:
                store.set_timeout(timeout)
                return store
            fault = "whoever listens there is not rank 0"
        except ConnectionRefusedError as error:
            patience, fault = (
                max(seconds, late.total_seconds()),
                f"{error.strerror}, rank 0 does not listen there",
            )
        except OSError as error:
            fault = f"{error.strerror or error}, no machine answers there"
        if (waited := time.monotonic() - began) > patience:
            raise OSError(f"{fault} ({waited:.0f} s)")
        time.sleep(0.2)


@contextmanager
def _patience(env: RankEnv) -> Iterator[None]:
    """Say every `PATIENCE_SECONDS` for whom a rank waits: a wrong address looks like a peer that is late."""
    met, whom = threading.Event(), "all other ranks" if env.rank == 0 else "rank 0"

    def tell() -> None:
        while not met.wait(PATIENCE_SECONDS):
            print(
                f"rank {env.rank} of {env.world_size} still waits for {whom} at MASTER_ADDR={env.master_addr} "
                f"MASTER_PORT={env.master_port}; are both right, and is every rank up?",
                file=sys.stderr,
                flush=True,
            )

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _take_rank(store: dist.Store, env: RankEnv) -> None:
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a start
    if store.add(f"gpt1_ds/{start}/rank/{env.rank}", 1) > 1:
        raise ConfigError(
            f"RANK={env.rank} is taken by another process of this run; give each its own, from 0 to "
            f"{env.world_size - 1}",
            of_this_rank=True,
        )


def _own_gpu(local_rank: int, visible: int) -> int:
    """The GPU of this rank among those it sees: the only one (bound by the launcher), or that of its number."""
    if visible > 1 and local_rank >= visible:
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own, {visible} are visible on "
            f"{socket.gethostname()}; start as many ranks a node as it has GPUs"
        )
    return local_rank if visible > 1 else 0


def _prepare_cpu() -> None:
    """Threads by the ranks of this machine; freed activations stay in the heap, since page faults on fresh mappings
    cost a quarter of a step."""
    if "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(
            os.environ.get(
                "LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
            )
        )
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    _libc("mallopt", M_MMAP_THRESHOLD, 1 << 30)
    _libc("mallopt", M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Return to the system what `_prepare_cpu` keeps: batches of many lengths leave a heap of holes."""
    if not torch.cuda.is_available():
        _libc("malloc_trim", 0)


def _libc(function: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong
