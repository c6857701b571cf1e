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
FIRST_PORT, PORTS = 20_000, 20_000


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
    several nodes has no MASTER_ADDR. Without any variables, the run has a single rank.
    """
    places = _places(environ)
    if not places:
        return _alone()
    names, place = next(iter(places.items()))
    for other, (_, other_size, _) in places.items():
        if other_size not in (1, place.world_size):
            raise ConfigError(
                f"{names.world_size}={place.world_size} contradicts "
                f"{other.world_size}={other_size}; start the ranks with one launcher and as many "
                "tasks as ranks"
            )
    if not 0 <= place.rank < place.world_size:
        raise ConfigError(
            f"{names.rank}={place.rank} is not below {names.world_size}={place.world_size}; "
            "check the launcher's variables"
        )
    if place.world_size == 1 and "MASTER_PORT" not in environ:
        return _alone()
    if "MASTER_ADDR" not in environ and _several_nodes(environ, place.world_size):
        raise ConfigError(
            "MASTER_ADDR is not set on a job of several nodes; source slurm/env.sh, which sets it, "
            "or give rank 0's host to mpirun: -x MASTER_ADDR=HOST"
        )
    return RankEnv(*place, environ.get("MASTER_ADDR", "127.0.0.1"), _port(environ))


def _places(environ: Mapping[str, str]) -> dict[Variables, Place]:
    """For each launcher whose variables are set, the values of these variables."""
    places = {}
    for names in (LAUNCHER, SLURM, OPEN_MPI, MPICH):
        if names is SLURM and "SLURM_STEP_ID" not in environ:
            continue  # a batch shell has SLURM_PROCID=0 without being a rank
        given = [name for name in names if name in environ]
        if given and len(given) < len(names):
            missing = sorted(set(names) - set(given))
            raise ConfigError(
                f"{missing[0]} is not set although {given[0]}={environ[given[0]]} is; start all "
                "ranks with one launcher (deepspeed, srun or mpirun)"
            )
        if given:
            places[names] = Place(*(_integer(environ, name) for name in names))
    return places


def _several_nodes(environ: Mapping[str, str], world_size: int) -> bool:
    ranks_of_this_node = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", world_size))
    return ranks_of_this_node < world_size or int(environ.get("SLURM_STEP_NUM_NODES", "1")) > 1


def _port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT, or a port computed from the job id, so that two jobs on a node differ."""
    if "MASTER_PORT" in environ:
        return _integer(environ, "MASTER_PORT")
    namespace = zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode())
    job = int(environ.get("SLURM_JOB_ID", namespace))
    return FIRST_PORT + job % PORTS


def _alone() -> RankEnv:
    return RankEnv(0, 1, 0, "127.0.0.1", free_port())


def free_port() -> int:
    """A port of the loopback interface that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(
            f"environment variable {name} is '{environ[name]}'; expected an integer"
        ) from None
