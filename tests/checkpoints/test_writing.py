"""Files written behind the back of training: the same bytes, true seals, faults that are told, memory that is left."""

import errno
import fcntl
import io
import os

import pytest

from gpt1_ds.base.files import BLOCK_BYTES, file_sha256
from gpt1_ds.checkpoints import writing
from gpt1_ds.checkpoints.writing import CheckpointFiles, HashedFile, memory_left

LARGE = os.urandom(BLOCK_BYTES + 900_000)


def pieces(file) -> None:
    for piece in (b"head", memoryview(LARGE), b"tail"):
        assert file.write(piece) == len(piece)


@pytest.mark.parametrize("behind", [True, False])
def test_files_hold_what_was_written_and_their_seals_are_true(tmp_path, behind):
    files = CheckpointFiles(tmp_path, behind)
    files.add("large", pieces)
    files.add("small", lambda file: file.write(b"small"))
    assert len(list(tmp_path.iterdir())) == (0 if behind else 2)
    files.start()
    sealed = files.sealed()
    assert (tmp_path / "large").read_bytes() == b"head" + LARGE + b"tail" and not files.busy()
    assert (
        sealed
        == {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in tmp_path.iterdir()
        }
        and len(sealed) == 2
    )


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize(
    "size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES]
)
def test_every_size_around_a_block_is_whole(tmp_path, size, behind):
    files, content = CheckpointFiles(tmp_path, behind), (LARGE * 2)[:size]
    files.add(
        "file",
        lambda file: [file.write(content[at : at + 999_999]) for at in range(0, size, 999_999)],
    )
    files.start()
    assert files.sealed()["file"] == {"bytes": size, "sha256": file_sha256(tmp_path / "file")}
    assert (tmp_path / "file").read_bytes() == content


class Cached(io.FileIO):
    """Of a file system that writes through its cache alone, and at most a million bytes and one at a time."""

    def write(self, data) -> int:
        if fcntl.fcntl(self, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().write(memoryview(data)[:1_000_001])


def test_a_file_system_that_refuses_to_go_past_its_cache_is_written_through_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(io, "FileIO", Cached)
    file = HashedFile(tmp_path / "file")
    pieces(file.blocks)
    assert file.seal()["sha256"] == file_sha256(tmp_path / "file") and not file.fault
    assert (tmp_path / "file").read_bytes() == b"head" + LARGE + b"tail"


@pytest.mark.parametrize("behind", [True, False])
def test_a_file_that_cannot_be_written_is_told_at_the_end(tmp_path, behind):
    (tmp_path / "taken").write_text("by another")
    files = CheckpointFiles(tmp_path, behind)
    for name in ("taken", "free"):
        files.add(name, lambda file: file.write(b"x"))
    files.start()
    with pytest.raises(OSError, match="taken: .*exists"):
        files.sealed()
    assert (tmp_path / "taken").read_text() == "by another"


def test_whatever_ends_the_thread_is_a_fault(tmp_path, monkeypatch):
    files = CheckpointFiles(tmp_path, behind=True)
    files.add("one", lambda file: file.write(b"x"))
    monkeypatch.setattr(files, "_write", None)
    files.start()
    with pytest.raises(OSError, match="TypeError"):
        files.sealed()


def test_memory_left_is_within_the_machine_and_its_control_group(tmp_path):
    assert 0 < memory_left() < 1e14
    names = ("max", "current", "inactive_file")
    assert writing._group_left(tmp_path, *names) == float("inf")
    for name, text in (
        ("max", "1000"),
        ("current", "700"),
        ("stat", "anon 5\ninactive_file 200\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert writing._group_left(tmp_path, *names) == 500
    (tmp_path / "memory.max").write_text("max")
    assert writing._group_left(tmp_path, *names) == float("inf")
