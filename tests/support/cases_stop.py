"""Functions that ranks run for tests of the stop flag."""

import signal

from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.preemption import SIGNALS, StopFlag


def answers(calls: int, asked: int, unsure: list[int]) -> list[bool]:
    """The answers of `calls` calls; rank 1 is asked to stop just before number `asked`.

    Rank 1 is not sure of another step at the calls `unsure`.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    flag = StopFlag()
    on_rank_1 = collectives.rank() == 1
    found = []
    try:
        for call in range(calls):
            if on_rank_1 and call == asked:
                flag.request("test")
            flag.is_sure = lambda call=call: not (on_rank_1 and call in unsure)
            found.append(flag.agreed())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return found
