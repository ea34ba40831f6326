"""What a process and its descendants take, and their end."""

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
    """Bytes of memory, seconds of processor time, threads and bytes written of a process with all
    that descends from it.
    """

    memory: int
    cpu_seconds: float
    threads: int
    written: int  # by those that are alive


def usage(root: int, enough: int) -> Usage:
    """What `root` and its descendants take. Pages that they share are counted once where it decides
    whether it is `enough`.
    """
    found = [process for pid in family(root) if (process := _process(pid))]
    memory = sum(_of(each, _resident) for each in found)
    if memory > enough:
        memory = sum(_of(each, _proportional) for each in found)
    return Usage(
        int(memory),
        sum(_of(each, _cpu_seconds) for each in found),
        int(sum(_of(each, psutil.Process.num_threads) for each in found)),
        int(sum(_of(each, _written) for each in found)),
    )


def family(root: int) -> list[int]:
    """`root` and all that descends from it."""
    if not os.path.exists("/proc/thread-self/children"):
        return _family_elsewhere(root)
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def end_kept(keeper: int) -> None:
    """Have a keeper end all that it keeps, and then itself. Elsewhere than on Linux there is none:
    the processes are killed.
    """
    if sys.platform != "linux":
        end_descendants(keeper)
        _signal(keeper, signal.SIGKILL)
    else:  # neither killed nor stopped, so that it does its work if this process is killed meanwhile
        _signal(keeper, signal.SIGTERM)
        _signal(keeper, signal.SIGCONT)


def end_descendants(root: int) -> None:
    """SIGKILL to all that descends from `root`, but not to itself."""
    for _ in range(_ROUNDS):  # they may start some meanwhile
        if not (found := [pid for pid in family(root)[1:] if _runs(pid)]):
            return
        for pid in found:
            _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    process = _process(pid)
    if process is None:
        return False
    return _of(process, lambda each: each.status() != psutil.STATUS_ZOMBIE) > 0


def _family_elsewhere(root: int) -> list[int]:
    process = _process(root)
    return [root, *(child.pid for child in process.children(recursive=True))] if process else []


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _of(process: psutil.Process, measure: Callable[[psutil.Process], float]) -> float:
    try:
        return measure(process)
    except psutil.Error:  # it ended, or may not be looked at
        return 0


def _resident(process: psutil.Process) -> float:
    return float(process.memory_info().rss)


def _proportional(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):  # not allowed, or not on this system
        return _resident(process)


def _cpu_seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:4]))


def _written(process: psutil.Process) -> float:
    if not hasattr(process, "io_counters"):  # macOS
        return 0
    counted = process.io_counters()
    return float(max(counted.write_bytes, getattr(counted, "write_chars", 0)))
