"""Where this process stands among its peers, and the few collectives the rest of the code uses.

The rank environment comes from the launcher (`RANK` ..), or Slurm (`SLURM_*`), or MPI (`OMPI_*`, `PMI_*`), in that
order. Every collective here must be called by all ranks.
"""

import ctypes
import errno
import json
import os
import socket
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gpt1_ds import heartbeat
from gpt1_ds.errors import ConfigError, DataError, PeerError, UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
PATIENCE_SECONDS = 20.0
MEETING_SECONDS = 40.0
PROBE_SECONDS = 5.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class RankEnv:
    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int


def rank_environment(environ: Mapping[str, str]) -> RankEnv:
    """Read the first complete set of variables; `ConfigError` for half a set or sets that contradict each other."""
    found = {}
    for names in (LAUNCHER, SLURM, OPEN_MPI, MPICH):
        if names is SLURM and "SLURM_STEP_ID" not in environ:
            continue  # a batch shell has SLURM_PROCID=0 without being a rank
        given = [name for name in names if name in environ]
        if given and len(given) < len(names):
            missing = sorted(set(names) - set(given))
            raise ConfigError(f"{missing[0]} is not set although {given[0]}={environ[given[0]]} is; start all ranks "
                              "with one launcher (deepspeed, srun or mpirun)")  # fmt: skip
        if given:
            found[names] = tuple(_integer(environ, name) for name in names)
    if not found:
        return RankEnv(0, 1, 0, "127.0.0.1", free_port())
    names = next(iter(found))
    rank, world_size, local_rank = found[names]
    for other, (_, other_size, _) in found.items():
        if other_size not in (1, world_size):
            raise ConfigError(f"{names[1]}={world_size} contradicts {other[1]}={other_size}; start the ranks with one "
                              "launcher and as many tasks as ranks")  # fmt: skip
    if not 0 <= rank < world_size:
        raise ConfigError(f"{names[0]}={rank} is not below {names[1]}={world_size}; check the launcher's variables")
    if world_size == 1 and "MASTER_PORT" not in environ:
        return RankEnv(0, 1, 0, "127.0.0.1", free_port())
    elsewhere = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", world_size)) < world_size
    if "MASTER_ADDR" not in environ and (elsewhere or int(environ.get("SLURM_STEP_NUM_NODES", "1")) > 1):
        raise ConfigError("MASTER_ADDR is not set on a job of several nodes; source slurm/env.sh, which sets it, or "
                          "give rank 0's host to mpirun: -x MASTER_ADDR=HOST")  # fmt: skip
    # Jobs that share a node must not share a port; ranks without one agree on a function of the job.
    job = int(environ.get("SLURM_JOB_ID", zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode())))
    port = _integer(environ, "MASTER_PORT") if "MASTER_PORT" in environ else 20000 + job % 20000
    return RankEnv(rank, world_size, local_rank, environ.get("MASTER_ADDR", "127.0.0.1"), port)


def start(timeout_seconds: float) -> RankEnv:
    """Join the process group (NCCL on GPUs, gloo on CPUs) and return this rank's place in it."""
    env = rank_environment(os.environ)
    os.environ.update(RANK=str(env.rank), WORLD_SIZE=str(env.world_size), LOCAL_RANK=str(env.local_rank),
                      MASTER_ADDR=env.master_addr, MASTER_PORT=str(env.master_port))  # fmt: skip
    os.umask(0o077)
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu(env.local_rank, torch.cuda.device_count()))
    elif (gpus := os.environ.get("SLURM_GPUS_ON_NODE", "0")) != "0":
        raise ConfigError(f"Slurm gave {socket.gethostname()} {gpus} GPUs, but torch sees none: look at its CUDA build "
                          "and the driver, or ask for --gpus-per-node=0 to train on CPUs")  # fmt: skip
    else:
        _prepare_cpu()
    deepspeed = import_deepspeed()
    backend, timeout = "nccl" if torch.cuda.is_available() else "gloo", timedelta(seconds=timeout_seconds)
    try:
        if not dist.is_initialized():
            with _patience(env):
                store = _private_store(env, timeout)
                _take_rank(store, env)
                dist.init_process_group(backend, store=store, rank=env.rank, world_size=env.world_size, timeout=timeout)
            if env.world_size > 1:
                heartbeat.begin(store, env.rank, env.world_size)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise PeerError(f"rank {env.rank} of {env.world_size} found no process group at MASTER_ADDR={env.master_addr} "
                        f"MASTER_PORT={env.master_port}: {error}; see that every rank is up, "
                        "or give the launcher another --master_port", of_this_rank=True) from error  # fmt: skip
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
    store = dist.TCPStore(own if own and not foreign else "127.0.0.1", env.master_port, is_master=True, timeout=timeout,
                          wait_for_workers=False, master_listen_fd=server.detach())  # fmt: skip
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
            store = heartbeat.within(seconds + PROBE_SECONDS, lambda: dist.TCPStore(
                env.master_addr, env.master_port, is_master=False, timeout=timedelta(seconds=seconds),
                wait_for_workers=False))  # fmt: skip
            if store is not None:
                store.set_timeout(timeout)
                return store
            fault = "whoever listens there is not rank 0"
        except ConnectionRefusedError as error:
            patience, fault = max(seconds, late.total_seconds()), f"{error.strerror}, rank 0 does not listen there"
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
            print(f"rank {env.rank} of {env.world_size} still waits for {whom} at MASTER_ADDR={env.master_addr} "
                  f"MASTER_PORT={env.master_port}; are both right, and is every rank up?",
                  file=sys.stderr, flush=True)  # fmt: skip

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _take_rank(store: dist.Store, env: RankEnv) -> None:
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a start
    if store.add(f"gpt1_ds/{start}/rank/{env.rank}", 1) > 1:
        raise ConfigError(f"RANK={env.rank} is taken by another process of this run; give each its own, from 0 to "
                          f"{env.world_size - 1}", of_this_rank=True)  # fmt: skip


def _own_gpu(local_rank: int, visible: int) -> int:
    """The GPU of this rank among those it sees: the only one (bound by the launcher), or that of its number."""
    if visible > 1 and local_rank >= visible:
        raise ConfigError(f"local rank {local_rank} has no GPU of its own, {visible} are visible on "
                          f"{socket.gethostname()}; start as many ranks a node as it has GPUs")  # fmt: skip
    return local_rank if visible > 1 else 0


def import_deepspeed():
    """DeepSpeed, quiet, and on a CPU without its compiled all-reduce. Takes seconds, so it is imported when needed."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    if not torch.cuda.is_available():
        # It would be compiled at the start of the process group (a minute), and training never calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def set_timeouts(timeout_seconds: float) -> None:
    """Give every process group the run's timeout: those that DeepSpeed makes itself would wait 30 minutes."""
    groups = dist.distributed_c10d._world.pg_map
    for group in list(groups):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def say(text: str) -> None:
    """Print on rank 0."""
    if is_main():
        try:
            print(text, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            pass  # the disk under the log is full: that costs a line, not the training


def barrier() -> None:
    all_sum(torch.zeros(1))


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over ranks, on its own device."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def gather_json(value: Any) -> list[Any]:
    """Every rank's plain `value`, by rank, on all ranks. JSON and not pickle: nothing that arrives is executed."""
    if world_size() == 1:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device())
    sizes = [torch.zeros(1, dtype=torch.long, device=device()) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(payload)], device=device()))
    longest = int(max(sizes))
    slots = [torch.zeros(longest, dtype=torch.uint8, device=device()) for _ in range(world_size())]
    dist.all_gather(slots, torch.nn.functional.pad(payload, (0, longest - len(payload))))
    return [json.loads(bytes(slot[: int(size)].tolist())) for slot, size in zip(slots, sizes, strict=True)]


def on_main(action: Callable[[], None]) -> None:
    """Run `action` on rank 0; what the user did wrong there is raised on every rank, so that none is left waiting."""
    fault = None
    if is_main():
        try:
            action()
        except UserError as error:
            fault = [error.exit_code, str(error)]
    if fault := gather_json(fault)[0]:
        raise next(kind for kind in (ConfigError, DataError, PeerError) if kind.exit_code == fault[0])(fault[1])


@contextmanager
def peer_faults() -> Iterator[None]:
    """A collective that fails because a peer died or hung becomes a `PeerError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "NCCL", "peer")):
            raise
        culprit = heartbeat.culprit() or "see which rank died"
        raise PeerError(f"rank {rank()} lost a peer ({text.splitlines()[0][:200]}); {culprit}; start the run again to "
                        "resume", of_this_rank=culprit.startswith("rank 0 ")) from error  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _prepare_cpu() -> None:
    """Threads by the ranks of this machine; freed activations stay in the heap, since page faults on fresh mappings
    cost a quarter of a step."""
    if "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
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


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(f"environment variable {name} is '{environ[name]}'; expected an integer") from None
