"""Validation loss against one plain pass over the stream."""

import pytest

from tests.test_deepspeed_config import FOLDER


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_loss_counts_every_target_once(ranks, tiny_shards, world_size):
    path = str(FOLDER / "zero0_fp32.json")
    for ours, plain in ranks(world_size).run("tests.cases_engine:all_windows_loss", path, str(tiny_shards)):
        assert ours == pytest.approx(plain, rel=1e-6)
