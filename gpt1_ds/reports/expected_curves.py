"""The loss that a shipped configuration had at given steps: configs/expected/NAME.yaml.

A run is compared if it has the settings of that configuration on the same shards, whatever its
seed, its number of ranks and its precision.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import yaml

from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.run_files import RunFiles, with_number
from gpt1_ds.settings.loading import load, to_dict
from gpt1_ds.settings.sections import PretrainConfig
from gpt1_ds.settings.shipped import CONFIGS

EXPECTED = CONFIGS / "expected"
COMPARED = {
    "model": (),
    "optim": (),
    "schedule": (),
    "fidelity": (),
    "train": ("max_steps", "epochs", "global_batch", "batch_warmup_steps", "grad_clip"),
    "eval": ("batches",),
}
"""The settings that the loss depends on; of a section without keys all of them."""


class Point(NamedTuple):
    """The loss, in nats, of a validation at `step`."""

    step: int
    loss: float
    tolerance: float


class ExpectedCurve(NamedTuple):
    name: str
    """Of the configuration."""
    corpus: str
    points: list[Point]
    source: str
    """What was run, for the reader."""


@cache
def _shipped() -> list[tuple[str, Json, Json]]:
    """Name, content and settings of each configuration that has expected curves."""
    found = []
    for path in sorted(EXPECTED.glob("*.yaml")):
        config = load(PretrainConfig, CONFIGS / path.name, [])
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found.append((path.stem, content, to_dict(config)))
    return found


def curves_of(run: RunFiles) -> list[ExpectedCurve]:
    """The expected curves of a run, up to its last step; none for another configuration or data."""
    curves = []
    last = max((record["step"] for record in run.valid), default=-1)
    for name, content, settings in _shipped():
        if run.state.get("data") != content["data"] or not _is_like(run.config, settings):
            continue
        for corpus, losses in content["losses"].items():
            points = [Point(step, *loss) for step, loss in losses.items() if step <= last]
            curves.append(ExpectedCurve(name, corpus, points, content["source"]))
    return curves


def _is_like(config: Json, settings: Json) -> bool:
    """Whether a run's settings are these; a setting that its version did not have is not other."""
    for section, keys in COMPARED.items():
        of_run = config.get(section, {})
        for key in keys or settings[section]:
            if of_run.get(key, settings[section][key]) != settings[section][key]:
                return False
    return True


def compared(run: RunFiles) -> Iterator[tuple[ExpectedCurve, Point, float]]:
    """Each expected curve with its last point that the run has a loss for, and that loss."""
    for curve in curves_of(run):
        losses = {r["step"]: r["loss"] for r in with_number(run.valid_of(curve.corpus), "loss")}
        both = [point for point in curve.points if point.step in losses]
        if both:
            yield curve, both[-1], losses[both[-1].step]
