"""A rank's place, read from the environment of its launcher."""

import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from gpt1_ds.base.errors import ConfigError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")


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
            raise ConfigError(
                f"{missing[0]} is not set although {given[0]}={environ[given[0]]} is; start all ranks "
                "with one launcher (deepspeed, srun or mpirun)"
            )
        if given:
            found[names] = tuple(integer_of(environ, name) for name in names)
    if not found:
        return RankEnv(0, 1, 0, "127.0.0.1", free_port())
    names = next(iter(found))
    rank, world_size, local_rank = found[names]
    for other, (_, other_size, _) in found.items():
        if other_size not in (1, world_size):
            raise ConfigError(
                f"{names[1]}={world_size} contradicts {other[1]}={other_size}; start the ranks with one "
                "launcher and as many tasks as ranks"
            )
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"{names[0]}={rank} is not below {names[1]}={world_size}; check the launcher's variables"
        )
    if world_size == 1 and "MASTER_PORT" not in environ:
        return RankEnv(0, 1, 0, "127.0.0.1", free_port())
    elsewhere = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", world_size)) < world_size
    if "MASTER_ADDR" not in environ and (
        elsewhere or int(environ.get("SLURM_STEP_NUM_NODES", "1")) > 1
    ):
        raise ConfigError(
            "MASTER_ADDR is not set on a job of several nodes; source slurm/env.sh, which sets it, or "
            "give rank 0's host to mpirun: -x MASTER_ADDR=HOST"
        )
    # Jobs that share a node must not share a port; ranks without one agree on a function of the job.
    job = int(environ.get("SLURM_JOB_ID", zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode())))
    port = integer_of(environ, "MASTER_PORT") if "MASTER_PORT" in environ else 20000 + job % 20000
    return RankEnv(rank, world_size, local_rank, environ.get("MASTER_ADDR", "127.0.0.1"), port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def integer_of(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(
            f"environment variable {name} is '{environ[name]}'; expected an integer"
        ) from None
