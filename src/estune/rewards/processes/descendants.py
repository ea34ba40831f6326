"""Measure what a process and its descendants use, and end them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

_MAX_ROUNDS = 20  # how often end_descendants looks for processes


@dataclass(frozen=True)
class Usage:
    """What a process and all its descendants use together.

    memory: bytes.
    cpu_seconds: processor time.
    written: bytes written by the processes that are still running.
    """

    memory: int
    cpu_seconds: float
    threads: int
    written: int


def usage(root: int, max_memory: int) -> Usage:
    """Return what the process `root` and its descendants use.

    The memory is first measured fast, which counts a page once for each process that shares it.
    Only if the result exceeds `max_memory` bytes is it measured again, with shared pages counted
    once.
    """
    processes = [process for pid in family(root) if (process := _process(pid))]

    def total(measure: Callable[[psutil.Process], float]) -> float:
        return sum(_measured(process, measure) for process in processes)

    memory = total(_resident_memory)
    return Usage(
        memory=int(total(_proportional_memory) if memory > max_memory else memory),
        cpu_seconds=total(lambda process: sum(process.cpu_times()[:4])),
        threads=int(total(psutil.Process.num_threads)),
        written=int(total(_written_bytes)),
    )


def family(root: int) -> list[int]:
    """Return the process ids of `root` and all its descendants."""
    if not os.path.exists("/proc/thread-self/children"):
        process = _process(root)
        children = process.children(recursive=True) if process else []
        return [root, *(child.pid for child in children)]
    found = [root]
    for pid in found:  # `found` grows during the loop
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def end_with_descendants(pid: int) -> None:
    """End a process that has a reaper, given the reaper's `pid`, and everything it started.

    On Linux the reaper (reaper.py) does this when it gets SIGTERM. Other systems have no reaper,
    so `pid` is the process itself, which is killed with its descendants.
    """
    if sys.platform != "linux":
        end_descendants(pid)
        _signal(pid, signal.SIGKILL)
    else:
        _signal(pid, signal.SIGTERM)
        _signal(pid, signal.SIGCONT)  # a stopped process would not handle SIGTERM


def end_descendants(root: int) -> None:
    """Kill all descendants of `root`, but not `root` itself."""
    for _ in range(_MAX_ROUNDS):  # they may start further processes before they are killed
        running = [pid for pid in family(root)[1:] if _is_running(pid)]
        if not running:
            return
        for pid in running:
            _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _is_running(pid: int) -> bool:
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
    except psutil.Error:  # the process has ended, or belongs to another user
        return 0


def _resident_memory(process: psutil.Process) -> float:
    return float(process.memory_info().rss)


def _proportional_memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):  # not permitted, or not on this system
        return _resident_memory(process)


def _written_bytes(process: psutil.Process) -> float:
    if not hasattr(process, "io_counters"):  # macOS
        return 0
    counters = process.io_counters()
    return float(max(counters.write_bytes, getattr(counters, "write_chars", 0)))
