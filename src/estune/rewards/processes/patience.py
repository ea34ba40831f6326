"""Wait for a limited time, not counting the time during which this process was stopped.

After Ctrl-Z and fg, a breakpoint or a suspended container, the clock includes time in which nothing
ran. So the wait is divided into short ticks. A tick that took far too long means that either the
process was stopped or another thread of it was computing. Of such a tick, only the processor time
that the process used is counted.
"""

import asyncio
import time
from typing import Any

_TICK = 0.1  # seconds
_LATE = 0.5  # seconds; a shorter tick counts in full, because a busy machine may delay it


async def done_within(future: "asyncio.Future[Any]", seconds: float) -> bool:
    """Wait at most `seconds` for `future`; return whether it is done."""
    while seconds > 0 and not future.done():
        wall_before, cpu_before = time.monotonic(), time.process_time()
        await asyncio.wait([future], timeout=min(_TICK, seconds))
        seconds -= _counted(time.monotonic() - wall_before, time.process_time() - cpu_before)
    return future.done()


def _counted(wall: float, cpu: float) -> float:
    """Return how many seconds of a tick count, given its wall time and the process's CPU time."""
    return wall if wall < _LATE else min(wall, _TICK + cpu)
