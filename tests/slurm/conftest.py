"""A real two-node Slurm on this machine, and a folder to submit from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, need
from tests.support import slurm_cluster
from tests.support.slurm_cluster import SlurmCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := slurm_cluster.missing():
        need("slurm", reason)
    with SlurmCluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def project(tiny_shards, sample, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("slurm", "gpt1_ds", "data_prep", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "shards").symlink_to(tiny_shards)
    return folder
