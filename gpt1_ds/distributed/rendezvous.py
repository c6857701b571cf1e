"""The ranks connect to MASTER_ADDR:MASTER_PORT and form the process group.

By default torch's store listens on every network interface, and neither the store nor gloo asks for
a password. So rank 0 opens the store on MASTER_ADDR only. Every wait has a time limit and prints
what it waits for, because a wrong address looks the same as a late rank.
"""

import ctypes
import errno
import ipaddress
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

from gpt1_ds.base.errors import ConfigError, PeerError, UserError, as_user_error
from gpt1_ds.base.protocols import Json
from gpt1_ds.distributed import heartbeat, nccl
from gpt1_ds.distributed.agreement import PATIENCE_SECONDS, Exchange
from gpt1_ds.distributed.descriptors import make_room
from gpt1_ds.distributed.environment import RankEnv, rank_environment, ranks_here, start_number

NOTICE_SECONDS = 20.0
"""Time between two lines about a rank that still waits."""
ANSWER_SECONDS = 40.0
"""Longest wait for an answer from MASTER_ADDR."""
PROBE_SECONDS = 5.0
RETRY_SECONDS = 0.2
PENDING_CONNECTIONS = 4096
DEFAULT_TIMEOUT_SECONDS = 600.0
"""Longest wait for the other ranks, until the settings say how long it is."""
# Parameters of mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_HEAP_BLOCK = 1 << 30


class Meeting:
    """The ranks of one start, on their way from the settings to the process group."""

    def __init__(self) -> None:
        self.timeout_seconds = DEFAULT_TIMEOUT_SECONDS
        self.facts: Json = {}
        """What the ranks compare when they join; `compare` does so earlier."""
        self._exchange: Exchange | None = None
        self._store: dist.TCPStore | None = None
        self._settled = False
        """Whether the error that ends this start needs no further telling."""

    def compare(self, facts: Json, timeout_seconds: float) -> None:
        """Compare `facts` (plain JSON data by name) with those of the other ranks.

        ConfigError, on all ranks, if they differ. `timeout_seconds` is the longest wait for a rank,
        here and when they join.
        """
        self.timeout_seconds = timeout_seconds
        env = rank_environment(os.environ)
        if env.world_size > 1 and not dist.is_initialized():
            self._agree(env, {"WORLD_SIZE": env.world_size, **facts})

    def tell(self, error: UserError) -> None:
        """Tell the other ranks of an error of this rank, so that none of them waits.

        Raises the error that all ranks raise. It returns if they cannot be told: then this rank
        alone prints its line.
        """
        if self._settled:
            return
        env = rank_environment(os.environ)
        if env.world_size == 1 or dist.is_initialized():
            return
        if self._exchange is None:
            self.timeout_seconds = PATIENCE_SECONDS
        try:
            self._agree(env, {}, error)
        except PeerError as unreached:
            if unreached.of_this_rank:
                error.of_this_rank = True
                return
            raise

    def _agree(self, env: RankEnv, facts: Json, error: UserError | None = None) -> None:
        with _reached(env):
            try:
                store = self._open(env)
                if self._exchange is None:
                    self._exchange = Exchange(store, env, self.timeout_seconds)
                self._exchange.agree(facts, error)
            except UserError:
                self._settled = True
                raise

    def _open(self, env: RankEnv) -> dist.TCPStore:
        if self._store is None:
            os.environ.update(
                RANK=str(env.rank),
                WORLD_SIZE=str(env.world_size),
                LOCAL_RANK=str(env.local_rank),
                MASTER_ADDR=env.master_addr,
                MASTER_PORT=str(env.master_port),
            )
            self._store = _open_store(env, timedelta(seconds=self.timeout_seconds))
            _take_rank(self._store, env)
        return self._store

    def join(self, backend: str) -> RankEnv:
        """Form the process group, once all ranks have come so far."""
        env = rank_environment(os.environ)
        os.umask(0o077)
        if dist.is_initialized():
            return env
        if env.world_size > 1:
            self._agree(env, self.facts)
        patience = None
        if nccl.aborts(backend):
            nccl.prepare(self.timeout_seconds)
            patience = self.timeout_seconds
        timeout = timedelta(seconds=nccl.group_timeout(backend, self.timeout_seconds))
        with _reached(env):
            store = self._open(env)
            # Else gloo would look for the ranks of the start before at their old addresses.
            own = dist.PrefixStore(f"gpt1_ds/{start_number(os.environ)}", store)
            dist.init_process_group(
                backend, store=own, rank=env.rank, world_size=env.world_size, timeout=timeout
            )
            if env.world_size > 1:
                heartbeat.start_heartbeat(store, env.rank, env.world_size, patience)
        return env


@contextmanager
def joining() -> Iterator[Meeting]:
    """The part of a start in which a rank reads its settings and data; then the ranks join.

    Nobody else may notice that one rank has an error here. So it is told to the others, and all
    ranks raise it. PeerError if the ranks do not find each other.
    """
    meeting = Meeting()
    try:
        env = rank_environment(os.environ)
        make_room(env.rank, env.world_size, torch.cuda.is_available())
        yield meeting
        backend = _prepare_device(rank_environment(os.environ))
    except Exception as error:
        told = as_user_error(error)
        if told is None:
            raise
        meeting.tell(told)
        raise told from error
    meeting.join(backend)


def join_process_group(timeout_seconds: float) -> RankEnv:
    """Join the process group (NCCL on GPUs, gloo on CPUs); returns the rank of this process."""
    with joining() as meeting:
        meeting.timeout_seconds = timeout_seconds
    return rank_environment(os.environ)


def _prepare_device(env: RankEnv) -> str:
    """Choose this rank's GPU, or its share of the CPU; the backend of the process group."""
    _keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu(env.local_rank, torch.cuda.device_count()))
        # cuDNN's attention rounds the dropout rate to sixteenths (torch 2.11, cuDNN 9.19), and
        # torch prefers it on Hopper. The flash kernel takes its place.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return "nccl"
    _refuse_missing_gpus()
    _divide_cores(env)
    return "gloo"


@contextmanager
def _reached(env: RankEnv) -> Iterator[None]:
    """Shows what this rank waits for; PeerError if it does not find the others."""
    try:
        with _waiting_shown(env):
            yield
    except (RuntimeError, ValueError, OSError) as error:
        raise PeerError(
            f"rank {env.rank} of {env.world_size} found no process group at "
            f"MASTER_ADDR={env.master_addr} MASTER_PORT={env.master_port}: {error}; see that every "
            "rank is up, or give the launcher another --master_port",
            of_this_rank=True,
        ) from error


def _resolve(host: str) -> str:
    """The address of `host`, an IPv4 address if it has one."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    first = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    address, scope = str(first[4][0]), host.partition("%")[2]
    return f"{address}%{scope}" if scope and "%" not in address else address


def _open_store(env: RankEnv, timeout: timedelta) -> dist.TCPStore:
    """The store of the process group: rank 0 opens it, and the other ranks connect to it."""
    address = _resolve(env.master_addr)
    at_home = ipaddress.ip_address(address).is_loopback
    loopback = env.master_addr == "localhost" or (at_home and env.master_addr == address)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if env.rank > 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _reach_store(env, timeout, timeout)
    # The hosts file of a machine may map its own name to the loopback interface, which other
    # machines cannot reach. In that case listen on every interface.
    interface = address if loopback or not at_home else ""
    own, everywhere = ("::1", "::") if ":" in address else ("127.0.0.1", "")
    try:
        server = _listen(interface or everywhere, env.master_port)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        # MASTER_ADDR belongs to a service or a NAT, and to no interface of this machine.
        server = _listen(everywhere, env.master_port)
        store = _serve_store(own, env.master_port, server, timeout)
        _reach_store(env, timeout, timedelta(0))
        return store
    return _serve_store(interface or own, env.master_port, server, timeout)


def _listen(host: str, port: int) -> socket.socket:
    if ":" not in host:
        return socket.create_server((host, port), backlog=PENDING_CONNECTIONS)
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]  # with the scope
    return socket.create_server(address, family=socket.AF_INET6, backlog=PENDING_CONNECTIONS)


def _serve_store(host: str, port: int, server: socket.socket, timeout: timedelta) -> dist.TCPStore:
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=server.detach(),
    )


def _reach_store(env: RankEnv, timeout: timedelta, refused_wait: timedelta) -> dist.TCPStore:
    """Connect to the store at MASTER_ADDR; `OSError` if nothing answers for `ANSWER_SECONDS`.

    A running machine refuses a connection at once if no process listens on the port. Then the wait
    lasts longer, up to `refused_wait`, because rank 0 may start minutes later.
    """
    began = time.monotonic()
    answer_seconds = min(ANSWER_SECONDS, timeout.total_seconds())
    while True:
        longest = answer_seconds
        try:
            address = (env.master_addr, env.master_port)
            socket.create_connection(address, PROBE_SECONDS).close()
            store = _connect(env, answer_seconds)
            if store is not None:
                store.set_timeout(timeout)
                return store
            fault = "whoever listens there is not rank 0"
        except ConnectionRefusedError as error:
            longest = max(answer_seconds, refused_wait.total_seconds())
            fault = f"{error.strerror}, rank 0 does not listen there"
        except OSError as error:
            fault = f"{error.strerror or error}, no machine answers there"
        waited = time.monotonic() - began
        if waited > longest:
            raise OSError(f"{fault} ({waited:.0f} s)")
        time.sleep(RETRY_SECONDS)


def _connect(env: RankEnv, seconds: float) -> dist.TCPStore | None:
    """A client of the store; None if a process listens on the port but does not answer.

    In that case torch ignores its own timeout, so `call_within` adds another one.
    """
    return heartbeat.call_within(
        seconds + PROBE_SECONDS,
        lambda: dist.TCPStore(
            env.master_addr,
            env.master_port,
            is_master=False,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        ),
    )


@contextmanager
def _waiting_shown(env: RankEnv) -> Iterator[None]:
    """Every `NOTICE_SECONDS`, print which rank this rank still waits for."""
    met = threading.Event()
    awaited = "all other ranks" if env.rank == 0 else "rank 0"

    def show() -> None:
        while not met.wait(NOTICE_SECONDS):
            # `print` writes the end of a line by itself, and another thread may come between.
            sys.stderr.write(
                f"rank {env.rank} of {env.world_size} still waits for {awaited} at "
                f"MASTER_ADDR={env.master_addr} MASTER_PORT={env.master_port}; are both right, "
                "and is every rank up?\n"
            )
            sys.stderr.flush()

    threading.Thread(target=show, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _take_rank(store: dist.TCPStore, env: RankEnv) -> None:
    if store.add(f"gpt1_ds/{start_number(os.environ)}/rank/{env.rank}", 1) > 1:
        raise ConfigError(
            f"RANK={env.rank} is taken by another process of this run; give each its own, "
            f"from 0 to {env.world_size - 1}",
            of_this_rank=True,
        )


def _own_gpu(local_rank: int, visible: int) -> int:
    """The index of this rank's GPU: the local rank, or 0 if only one GPU is visible."""
    if visible > 1 and local_rank >= visible:
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own, {visible} are visible on "
            f"{socket.gethostname()}; start as many ranks a node as it has GPUs"
        )
    return local_rank if visible > 1 else 0


def _refuse_missing_gpus() -> None:
    gpus = os.environ.get("SLURM_GPUS_ON_NODE") or "0"
    if gpus != "0":
        raise ConfigError(
            f"Slurm gave {socket.gethostname()} {gpus} GPUs, but torch sees none: look at its CUDA "
            "build and the driver, or ask for --gpus-per-node=0 to train on CPUs"
        )


def _divide_cores(env: RankEnv) -> None:
    """Divide the cores among the ranks of this machine."""
    if "OMP_NUM_THREADS" not in os.environ:
        local_ranks = ranks_here(os.environ, env.world_size)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def _keep_freed_memory() -> None:
    """Keep freed memory in the heap.

    Else page faults on new memory take a quarter of a step on a CPU, and of each copy of a
    checkpoint on a GPU machine.
    """
    _call_libc("mallopt", M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
    _call_libc("mallopt", M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Return unused heap memory to the system: batches of many lengths fragment the heap."""
    if not torch.cuda.is_available():
        _call_libc("malloc_trim", 0)


def _call_libc(function: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
    except (OSError, AttributeError):
        pass  # another C library lacks these functions: only the speed suffers
