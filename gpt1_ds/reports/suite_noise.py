"""The tables of a suite that tell differences from noise: means, intervals, comparisons."""

from collections.abc import Sequence
from typing import NamedTuple

from gpt1_ds.reports.suite_sections import Cell, Row, Section, plain

MEANS_NOTE = (
    "Times 100. SD: the standard deviation over seeds. 95 %: the bootstrap interval of the mean, "
    "over seeds and examples; of one seed, over examples alone. Each score is that of the best "
    "epoch of its run, which was chosen on dev. Bold: the best point of a grid by its mean on dev; "
    "as the highest of several means it is a little too high."
)
DIFFERENCES_NOTE = (
    "Times 100. Mean of the first column less mean of the second, with the 95 % bootstrap "
    "interval, paired by seeds and by examples where both have the same. Within noise: the "
    "interval holds 0. p is two-sided and of each comparison by itself: of twenty without any "
    "difference, one has p below .05."
)


class ColumnScore(NamedTuple):
    """The score of a column of the table, over its seeds."""

    row: str
    """TASK, or `TASK SPLIT`."""
    column: str
    seeds: int
    mean: float
    deviation: float | None
    """None for one seed."""
    interval: tuple[float, float]
    is_best: bool = False
    """Whether it is the best point of a grid."""


class Difference(NamedTuple):
    """The mean of the column `first` less that of `second`, on the same examples."""

    row: str
    first: str
    second: str
    seeds: tuple[int, int]
    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if low <= 0 <= high:
            return "within noise"
        # The noise of seeds is not known, and may be the larger one.
        return "beyond noise" if min(self.seeds) > 1 else "beyond noise of the examples; one seed"


class Resampled(NamedTuple):
    """What the bootstrap found in the runs of a suite."""

    scores: Sequence[ColumnScore]
    differences: Sequence[Difference]
    lost: Sequence[str]
    """Runs, or their files, that could not take part, and why: `RUN/FILE: WHY`."""


def noise_sections(found: Resampled) -> list[Section]:
    """The tables of means and of differences, as far as there are any."""
    sections = []
    if found.scores:
        header = ("task", "column", "seeds", "mean", "SD", "95 %")
        sections.append(Section("Means", header, [*map(_mean_row, found.scores)], MEANS_NOTE))
    if found.differences:
        columns = ("task", "first", "second", "difference", "95 %", "p", "so it is")
        rows = [*map(_difference_row, found.differences)]
        sections.append(Section("Differences", columns, rows, DIFFERENCES_NOTE))
    return sections


def _mean_row(score: ColumnScore) -> Row:
    deviation = "" if score.deviation is None else f"{100 * score.deviation:.1f}"
    cells = plain([score.row, score.column, str(score.seeds)])
    cells.append(Cell(f"{100 * score.mean:.1f}", is_bold=score.is_best))
    return [*cells, *plain([deviation, _range(score.interval)])]


def _difference_row(found: Difference) -> Row:
    numbers = (f"{100 * found.difference:+.1f}", _range(found.interval), f"{found.p:.3f}")
    return plain([found.row, found.first, found.second, *numbers, found.verdict])


def _range(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:.1f}..{100 * high:.1f}"
