"""Ctrl-C and SIGTERM ask a run to stop between members; the step under way is dropped and done again on resume."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether, and by which signal, the run was asked to stop."""

    signal: int | None = None

    def check(self) -> None:
        """Raise what ends the process with the usual status: KeyboardInterrupt (130), or SystemExit(143)."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def graceful() -> Iterator[Stop]:
    """Within the block, the first SIGINT or SIGTERM only sets the flag; a second one acts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
