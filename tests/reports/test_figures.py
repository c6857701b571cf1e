"""The figure of a confusion: its size, its colours and its labels."""

from gpt1_ds.reports.figures import confusion_figure


def test_the_figure_of_a_confusion():
    figure = confusion_figure(
        ("a", "b", "c", "d"), [[5, 3, 1, 1], [6, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]
    )
    assert figure.get_size_inches().tolist() == [4.0, 3.5]
    axes = figure.axes[0]
    image = axes.images[0]
    assert image.get_array().tolist() == [
        [0.5, 0.3, 0.1, 0.1],
        [0.6, 0.4, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 1.0],
    ]
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    white = [
        (*map(int, text.get_position()), text.get_text())
        for text in axes.texts
        if text.get_color() == "white"
    ]
    # (column, row, count) of the cells with more than half of their row.
    assert white == [(0, 1, "6"), (3, 3, "2")]
    assert [label.get_rotation() for label in axes.get_xticklabels()] == [90.0] * 4
