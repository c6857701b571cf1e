"""Figures for TensorBoard."""

from collections.abc import Sequence

import numpy as np


def confusion_figure(classes: Sequence[str], counts: Sequence[Sequence[int]]):
    """A matplotlib figure of a confusion matrix; the color is the share of the row's label."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(2 + 0.5 * len(classes), 1.5 + 0.5 * len(classes)), layout="constrained"
    )
    axes, counts = figure.subplots(), np.asarray(counts)
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.5 * counts[row].sum()
        axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black")
    return figure
