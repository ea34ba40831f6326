"""What a process and its descendants use, and how to end them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROUNDS = 20  # of looking for processes to end


@dataclass(frozen=True)
class Usage:
    """What a process uses together with all its descendants.

    memory: bytes; cpu_seconds: processor time; written: bytes written by those that are alive.
    """

    memory: int
    cpu_seconds: float
    threads: int
    written: int


def usage(root: int, most: int) -> Usage:
    """Return what `root` and its descendants use.

    If their memory exceeds `most` bytes, it is measured again with shared pages counted once.
    """
    found = [process for pid in family(root) if (process := _process(pid))]

    def total(measure: Callable[[psutil.Process], float]) -> float:
        return sum(_measured(process, measure) for process in found)

    memory = total(_resident)
    return Usage(
        memory=int(total(_proportional) if memory > most else memory),
        cpu_seconds=total(lambda process: sum(process.cpu_times()[:4])),
        threads=int(total(psutil.Process.num_threads)),
        written=int(total(_written)),
    )


def family(root: int) -> list[int]:
    """Return the numbers of `root` and all its descendants."""
    if not os.path.exists("/proc/thread-self/children"):
        process = _process(root)
        children = process.children(recursive=True) if process else []
        return [root, *(child.pid for child in children)]
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def end_kept(keeper: int) -> None:
    """Let a keeper end the processes that it keeps, and then itself.

    Only Linux has keepers; elsewhere the process and its descendants are killed.
    """
    if sys.platform != "linux":
        end_descendants(keeper)
        _signal(keeper, signal.SIGKILL)
    else:  # SIGCONT, because a stopped keeper would not handle SIGTERM
        _signal(keeper, signal.SIGTERM)
        _signal(keeper, signal.SIGCONT)


def end_descendants(root: int) -> None:
    """Kill all descendants of `root`, but not `root` itself."""
    for _ in range(_ROUNDS):  # they may start more meanwhile
        if not (found := [pid for pid in family(root)[1:] if _runs(pid)]):
            return
        for pid in found:
            _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    process = _process(pid)
    return process is not None and bool(
        _measured(process, lambda each: each.status() != psutil.STATUS_ZOMBIE)
    )


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _measured(process: psutil.Process, measure: Callable[[psutil.Process], float]) -> float:
    try:
        return measure(process)
    except psutil.Error:  # it has ended, or belongs to another user
        return 0


def _resident(process: psutil.Process) -> float:
    return float(process.memory_info().rss)


def _proportional(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):  # not allowed, or not on this system
        return _resident(process)


def _written(process: psutil.Process) -> float:
    if not hasattr(process, "io_counters"):  # macOS
        return 0
    counted = process.io_counters()
    return float(max(counted.write_bytes, getattr(counted, "write_chars", 0)))
