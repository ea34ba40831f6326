"""Wait for a limited time, not counting the time during which this process was stopped.

After Ctrl-Z and fg, a breakpoint or a suspended container, the clock shows time in which nothing
ran. So time is counted in short ticks. If a tick took far too long, the process was stopped, and
only the processor time that it used meanwhile counts, since another thread used it.
"""

import asyncio
import time
from typing import Any

_TICK = 0.1  # seconds
_LATE = 0.5  # seconds up to which a tick counts in full, as a busy machine delays it


async def done_within(future: "asyncio.Future[Any]", seconds: float) -> bool:
    """Wait at most `seconds` for `future`; return whether it is done."""
    while seconds > 0 and not future.done():
        started, computed = time.monotonic(), time.process_time()
        await asyncio.wait([future], timeout=min(_TICK, seconds))
        seconds -= _counted(time.monotonic() - started, time.process_time() - computed)
    return future.done()


def _counted(passed: float, computed: float) -> float:
    """Return how many of a tick's `passed` seconds count; the process `computed` for some."""
    return passed if passed < _LATE else min(passed, _TICK + computed)
