"""The verdict on a silent rank, of so many ranks that ask at once; old beside new.

    python benchmarks/heartbeat.py [--old PATH] [--ranks 64 256 1024] [--rounds 3]

Each rank is a thread with a connection of its own to a real store, whose server is in another
process. One rank stops to beat; all others lose their peer at the same moment and ask which one it
is. Printed are the seconds until the last one knows, the processor time of the store's server, and
how many name the right rank. PATH is a checkout of an earlier commit, which takes turns with this
one. A minute, and more with an old version.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__" and "--child" not in sys.argv:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch.distributed as dist

from gpt1_ds.distributed import heartbeat

ROOT = Path(__file__).resolve().parents[1]
LATEST = 120.0
"""How long a rank may take, seconds."""


@contextmanager
def server() -> Iterator[tuple[int, Callable[[], float]]]:
    """A store in a process of its own: its port, and its processor time so far."""
    code = (
        "import sys, torch.distributed as dist\n"
        "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout

        def seconds() -> float:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        yield int(process.stdout.readline()), seconds
        process.stdin.close()


def measure(ranks: int) -> dict[str, float]:
    """Seconds of the verdict, and how many ranks say it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    silent = ranks // 3
    with server() as (port, seconds):
        first = dist.TCPStore("127.0.0.1", port, is_master=False)
        with ThreadPoolExecutor(32) as threads:
            beats = list(
                threads.map(
                    lambda rank: heartbeat.Heartbeat(first.clone(), rank, ranks), range(ranks)
                )
            )
        time.sleep(2 * heartbeat.BEAT_SECONDS)
        beats[silent].stopped.set()
        time.sleep(2 * heartbeat.BEAT_SECONDS)
        said: list[str] = []
        asking = [
            threading.Thread(target=lambda own=own: said.append(own.suspects()), daemon=True)
            for own in beats
            if own.rank != silent
        ]
        began, used = time.monotonic(), seconds()
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(max(0.0, began + LATEST - time.monotonic()))
        took = time.monotonic() - began
        right = sum(text.startswith(f"rank {silent} is silent") for text in said)
        figures = {"seconds": took, "store": seconds() - used, "right": right / (ranks - 1)}
    print(json.dumps(figures), flush=True)
    os._exit(0)  # threads still beat


def child(code: Path, ranks: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(ranks)]
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path, metavar="PATH", help="checkout of an earlier commit")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=3, help="of each version, taken in turn")
    args = parser.parse_args()
    versions = {"old": args.old.resolve()} if args.old else {}
    versions["new"] = ROOT
    for ranks in args.ranks:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
        for _ in range(args.rounds):
            for name, code in versions.items():
                runs[name].append(child(code, ranks))
        for name, of_version in runs.items():
            seconds, store, right = (
                statistics.median(run[key] for run in of_version)
                for key in ("seconds", "store", "right")
            )
            print(
                f"{ranks:5} ranks  {name}  verdict after {seconds:6.1f} s, {store:6.2f} s of the "
                f"store's server, right on {right:.0%} of the ranks",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        measure(int(sys.argv[2]))
    else:
        main()
