"""The progress of a build, which rank 0 shows for all ranks."""

import re

from data_prep.building import ranks
from data_prep.building.ranks import Ranks
from gpt1_ds.base import progress
from tests.conftest import ROOT, run
from tests.support.cases_shards import A_LINE_AT_ONCE, assert_plain_lines_of_both_stages, mpirun


def test_into_a_file_a_build_prints_plain_lines(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    monkeypatch.setattr(ranks, "_REPORT_SECONDS", 0)
    with Ranks().progress("tokenising", 8_000_000, tmp_path) as bar:
        bar.add(4_000_000, 1000)
    with Ranks().progress("writing shards", 900, tmp_path, "token") as bar:
        bar.add(450, 450)
    first, *_, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"[\d:]{8} tokenising: 4.0/8.0 MB, [\d,]+ tokens/s, 0 s left", first)
    assert re.fullmatch(r"[\d:]{8} writing shards: token 450/900, [\d,]+ tokens/s, 0 s left", last)


def test_two_ranks_show_one_progress_of_plain_lines(options, tmp_path):
    command = mpirun(2, *options, "--out", str(tmp_path / "out"))
    result = run(*command, timeout_seconds=120, PYTHONPATH=f"{A_LINE_AT_ONCE}:{ROOT}")
    assert result.returncode == 0
    assert_plain_lines_of_both_stages(result.stderr)
