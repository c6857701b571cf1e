"""Figures for TensorBoard."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_figure(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> "Figure":
    """A confusion matrix. The color of a cell shows its share of the row."""
    from matplotlib.figure import Figure  # takes a second, so import it only when needed

    side = 0.5 * len(classes)
    figure = Figure(figsize=(2 + side, 1.5 + side), layout="constrained")
    axes = figure.subplots()
    matrix = np.asarray(counts)
    of_label = np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(matrix / of_label, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for (row, column), count in np.ndenumerate(matrix):
        is_dark = count > 0.5 * matrix[row].sum()
        color = "white" if is_dark else "black"
        axes.text(column, row, count, ha="center", va="center", color=color)
    return figure
