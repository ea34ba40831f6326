"""Limits that a process sets on itself before it calls code that may never return.

On Windows these functions do nothing.
"""

import contextlib
import ctypes
import math
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def limit_memory(size: int) -> None:
    """Limit this process to `size` bytes of data, and stop it from writing core files."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            # Not RLIMIT_AS: GPU libraries reserve far more address space than they use.
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def allow_cpu(seconds: float) -> None:
    """Let the kernel end this process after `seconds` more of processor time."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
        soft_limit = math.ceil(time.process_time() + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (soft_limit, hard_limit))


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
