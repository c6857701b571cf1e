"""Files written behind the back of training: the same bytes, true seals, faults that are told, memory that is left."""

import pytest

from gpt1_ds import background
from gpt1_ds.background import Files
from gpt1_ds.files import file_sha256


def pieces(file) -> None:
    for piece in (b"head", memoryview(b"x" * 9_000_000), b"tail"):
        assert file.write(piece) == len(piece)


@pytest.mark.parametrize("behind", [True, False])
def test_files_hold_what_was_written_and_their_seals_are_true(tmp_path, behind):
    files = Files(tmp_path, behind)
    files.add("large", pieces)
    files.add("small", lambda file: file.write(b"small"))
    assert len(list(tmp_path.iterdir())) == (0 if behind else 2)
    files.start()
    sealed = files.sealed()
    assert (tmp_path / "large").read_bytes() == b"head" + b"x" * 9_000_000 + b"tail" and not files.busy()
    assert sealed == {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                      for path in tmp_path.iterdir()} and len(sealed) == 2  # fmt: skip


@pytest.mark.parametrize("behind", [True, False])
def test_a_file_that_cannot_be_written_is_told_at_the_end(tmp_path, behind):
    (tmp_path / "taken").write_text("by another")
    files = Files(tmp_path, behind)
    for name in ("taken", "free"):
        files.add(name, lambda file: file.write(b"x"))
    files.start()
    with pytest.raises(OSError, match="taken: .*exists"):
        files.sealed()
    assert (tmp_path / "taken").read_text() == "by another"


def test_whatever_ends_the_thread_is_a_fault(tmp_path, monkeypatch):
    files = Files(tmp_path, behind=True)
    files.add("one", lambda file: file.write(b"x"))
    monkeypatch.setattr(files, "_write", None)
    files.start()
    with pytest.raises(OSError, match="TypeError"):
        files.sealed()


def test_memory_left_is_within_the_machine_and_its_control_group(tmp_path):
    assert 0 < background.memory_left() < 1e14
    names = ("max", "current", "inactive_file")
    assert background._group_left(tmp_path, *names) == float("inf")
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 5\ninactive_file 200\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert background._group_left(tmp_path, *names) == 500
    (tmp_path / "memory.max").write_text("max")
    assert background._group_left(tmp_path, *names) == float("inf")
