"""A split of little use never comes without a warning; names that no tar can hold are refused."""

import hashlib
import re
from pathlib import Path

import pytest

from data_prep import build_shards
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.manifest import read_manifest

LONG = " ".join(["a long story of the sea"] * 2000)


def key(text: str) -> int:
    """The smallest of a corpus is held out."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()[:8], "little")


HELD_OUT = next(text for text in (f"{n} {LONG}" for n in range(99)) if key(text) < key("small"))


CASES: dict[str, tuple[list[str], list[str], list[str], str | None]] = {
    # By name: texts, held-out texts, options, and the warning.
    "one document": (["only"], [], [], "no validation text; .*--validation c=PATH"),
    "one document, by its hash": (["only"], [], ["0.9999"], "all its text is validation"),
    "fraction 0": (["one", "two"], [], ["0"], r"no validation text; .*\(now 0\)"),
    "all by their hashes": (["one", "two"], [], ["0.9999"], "all its text is validation"),
    "one huge book": ([HELD_OUT, "small"], [], [], "validation holds 100% of its tokens"),
    "a third of the tokens": ([f"text {n}" for n in "abc"], [], [], "validation holds 3.% of"),
    "most, as the option says": (list("abcdefghij"), [], ["0.9"], "validation holds .*now 0.9"),
    "held out, nothing else": (["same"], ["same"], [], "all its text is validation.*other files"),
    "held out, blank": (["one", "two"], [" \n"], [], "no validation text; .*other files"),
    "held out, and most": (["small"], [LONG], [], "validation holds 100% of its tokens"),
    "held out": (["one", "two", "three"], ["four"], ["0"], None),
    "enough documents": ([f"text number {n}" for n in range(20)], [], [], None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_split_of_little_use_is_said(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    texts, heldout, fraction, warning = CASES[case]
    options = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    for option, folder, books in (("corpus", "in", texts), ("validation", "held", heldout)):
        (tmp_path / folder).mkdir()
        for number, text in enumerate(books):
            (tmp_path / folder / f"{number:02d}.txt").write_text(text)
        options += [f"--{option}", f"c={tmp_path / folder}"] if books else []
    options += ["--validation-fraction", *fraction] if fraction else []
    for _ in ("built", "built before"):
        build_shards.main(options)
        said = capsys.readouterr().err
        assert said.count("\n") == (warning is not None)
        assert warning is None or re.match(f"warning: --corpus c: .*{warning}", said)


def test_a_name_that_no_tar_can_hold_is_refused_before_any_work(
    tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    options = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    for name in ("n" * 76, "n" * 300):
        with pytest.raises(ConfigError, match=f"--corpus {name}: .*at most 75.*shorten it"):
            build_shards.main([*options, "--corpus", f"{name}={tmp_path / 'a.txt'}"])
    for name in ("a/b", "..", "a.b", "a b", "é", "a\n", ""):
        with pytest.raises(ConfigError, match="must be NAME=PATH"):
            build_shards.main([*options, "--corpus", f"{name}={tmp_path / 'a.txt'}"])
    assert not (tmp_path / "out").exists()
    build_shards.main([*options, "--corpus", f"{'n' * 75}={tmp_path / 'a.txt'}"])
    assert list(read_manifest(tmp_path / "out").splits["train"]) == ["n" * 75]
