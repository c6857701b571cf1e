"""Files written in the background: the same bytes, right hashes, errors raised at the end."""

import errno
import fcntl
import io
import os
import threading

import pytest

from gpt1_ds.base import memory
from gpt1_ds.base.files import BLOCK_BYTES, file_sha256
from gpt1_ds.base.memory import CGROUP_2, memory_left
from gpt1_ds.checkpoints.state import FileSeal
from gpt1_ds.checkpoints.writing import FileWriter, HashedFile
from tests.settings.test_deepspeed_json import FOLDER

LARGE = os.urandom(BLOCK_BYTES + 900_000)


def three_writes(file) -> None:
    for part in (b"head", memoryview(LARGE), b"tail"):
        assert file.write(part) == len(part)


@pytest.mark.parametrize("in_background", [True, False])
def test_files_hold_what_was_written_and_their_seals_are_true(tmp_path, in_background):
    writer = FileWriter(tmp_path, in_background)
    writer.add("large", three_writes)
    writer.add("small", lambda file: file.write(b"small"))
    assert len(list(tmp_path.iterdir())) == (0 if in_background else 2)
    writer.start()
    seals = writer.finish()
    assert (tmp_path / "large").read_bytes() == b"head" + LARGE + b"tail" and not writer.busy()
    assert len(seals) == 2
    for path in tmp_path.iterdir():
        assert seals[path.name] == FileSeal(path.stat().st_size, file_sha256(path))


@pytest.mark.parametrize("in_background", [True, False])
@pytest.mark.parametrize(
    "size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES]
)
def test_every_size_around_a_block_is_whole(tmp_path, size, in_background):
    content = (LARGE * 2)[:size]

    def write_content(file) -> None:
        for at in range(0, size, 999_999):
            file.write(content[at : at + 999_999])

    writer = FileWriter(tmp_path, in_background)
    writer.add("file", write_content)
    writer.start()
    assert writer.finish()["file"] == FileSeal(size, file_sha256(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == content


class Cached(io.FileIO):
    """A file without O_DIRECT, which writes at most 1,000,001 bytes at a time."""

    def write(self, data) -> int:
        if fcntl.fcntl(self, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().write(memoryview(data)[:1_000_001])


def test_a_file_system_that_refuses_to_go_past_its_cache_is_written_through_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(io, "FileIO", Cached)
    file = HashedFile(tmp_path / "file")
    three_writes(file.blocks)
    assert file.seal().sha256 == file_sha256(tmp_path / "file") and not file.fault
    assert (tmp_path / "file").read_bytes() == b"head" + LARGE + b"tail"


@pytest.mark.parametrize("in_background", [True, False])
def test_a_file_that_cannot_be_written_is_named_at_the_end(tmp_path, in_background):
    (tmp_path / "taken").write_text("by another")
    writer = FileWriter(tmp_path, in_background)
    for name in ("taken", "free"):
        writer.add(name, lambda file: file.write(b"x"))
    writer.start()
    with pytest.raises(OSError, match="taken: .*exists"):
        writer.finish()
    assert (tmp_path / "taken").read_text() == "by another"


def test_whatever_ends_the_thread_is_a_fault(tmp_path, monkeypatch):
    writer = FileWriter(tmp_path, in_background=True)
    writer.add("one", lambda file: file.write(b"x"))
    monkeypatch.setattr(writer, "_write", None)
    writer.start()
    with pytest.raises(OSError, match="TypeError"):
        writer.finish()


def test_memory_left_is_within_the_machine_and_its_control_group(tmp_path):
    assert 0 < memory_left() < 1e14
    assert memory._group_left(tmp_path, CGROUP_2) == float("inf")
    for name, text in (
        ("max", "1000"),
        ("current", "700"),
        ("stat", "anon 5\ninactive_file 200\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._group_left(tmp_path, CGROUP_2) == 500
    (tmp_path / "memory.max").write_text("max")
    assert memory._group_left(tmp_path, CGROUP_2) == float("inf")


def test_copies_from_a_gpu_go_through_pinned_memory_and_without_crc(ranks, tiny_shards, tmp_path):
    """What a CPU can show of it: torch's options, on a GPU alone, and that such files resume."""
    arguments = str(FOLDER / "zero2_bf16.json"), str(tiny_shards), str(tmp_path)
    for options, same_tensors, resumed in ranks(2).run(
        "tests.support.cases_saves:saved_as_on_a_gpu", *arguments
    ):
        assert options == [(False, True), (True, False)]
        assert same_tensors and resumed


def test_a_write_without_progress_is_named_and_moves_again(tmp_path, monkeypatch):
    may_end, seal = threading.Event(), HashedFile.seal

    def late(file: HashedFile) -> FileSeal:
        assert may_end.wait(60)
        return seal(file)

    monkeypatch.setattr(HashedFile, "seal", late)
    writer = FileWriter(tmp_path, in_background=True)
    writer.add("file", lambda file: file.write(b"content"))
    writer.start()
    assert writer.hanging(30) is None
    assert writer.finish(stall_seconds=0.1) is None and writer.hung == str(tmp_path / "file")
    may_end.set()
    assert writer.finish(stall_seconds=30)["file"].bytes == len(b"content")
    assert writer.hung is None and writer.hanging(0) is None
