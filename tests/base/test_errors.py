"""Exit codes, near matches, and which rank says the line."""

import sys

import pytest

from gpt1_ds.base import errors
from gpt1_ds.base.errors import DONE, ConfigError, DataError, StopRequested, command, guard, near


def test_exit_codes():
    classes = (
        "ConfigError",
        "DataError",
        "DivergedError",
        "PeerError",
        "StopRequested",
        "UserError",
    )
    assert [getattr(errors, name).exit_code for name in classes] == [2, 3, 4, 5, 75, 2]
    assert DONE == 0


def test_near_names_one_choice_or_all():
    choices = ["optim", "model", "option"]
    assert near("optm", choices) == "did you mean 'optim'?"
    assert near("zzz", choices) == "choose from: model, optim, option"
    assert near("zzz", []) == "choose from: "


def guarded(monkeypatch, capsys, main, *words: str, **ranks: str) -> tuple[object, str]:
    """Exit code, and what is said on stderr."""
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as end:
        guard(main)
    return end.value.code, capsys.readouterr().err


def failing(error: Exception):
    def main(argv: list[str]) -> None:
        raise error

    return main


def test_an_error_is_one_line(monkeypatch, capsys):
    end = guarded(monkeypatch, capsys, failing(DataError("a\n  b")))
    assert end == (3, "error: a b\n")
    assert guarded(monkeypatch, capsys, failing(StopRequested("now"))) == (
        75,
        "stopped: now\n",
    )


def test_a_command_starts_at_once_only_as_the_main_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "a"])
    seen: list[list[str]] = []
    cli = command(seen.append, "gpt1_ds.train")
    assert seen == []
    with pytest.raises(SystemExit):
        cli()
    assert seen == [["a"]]
    with pytest.raises(SystemExit):
        command(seen.append, "__main__")
    assert seen == [["a"], ["a"]]


def test_codes_of_a_good_end(monkeypatch, capsys):
    assert guarded(monkeypatch, capsys, lambda argv: None) == (0, "")
    assert guarded(monkeypatch, capsys, lambda argv: 7) == (7, "")


def test_the_commands_words_are_passed_on_without_traceback(monkeypatch, capsys):
    seen = []
    guarded(monkeypatch, capsys, seen.extend, "a", "--traceback", "b")
    assert seen == ["a", "b"]
    code, said = guarded(monkeypatch, capsys, failing(ConfigError("x")), "--traceback")
    assert code == 2 and said.startswith("Traceback") and said.endswith("error: x\n")


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"])
def test_rank_0_speaks_for_all(monkeypatch, capsys, name: str):
    shared, own = DataError("x"), DataError("x", of_this_rank=True)
    assert guarded(monkeypatch, capsys, failing(shared), **{name: "0"}) == (3, "error: x\n")
    assert guarded(monkeypatch, capsys, failing(shared), **{name: "1"}) == (3, "")
    assert guarded(monkeypatch, capsys, failing(own), **{name: "1"}) == (3, "error: x\n")


def test_a_reader_that_goes_away_is_no_error(monkeypatch, capfd):
    assert guarded(monkeypatch, capfd, failing(BrokenPipeError())) == (0, "")
