"""The limit of open files, with real limits in processes of their own."""

import os
import subprocess
import sys

import pytest

from gpt1_ds.distributed.environment import free_port
from tests.conftest import ROOT

RANK_0 = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from gpt1_ds.base.errors import guard
from gpt1_ds.distributed import agreement, rendezvous
agreement.PATIENCE_SECONDS = 0.2
def main(words):
    with rendezvous.joining() as meeting:
        print(*resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
        raise SystemExit
guard(main)
"""


def start(world_size: int, soft: int, hard: int) -> subprocess.CompletedProcess:
    environ = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return subprocess.run(
        [sys.executable, "-c", RANK_0, str(soft), str(hard)],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("world_size", "enough"), [(2, 1024), (1000, 4000)])
def test_the_limit_is_raised_where_it_is_too_low(world_size, enough):
    process = start(world_size, 1024, 9000)
    assert process.returncode == 0, process.stderr
    soft, hard = map(int, process.stdout.split())
    assert enough <= soft <= enough + 600 and hard == 9000


def test_a_run_that_cannot_have_its_connections_is_refused():
    process = start(1000, 256, 1024)
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert line.startswith("error: 1,000 ranks need 4,0") and "its limit is 1,024" not in line
    assert "open files in rank 0, whose limit is 1,024; raise the hard limit" in line


ROOM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from gpt1_ds.distributed.descriptors import room_for
print(room_for(1000), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(300, 5000), (4000, 5000), (300, 900), (64, 100)])
def test_shards_get_what_the_limit_leaves(soft, hard):
    words = [sys.executable, "-c", ROOM, str(soft), str(hard)]
    room, now, most = map(int, subprocess.check_output(words, cwd=ROOT, text=True).split())
    assert most == hard and now >= soft
    if hard == 5000:
        assert room == 1000 and now == soft if soft == 4000 else 1256 <= now <= 1300
    else:
        assert now == hard and max(0, hard - 300) <= room <= max(0, hard - 256)
