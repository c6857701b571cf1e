"""Rank, world size and address, read from the launcher's environment variables.

They come from `deepspeed` or `torchrun` (`RANK` ..), Slurm (`SLURM_*`), or MPI (`OMPI_*`, `PMI_*`),
in this order.
"""

import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpt1_ds.base.errors import ConfigError


class Variables(NamedTuple):
    """The names of one launcher's variables."""

    rank: str
    world_size: str
    local_rank: str


LAUNCHER = Variables("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = Variables("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
OPEN_MPI = Variables("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
MPICH = Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
PMIX_RANK = "PMIX_RANK"
"""PMIx gives no number of ranks in a variable; its launchers set one of the sets above too."""
LOCAL_SIZES = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Variables of deepspeed, torchrun and Open MPI with the number of ranks of a machine."""
FIRST_PORT, PORTS = 20_000, 20_000
LAST_PORT = 65_535


@dataclass(frozen=True)
class RankEnv:
    """The rank of this process, and the address where the ranks connect."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this rank among the ranks of its machine."""
    master_addr: str
    master_port: int


class Place(NamedTuple):
    rank: int
    world_size: int
    local_rank: int


def rank_environment(environ: Mapping[str, str]) -> RankEnv:
    """The rank of this process, from the first complete set of variables.

    Raises ConfigError if a set is incomplete, if two sets contradict each other, or if a job of
    several nodes has no MASTER_ADDR. Without any variables, the run has a single rank. An empty
    variable is one that is not set.
    """
    environ = {name: value for name, value in environ.items() if value}
    places = _places(environ)
    if not places:
        return _alone()
    names, place = next(iter(places.items()))
    for other, (_, other_size, _) in places.items():
        if other_size not in (1, place.world_size):
            raise ConfigError(
                f"{names.world_size}={place.world_size} contradicts "
                f"{other.world_size}={other_size}; start the ranks with one launcher and as many "
                "tasks as ranks",
                of_this_rank=True,
            )
    if not 0 <= place.rank < place.world_size:
        raise ConfigError(
            f"{names.rank}={place.rank} is not below {names.world_size}={place.world_size}; "
            "check the launcher's variables",
            of_this_rank=True,
        )
    if place.local_rank < 0:
        raise ConfigError(
            f"{names.local_rank}={place.local_rank} is below 0; check the launcher's variables",
            of_this_rank=True,
        )
    if place.world_size == 1 and "MASTER_PORT" not in environ:
        return _alone()
    if "MASTER_ADDR" not in environ and _several_nodes(environ, place.world_size):
        raise ConfigError(
            "MASTER_ADDR is not set on a job of several nodes; source slurm/env.sh, which sets it, "
            "or give rank 0's host to mpirun: -x MASTER_ADDR=HOST",
            of_this_rank=place.rank == 0,
        )
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    return RankEnv(*place, address.removeprefix("[").removesuffix("]"), _port(environ))


def _places(environ: Mapping[str, str]) -> dict[Variables, Place]:
    """For each launcher whose variables are set, the values of these variables."""
    places: dict[Variables, Place] = {}
    for names in (LAUNCHER, SLURM, OPEN_MPI, MPICH):
        if names is SLURM and "SLURM_STEP_ID" not in environ:
            continue  # a batch shell has SLURM_PROCID=0 without being a rank
        given = [name for name in names if name in environ]
        missing = [name for name in names if name not in environ]
        if names is MPICH and missing == [MPICH.local_rank]:
            places[names] = _pmi_place(environ, places)
        elif given and missing:
            raise _incomplete(environ, given[0], missing)
        elif given:
            places[names] = Place(*(_integer(environ, name) for name in names))
    if not places and PMIX_RANK in environ:
        raise _incomplete(environ, PMIX_RANK, [OPEN_MPI.world_size])
    if _is_one_task_a_node(environ, places):
        del places[SLURM]
    return places


def _incomplete(environ: Mapping[str, str], given: str, missing: list[str]) -> ConfigError:
    verb = "is" if len(missing) == 1 else "are"
    return ConfigError(
        f"{' and '.join(missing)} {verb} not set although {given}={environ[given]} is; start all "
        "ranks with one launcher (deepspeed, srun or mpirun)",
        of_this_rank=True,  # its number is not known
    )


def _pmi_place(environ: Mapping[str, str], places: Mapping[Variables, Place]) -> Place:
    """`srun --mpi=pmi2` sets PMI_RANK and PMI_SIZE alone; Slurm's own variables say the rest."""
    rank, world_size = (_integer(environ, name) for name in (MPICH.rank, MPICH.world_size))
    if SLURM in places:
        return Place(rank, world_size, places[SLURM].local_rank)
    if world_size > 1:
        raise _incomplete(environ, MPICH.rank, [MPICH.local_rank])
    return Place(rank, world_size, 0)


def _is_one_task_a_node(environ: Mapping[str, str], places: Mapping[Variables, Place]) -> bool:
    """Whether the Slurm step is not that of the ranks, but of a launcher on each node.

    `srun --ntasks-per-node=1 torchrun ..`, an interactive shell, and the daemons of mpirun have
    such a step, and start more ranks than it has tasks.
    """
    if SLURM not in places:
        return False
    tasks = places[SLURM].world_size
    most = max(place.world_size for place in places.values())
    return tasks == _integer(environ, "SLURM_STEP_NUM_NODES", 1) and tasks < most


def _several_nodes(environ: Mapping[str, str], world_size: int) -> bool:
    ranks_of_this_node = _integer(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", world_size)
    return ranks_of_this_node < world_size or _integer(environ, "SLURM_STEP_NUM_NODES", 1) > 1


def _port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT, or a port computed from the job id, so that two jobs on a node differ."""
    if "MASTER_PORT" in environ:
        port = _integer(environ, "MASTER_PORT")
        if not 0 < port <= LAST_PORT:
            raise ConfigError(
                f"MASTER_PORT is {port}; give a port from 1 to {LAST_PORT}", of_this_rank=True
            )
        return port
    namespace = zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode())
    return FIRST_PORT + _integer(environ, "SLURM_JOB_ID", namespace) % PORTS


def _alone() -> RankEnv:
    return RankEnv(0, 1, 0, "127.0.0.1", free_port())


def ranks_here(environ: Mapping[str, str], world_size: int) -> int:
    """How many ranks this machine has, as the launcher says it; else all of them."""
    sizes = (environ.get(name, "") for name in LOCAL_SIZES)
    return next((int(size) for size in sizes if size.isdigit() and int(size) > 0), world_size)


def start_number(environ: Mapping[str, str]) -> str:
    """How often torchrun has started the ranks again; 0 elsewhere.

    torchrun keeps its store over starts. So a key or prefix there contains this number: else a
    start would find what the one before it has left.
    """
    return environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def free_port() -> int:
    """A port of the loopback interface that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environ:
        return default
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(
            f"environment variable {name} is '{environ[name]}'; expected an integer",
            of_this_rank=True,
        ) from None
