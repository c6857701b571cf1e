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


PMI = {"PMI_RANK": "1", "PMI_SIZE": "2"}
HYDRA = {**PMI, "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2", "PMI_FD": "9"}
ONE_NODE = {**SLURM, "SLURM_STEP_NUM_NODES": "1"}
SHELL = {**ONE_NODE, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
NODES = {**SLURM, "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
ALONE = (0, 1, 0)
HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (HYDRA, (1, 2, 0)),
        ({**ONE_NODE, "PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4, 1)),  # srun --mpi=pmi2
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, ALONE),
        ({**ONE_NODE, "PMIX_RANK": "3", "PMIX_NAMESPACE": "slurm.pmix.7.0"}, (3, 4, 1)),
        ({**MPI, "PMIX_RANK": "2"}, (2, 3, 2)),
        (SHELL, ALONE),
        ({**SHELL, **HAND}, (1, 2, 1)),  # a launcher in a shell of `srun --pty`
        ({**SHELL, **MPI}, (2, 3, 2)),
        ({**SHELL, **HYDRA}, (1, 2, 0)),
        ({**NODES, **LAUNCHER}, (1, 4, 1)),  # srun --ntasks-per-node=1 torchrun
        ({**NODES, **MPI, "MASTER_ADDR": "n1"}, (2, 3, 2)),  # a daemon of mpirun on each node
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, ALONE),
        ({**ONE_NODE, "RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""}, (3, 4, 1)),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, ALONE),  # salloc
    ],
)
def test_the_place_of_a_rank(environ, place):
    env = rank_environment(environ)
    assert (env.rank, env.world_size, env.local_rank) == place


@pytest.mark.parametrize(
    ("given", "address"),
    [("::1", "::1"), ("[::1]", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("", "127.0.0.1")],
)
def test_the_address(given, address):
    assert rank_environment({**HAND, "MASTER_ADDR": given}).master_addr == address


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "^LOCAL_RANK is not set although RANK=0 is"),
        ({"RANK": "1"}, "^WORLD_SIZE and LOCAL_RANK are not set although RANK=1 is"),
        ({"RANK": "", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "^RANK is not set although WORLD"),
        ({"WORLD_SIZE": "2"}, "^RANK and LOCAL_RANK are not set"),
        ({**SLURM, "SLURM_LOCALID": ""}, "^SLURM_LOCALID is not set"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "^OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_LOCAL_RANK"),
        (PMI, "^MPI_LOCALRANKID is not set although PMI_RANK=1"),
        ({"PMI_RANK": "1"}, "^PMI_SIZE and MPI_LOCALRANKID are not set"),
        ({"PMIX_RANK": "1"}, "^OMPI_COMM_WORLD_SIZE is not set although PMIX_RANK=1"),
        ({**LAUNCHER, "RANK": "4"}, "RANK=4"),
        ({**HAND, "WORLD_SIZE": "1"}, "RANK=1 is not below WORLD_SIZE=1"),
        ({**HAND, "WORLD_SIZE": "0"}, "RANK=1 is not below WORLD_SIZE=0"),
        ({**HAND, "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
        ({**LAUNCHER, "RANK": "one"}, "'one'"),
        ({**HAND, "MASTER_PORT": "99999"}, "MASTER_PORT is 99999; give a port from 1 to 65535"),
        ({**HAND, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({**ONE_NODE, "SLURM_JOB_ID": "7x"}, "SLURM_JOB_ID is '7x'"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "two"}, "OMPI_COMM_WORLD_LOCAL_SIZE is 'two'"),
        ({**LAUNCHER, **SLURM, "SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS=8"),
        ({**NODES, **HAND, "WORLD_SIZE": "1", "RANK": "0"}, "SLURM_STEP_NUM_TASKS=2"),
    ],
)
def test_half_a_set_and_contradictions_are_said_by_the_rank_that_has_them(environ, word):
    with pytest.raises(ConfigError, match=word) as caught:
        rank_environment(environ)
    assert caught.value.of_this_rank


@pytest.mark.parametrize("environ", [SLURM, {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}])
def test_several_nodes_need_an_address(environ):
    with pytest.raises(ConfigError, match="MASTER_ADDR .* -x MASTER_ADDR=HOST"):
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
