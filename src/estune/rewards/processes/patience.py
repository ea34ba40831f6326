"""Waiting for a limited time, in which the time that this process was stopped does not count.

After Ctrl-Z and fg, a breakpoint or a suspended container the clock has moved on, but a reward
function has not had that time, or its answer has not been read. So patience runs out in short ticks.
A tick that took much longer than it should was spent stopped, unless this process computed
meanwhile: then one of its threads kept this one waiting.
"""

import asyncio
import time
from typing import Any

_TICK = 0.1  # seconds
_LATE = 0.5  # seconds after which a tick is late; on a busy machine it may be a little


async def done_within(future: "asyncio.Future[Any]", seconds: float) -> bool:
    """Wait for `future`, `seconds` at most; whether it is done."""
    while seconds > 0 and not future.done():
        started, computed = time.monotonic(), time.process_time()
        await asyncio.wait([future], timeout=min(_TICK, seconds))
        seconds -= _counted(time.monotonic() - started, time.process_time() - computed)
    return future.done()


def _counted(passed: float, computed: float) -> float:
    """How many of the seconds that `passed` in a tick count; it `computed` for some of them."""
    return passed if passed < _LATE else min(passed, _TICK + computed)
