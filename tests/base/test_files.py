"""Atomic writes, flushing and locks, also on file systems that lack one of them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt1_ds.base.files import lock_file, write_atomically
from tests.conftest import ROOT, run

LACKING = """
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int flock(int file, int operation) { errno = ENOLCK; return -1; }
int fsync(int file) {
    struct stat of;
    fstat(file, &of);
    if (S_ISDIR(of.st_mode)) { errno = EINVAL; return -1; }
    return syscall(SYS_fsync, file);
}
"""
USE = """
import sys
from pathlib import Path
from gpt1_ds.base.files import lock_file, write_atomically
for name in "ab":
    assert lock_file(Path(sys.argv[1]) / name, "start one build at a time")
write_atomically(Path(sys.argv[1]) / "c", "done")
"""


@pytest.fixture(scope="session")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose file system has no flock and flushes no folder."""
    folder = tmp_path_factory.mktemp("lacking")
    (folder / "lacking.c").write_text(LACKING, encoding="utf-8")
    library = str(folder / "lacking.so")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, str(folder / "lacking.c")], check=True, timeout=60
    )
    return {"LD_PRELOAD": library}


def test_without_flock_and_folder_fsync_work_goes_on_with_one_warning(lacking, tmp_path):
    done = run("python", "-c", USE, tmp_path, **lacking, timeout_seconds=60)
    assert done.returncode == 0, done.stderr
    reason = os.strerror(errno.ENOLCK)
    wanted = f"warning: {tmp_path} cannot be locked ({reason}); start one build at a time\n"
    assert done.stderr == wanted
    assert (tmp_path / "c").read_text(encoding="utf-8") == "done"


def test_a_lock_has_one_holder_until_its_process_ends(tmp_path):
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
    code += "from gpt1_ds.base.files import lock_file\n"
    code += f"held = lock_file({str(tmp_path / 'lock')!r}, ''); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert lock_file(tmp_path / "lock", "") is None
    holder.kill()
    holder.communicate(timeout=60)
    file = lock_file(tmp_path / "lock", "", wait_seconds=10)
    assert file is not None
    file.close()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\udcff")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path("/"), Path(".")):
        with pytest.raises(IsADirectoryError):
            write_atomically(path, "new")
    with pytest.raises(FileNotFoundError) as lost:
        write_atomically(tmp_path / "absent" / "file", "new")
    assert "absent" in str(lost.value.filename)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
