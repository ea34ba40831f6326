"""A reaper: the parent of one process, which ends everything that this process started.

    python -I -S reaper.py PARENT SCRIPT ARGUMENT…   (PARENT: the process id of the parent)

The reaper acts when its child ends, when its own parent ends, or on SIGTERM. A process can leave
its group by starting a session of its own, but it cannot escape a Linux *subreaper*: when its
parent ends, the kernel makes it a child of the reaper. This module also runs as a program, so it
imports only the standard library.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MAX_WAIT = 10.0  # seconds to wait until killed processes have ended


def fork_under_reaper(parent: int, report: int = -1) -> None:
    """Fork, and return only in the child; the calling process becomes its reaper (Linux only).

    report: a file descriptor to which the reaper writes its own process id and, at the end, the
        child's exit status.
    """
    signals = {signal.SIGTERM, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    reaper = os.getpid()
    if os.getppid() != parent:  # the parent ended before prctl, which thus sends no signal
        os._exit(1)
    child = os.fork()
    if child:
        _run_reaper(child, signals, report)  # does not return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if os.getppid() != reaper:
        os._exit(1)


def _run_reaper(child: int, signals: set[signal.Signals], report: int) -> None:
    """Wait until `child` ends, end everything it started, and exit as it did."""
    _close_other_descriptors(report)
    _write_report(report, os.getpid())
    status = _wait_for(child, signals)
    _end_descendants()
    _write_report(report, os.waitstatus_to_exitcode(status))
    _exit_like(status)


def _close_other_descriptors(report: int) -> None:
    """Close the child's pipes in the reaper, so that they end when the child ends."""
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(devnull, descriptor)
    os.closerange(3, max(3, report))
    os.closerange(max(3, report + 1), 256)


def _write_report(report: int, number: int) -> None:
    if report >= 0:
        with contextlib.suppress(BrokenPipeError):
            os.write(report, b"%d\n" % number)


def _wait_for(child: int, signals: set[signal.Signals]) -> int:
    """Return the wait status of `child`; on SIGTERM, the status of a killed process."""
    while signal.sigwait(signals) != signal.SIGTERM:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    return ended[1]
    return signal.SIGKILL


def _end_descendants() -> None:
    """Kill all descendants, until this process, which the kernel gives all orphans, has none."""
    until = time.monotonic() + _MAX_WAIT
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # no children are left
            return
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in _pids_with_parents():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:  # `found` grows during the loop
        found += children.get(pid, [])
    return found[1:]


def _pids_with_parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # "PID (COMMAND) STATE PARENT …", where COMMAND may contain anything
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])


def _exit_like(status: int) -> None:
    """Exit with the child's exit code, or by the signal that killed the child."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL's handler cannot be set
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def main() -> None:
    parent, script = sys.argv[1:3]
    if sys.platform == "linux":
        fork_under_reaper(int(parent))
    del sys.argv[:2]
    with open(script, encoding="utf-8") as file:
        exec(compile(file.read(), script, "exec"), {"__name__": "__main__", "__file__": script})


if __name__ == "__main__":
    main()
