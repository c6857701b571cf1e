"""The rank environment of each launcher, and the collectives on real ranks."""

import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.distributed.environment import rank_environment
from gpt1_ds.distributed.rendezvous import _own_gpu

LAUNCHER = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NUM_NODES": "2",
}
MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}


def test_each_launcher_in_its_order():
    env = rank_environment(LAUNCHER)
    assert (env.rank, env.world_size, env.local_rank, env.master_addr, env.master_port) == (
        1,
        4,
        1,
        "10.0.0.1",
        29500,
    )
    env = rank_environment({**SLURM, "MASTER_ADDR": "node1"})
    assert (env.rank, env.world_size, env.local_rank, env.master_addr, env.master_port) == (
        3,
        4,
        1,
        "node1",
        20077,
    )
    assert rank_environment(MPI).rank == 2
    assert rank_environment({**LAUNCHER, **SLURM}).rank == 1
    assert rank_environment({}).world_size == 1


def test_two_mpirun_on_a_node_have_ports_of_their_own():
    first, second = (
        rank_environment({**MPI, "PMIX_NAMESPACE": f"prterun-{number}@1"}) for number in (1, 2)
    )
    assert first.master_port != second.master_port


@pytest.mark.parametrize(("local_rank", "visible", "gpu"), [(0, 1, 0), (3, 1, 0), (3, 8, 3)])
def test_a_ranks_gpu_is_the_one_it_sees_or_that_of_its_number(local_rank, visible, gpu):
    assert _own_gpu(local_rank, visible) == gpu


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="local rank 8 .* 4 are visible"):
        _own_gpu(8, 4)


def test_a_batch_shell_is_no_rank():
    assert (
        rank_environment(
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
        ).world_size
        == 1
    )


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK"),
        ({**LAUNCHER, "RANK": "4"}, "RANK=4"),
        ({**LAUNCHER, "RANK": "one"}, "'one'"),
        ({**LAUNCHER, **SLURM, "SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS=8"),
        (SLURM, "MASTER_ADDR"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "-x MASTER_ADDR=HOST"),
    ],
)
def test_half_a_set_and_contradictions_are_errors(environ, word):
    with pytest.raises(ConfigError, match=word):
        rank_environment(environ)


@pytest.mark.parametrize("world_size", [1, 2])
def test_collectives(ranks, world_size):
    pool = ranks(world_size)
    assert (
        pool.run("tests.support.cases_engine:sums")
        == [(sum(range(world_size + 1)), world_size)] * world_size
    )
    long = "x" * 5000
    assert (
        pool.run("tests.support.cases_engine:gathered", long) == [[long] * world_size] * world_size
    )


def test_an_error_of_rank_0_is_raised_on_every_rank(ranks):
    with pytest.raises(DataError, match="somewhere: wrong"):
        ranks(2).run("tests.support.cases_engine:wrong_on_main", "somewhere", timeout_seconds=60)
    assert ranks(2).run("tests.support.cases_engine:sums") == [(3.0, 2)] * 2
