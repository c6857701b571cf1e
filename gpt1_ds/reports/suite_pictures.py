"""Pictures of a suite's scores: medians by epoch, by layer or by step."""

import io
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[float, list[float]]
"""Scores of all seeds, by epoch, number of layers or step."""
Medians = Mapping[float, float]
"""Of these scores, times 100."""
COLORS = {
    "light": ("#2563a8", "#bf4c1c", "#1a7a53", "#8a4fb0", "#8c6a00", "#c2407a", "#0d7887"),
    "dark": ("#6fb1f5", "#f59567", "#6fd0a0", "#c79bec", "#e3c24f", "#f28ab6", "#62cddb"),
}
"""As in templates/page.css."""
GROUNDS = {"light": ("#ffffff", "#1d1f23"), "dark": ("#1c1f24", "#e7e8ea")}
"""Colours of the background and of the text."""
MARKERS = "osD^vPX*"
OF_LSTM = " LSTM"
"""Ends the name of a curve of the LSTM: dotted, in the colour of the same task's other curve."""
MOST_TICKS = 12
LEAST_SPAN = 10
"""The vertical axis shows at least so much of the scores times 100."""


def picture(
    title: str, unit: str, curves: Mapping[str, Scores], chance: Mapping[str, float], scheme: str
) -> bytes:
    """A PNG in the colour scheme `light` or `dark`.

    It shows how far the scores are above `chance`, the score without a model, where that is known.
    """
    written = io.BytesIO()
    draw_curves(title, unit, curves, chance, scheme).savefig(written, format="png", dpi=130)
    return written.getvalue()


def draw_curves(
    title: str, unit: str, curves: Mapping[str, Scores], chance: Mapping[str, float], scheme: str
) -> "Figure":
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ground, ink = GROUNDS[scheme]
    colors: dict[str, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
    )
    with rc_context({**colors, "axes.facecolor": ground, "figure.facecolor": ground}):
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        axes = figure.subplots()
        shown = {
            name: _above(curve, chance.get(_task(name), 0.0)) for name, curve in curves.items()
        }
        _draw(axes, shown, scheme)
        places = sorted(set().union(*curves.values()))
        _set_horizontal(axes, places, is_log=bool(chance))
        _set_vertical(axes, shown, has_zero=bool(chance))
        axes.set(xlabel=unit, ylabel="score x 100")
        if chance:
            axes.axhline(0, ls="--", lw=0.8, color=ink)
            axes.set_ylabel("score x 100, above the commonest answer")
        axes.set_title(title, wrap=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _task(name: str) -> str:
    return name.removesuffix(OF_LSTM)


def _above(curve: Scores, chance: float) -> Medians:
    """How far the medians of a curve are above `chance`."""
    return {place: 100 * (median(curve[place]) - chance) for place in sorted(curve)}


def _draw(axes: "Axes", curves: Mapping[str, Medians], scheme: str) -> None:
    colors = COLORS[scheme]
    tasks = [*dict.fromkeys(map(_task, curves))]
    for name, curve in curves.items():
        number = tasks.index(_task(name))
        color, marker = colors[number % len(colors)], MARKERS[number % len(MARKERS)]
        line = ":" if name.endswith(OF_LSTM) else "-"
        axes.plot(
            [*curve], [*curve.values()], ls=line, marker=marker, ms=5, color=color, label=name
        )


def _set_horizontal(axes: "Axes", places: Sequence[float], is_log: bool) -> None:
    """Ticks where there are scores, if they fit; a single place gets half a unit at each side."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator, StrMethodFormatter

    if is_log and len(places) > 1 and places[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return
    if len(places) == 1:
        axes.set_xlim(places[0] - 0.5, places[0] + 0.5)
    if len(places) <= MOST_TICKS and all(place == round(place) for place in places):
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    else:
        locator = AutoLocator()
        locator.set_params(integer=True)
        axes.xaxis.set_major_locator(locator)


def _set_vertical(axes: "Axes", curves: Mapping[str, Medians], has_zero: bool) -> None:
    """A few equal scores do not fill the axis, and it does not go past 100."""
    shown = [0.0] if has_zero else []
    for curve in curves.values():
        shown += curve.values()
    low, high = min(shown), max(shown)
    span = max(LEAST_SPAN, high - low)
    top = (low + high + span) / 2 + 0.05 * span
    if high <= 100:
        top = min(top, 101)
    axes.set_ylim(min(low - 0.05 * span, top - 1.1 * span), top)
