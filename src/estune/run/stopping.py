"""Stop a run on Ctrl-C or SIGTERM between members; a resume repeats the interrupted step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """The signal, if any, that asked the run to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Raise KeyboardInterrupt (status 130) or SystemExit(143) after a signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def graceful() -> Iterator[Stop]:
    """Only record the first SIGINT or SIGTERM in the block; a second one ends the process."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def record(number: int, frame: object) -> None:
        stop.signal = number
        restore()

    for number in before:
        signal.signal(number, record)
    try:
        yield stop
    finally:
        restore()
