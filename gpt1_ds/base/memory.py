"""How much memory there is, and which errors say that there was too little of it."""

import errno
import re
import resource
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

GB = 1e9
_SIGNS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "can't start new thread",
)
"""What torch, numpy, CUDA, the C++ library and Python write, in small letters."""
_ASKED = re.compile(r"allocate (?:about )?([\d.]+) ?(bytes|[KMGT]iB)")
_ON_A_GPU = re.compile(
    r"total capacity of ([\d.]+) ([KMGT]iB) of which ([\d.]+) ([KMGT]iB) is free"
)
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def is_shortage(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def shortage(error: BaseException) -> str:
    """How much was asked for, as far as the error says it, and how much is free."""
    text = str(error)
    asked, on_a_gpu = _ASKED.search(text), _ON_A_GPU.search(text)
    more = f"{_bytes(*asked.groups()) / GB:.2f} GB more were asked for, " if asked else ""
    if "new thread" in text:
        more = "a thread was asked for, which `ulimit -u` may forbid too, "
    if on_a_gpu:
        total, total_unit, free, unit = on_a_gpu.groups()
        there = f"{_bytes(free, unit) / GB:.2f} of {_bytes(total, total_unit) / GB:.1f} GB are free"
        return f"{more}{there} on the GPU"
    try:
        left = memory_left()
    except MemoryError:  # not even a small file can be read
        left = 0.0
    return f"{more}{left / GB:.2f} GB are free"


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]


class CgroupFiles(NamedTuple):
    """Names by which a version of control groups gives its memory's limit, use, and file cache.

    The last is a key of `memory.stat`.
    """

    limit: str
    used: str
    cache: str


CGROUP_1 = CgroupFiles("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
CGROUP_2 = CgroupFiles("max", "current", "inactive_file")


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return _of_status("VmRSS")


def peak_resident_bytes() -> int:
    """The most that it was, since the start of the program or since `forget_peak`."""
    return _of_status("VmHWM")


def forget_peak() -> None:
    """Begin the peak anew, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _of_status(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def memory_left() -> float:
    """Bytes that processes can still take on this machine and in this one's control groups."""
    try:
        available = Path("/proc/meminfo").read_text().split("MemAvailable:")[1]
        left = float(available.split()[0]) * 1024
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, IndexError):
        return 0.0
    for line in groups:
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = CGROUP_1 if controllers else CGROUP_2
        folder = Path("/sys/fs/cgroup", controllers) / own.strip("/")
        for group in (folder, *folder.parents):
            left = min(left, _group_left(group, names))
    return min(left, _limit_left())


def _limit_left() -> float:
    """Bytes of address space that `ulimit -v` leaves to this process; infinite without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return float(max(0, limit - pages * resource.getpagesize()))


def _group_left(group: Path, names: CgroupFiles) -> float:
    """Bytes a control group has left, if its file cache is dropped; infinite without a limit."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / f"memory.{names.used}").read_text()) - int(stat[names.cache])
        return float(int((group / f"memory.{names.limit}").read_text()) - used)
    except (OSError, ValueError, KeyError):
        return float("inf")
