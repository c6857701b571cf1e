"""What a resumed run says if its schedule ends at another step than in its last start."""

from collections.abc import Callable
from typing import TypeVar

from gpt1_ds.base.errors import UserError
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.engine.optimizer import lr_at
from gpt1_ds.runs.setup import Started
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

ConfigT = TypeVar("ConfigT", bound=PretrainConfig)


def tell_schedule(
    started: Started, config: ConfigT, total_steps: int, earlier_total: Callable[[ConfigT], int]
) -> None:
    """Say at which step the schedule ends now, and what that means for the next step.

    `earlier_total` tells the steps of the run under the settings of its last start. Call it before
    those are replaced by the ones of this start.
    """
    step = started.state.step
    if not collectives.is_main() or not 0 < step < total_steps:
        return
    try:
        earlier = load(type(config), started.folder / "config.yaml", [])
        then = earlier.schedule.total_steps or earlier_total(earlier)
    except (UserError, OSError):
        return  # nothing to compare with
    now = config.schedule.total_steps or total_steps
    if now == then or config.schedule.kind == "constant":
        return
    before = lr_at(step, then, earlier.optim.lr, earlier.schedule)
    rate = lr_at(step, now, config.optim.lr, config.schedule)
    say(
        f"schedule: the {config.schedule.kind} now ends at step {now} and not at {then}, so the "
        f"rate of step {step + 1} is {rate:.3g} and not {before:.3g}; schedule.total_steps sets "
        "its end"
    )
