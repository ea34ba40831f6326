"""Keep a process: when it ends, or its parent does, end it with everything that it started.

    python -I -S keeper.py PARENT SCRIPT ARGUMENT…   (PARENT: the number of the parent process)

A process can leave its group by moving to a session of its own, but it cannot leave a *subreaper*:
when its parent ends, the kernel makes it a child of the keeper. This module also runs as a program,
so it imports only the standard library.
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
_PATIENCE = 10.0  # seconds for killed processes to end


def keep(parent: int, report: int = -1) -> None:
    """Return in a child of this process, which itself becomes the child's keeper (Linux only).

    report: a descriptor to which the keeper writes its process number and, in the end, the child's
    exit status.
    """
    signals = {signal.SIGTERM, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1)
    control(_PR_SET_PDEATHSIG, signal.SIGTERM)
    keeper = os.getpid()
    if os.getppid() != parent:  # the parent has ended already
        os._exit(1)
    child = os.fork()
    if child:
        _close_pipes(report)
        _report(report, keeper)
        status = _wait(child, signals)
        _end_all()
        _report(report, os.waitstatus_to_exitcode(status))
        _end_like(status)
    control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if os.getppid() != keeper:
        os._exit(1)


def _close_pipes(kept: int) -> None:
    """Close the child's pipes here, so that their other ends see when the child ends."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.closerange(3, max(3, kept))
    os.closerange(max(3, kept + 1), 256)


def _report(report: int, number: int) -> None:
    if report >= 0:
        with contextlib.suppress(BrokenPipeError):
            os.write(report, b"%d\n" % number)


def _wait(child: int, signals: set[signal.Signals]) -> int:
    """Return the child's wait status, or that of a killed process if this one is asked to end."""
    while signal.sigwait(signals) != signal.SIGTERM:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    return ended[1]
    return signal.SIGKILL


def _end_all() -> None:
    """Kill all descendants. Orphans become children of this process, until it has none."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for process in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for process, parent in _parents():
        children.setdefault(parent, []).append(process)
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found[1:]


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])


def _end_like(status: int) -> None:
    """End in the way in which the child ended."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def main() -> None:
    parent, script = sys.argv[1:3]
    if sys.platform == "linux":
        keep(int(parent))
    del sys.argv[:2]
    with open(script, encoding="utf-8") as file:
        exec(compile(file.read(), script, "exec"), {"__name__": "__main__", "__file__": script})


if __name__ == "__main__":
    main()
