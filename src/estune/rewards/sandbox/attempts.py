"""What no program may do in a sandbox: `proof.py` runs this one inside, with the baits as JSON.

An attempt raises if the sandbox stops it, and does no harm if not. The names of those that succeed
are printed, one per line, then "done". This program imports only the standard library, and nothing
imports it.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_FSOPEN, _MOUNT_SETATTR = 430, 442  # system calls
_NEW_USER, _NEW_MOUNTS, _PRIVATE, _ATTACH = 0x10000000, 0x20000, 0x40000, 16
_DENIALS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH, errno.ENOSPC)
Bait = dict[str, Any]
_WITHIN = 0.2  # seconds for a connection


class Denied(Exception):
    """An attempt failed without an error of its own."""


def main() -> None:
    bait = json.load(sys.stdin)
    for name, attempt in ATTEMPTS.items():
        with contextlib.suppress(Exception):
            attempt(bait)
            print(name)
    print("done", flush=True)


def _write(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def _read_home(bait: Bait) -> None:
    _any(_read, bait["home"])


def _write_kernel(bait: Bait) -> None:
    _any(
        lambda name: os.close(os.open(name, os.O_WRONLY)),
        ("/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper"),
    )


def _change_attributes(bait: Bait) -> None:
    path = bait["file"]
    changes = (
        lambda: os.chmod(path, 0o777),
        lambda: os.utime(path, (1, 1)),
        lambda: os.setxattr(path, "user.x", b"x"),
    )
    _any(lambda change: change(), changes)


def _any(attempt: Callable[[Any], object], items: Iterable[Any]) -> None:
    for item in items:
        with contextlib.suppress(OSError):
            attempt(item)
            return
    raise Denied


def _connect(kind: int, how: int, address: Any) -> None:
    with socket.socket(kind, how) as made:
        made.settimeout(_WITHIN)
        made.connect(address)
        made.send(b"x")


def _signal(bait: Bait) -> None:
    os.kill(_outside(bait), 15)
    raise Denied  # the bait shows whether it arrived: in here the number may be another process's


def _limit_outside(bait: Bait) -> None:
    resource.prlimit(_outside(bait), resource.RLIMIT_NOFILE, (16, 16))


def _outside(bait: Bait) -> int:
    number: int = bait["process"]
    if number == os.getpid():
        raise Denied
    return number


def _mount(bait: Bait) -> None:
    """Make calls that change nothing, but that only a process allowed to mount can begin."""
    attributes = (ctypes.c_uint64 * 4)()
    calls = (
        lambda: _LIBC.mount(None, b".", None, _PRIVATE, None),
        lambda: _LIBC.syscall(_FSOPEN, b"tmpfs", 0),
        lambda: _LIBC.syscall(_MOUNT_SETATTR, -100, b".", 0, attributes, ctypes.sizeof(attributes)),
    )
    _any(_allowed, calls)


def _unshare(bait: Bait) -> None:
    _any(_allowed, [lambda: _LIBC.unshare(_NEW_MOUNTS), lambda: _LIBC.unshare(_NEW_USER)])


def _trace(bait: Bait) -> None:
    _allowed(lambda: _LIBC.ptrace(_ATTACH, bait["process"], None, None))


def _allowed(call: Callable[[], int]) -> None:
    """Raise OSError if `call` was denied; any other error shows that it would have been allowed."""
    if call() < 0 and ctypes.get_errno() in _DENIALS:
        raise OSError(ctypes.get_errno(), "denied")


def _keep_a_descriptor(bait: Bait) -> None:
    _any(os.fstat, range(3, 64))


ATTEMPTS: dict[str, Callable[[Bait], object]] = {
    "write a file outside": lambda bait: _write(bait["file"]),
    "make a file outside": lambda bait: _write(bait["new"]),
    "change the attributes of a file outside": _change_attributes,
    "write a setting of the kernel": _write_kernel,
    "read a file outside": lambda bait: _read(bait["file"]),
    "read a file in the user's home": _read_home,
    "read another process's environment": lambda bait: _read(f"/proc/{bait['process']}/environ"),
    "use an open file of the trainer": _keep_a_descriptor,
    "connect by TCP": lambda bait: _connect(
        socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", bait["tcp"])
    ),
    "send by UDP": lambda bait: _connect(
        socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", bait["udp"])
    ),
    "connect to a unix socket": lambda bait: _connect(
        socket.AF_UNIX, socket.SOCK_STREAM, bait["unix"]
    ),
    "connect to an abstract unix socket": lambda bait: _connect(
        socket.AF_UNIX, socket.SOCK_STREAM, bait["abstract"]
    ),
    "signal a process outside": _signal,
    "limit a process outside": _limit_outside,
    "trace a process outside": _trace,
    "mount something": _mount,
    "make a namespace of its own": _unshare,
}

if __name__ == "__main__":
    main()
