"""Attempt everything that a program in a sandbox must not be able to do.

proof.py runs this program inside the sandbox. Standard input is JSON with the locations of the
baits (baits.py). An attempt raises an exception if the sandbox stops it, and does no harm if it
succeeds. The program prints the name of each attempt that succeeds, one per line, and then "done".
It imports only the standard library, and nothing imports it.
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
_FSOPEN, _MOUNT_SETATTR = 430, 442  # numbers of system calls
_CLONE_NEWUSER, _CLONE_NEWNS, _MS_PRIVATE, _PTRACE_ATTACH = 0x10000000, 0x20000, 0x40000, 16
_DENIALS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH, errno.ENOSPC)
_CONNECT_SECONDS = 0.2
Bait = dict[str, Any]


class Denied(Exception):
    """An attempt failed, but no system call raised an error that says so."""


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
    """Return once `attempt` succeeds for one of `items`. Raises Denied if it fails for all."""
    for item in items:
        with contextlib.suppress(OSError):
            attempt(item)
            return
    raise Denied


def _connect(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as client:
        client.settimeout(_CONNECT_SECONDS)
        client.connect(address)
        client.send(b"x")


def _signal(bait: Bait) -> None:
    os.kill(_outside_pid(bait), 15)
    # In the sandbox this id may belong to another process, so success here proves nothing.
    # Baits.touched checks whether the process outside got the signal.
    raise Denied


def _limit_outside(bait: Bait) -> None:
    resource.prlimit(_outside_pid(bait), resource.RLIMIT_NOFILE, (16, 16))


def _outside_pid(bait: Bait) -> int:
    """Return the process id of the bait. Raises Denied if this process has the same id."""
    pid: int = bait["process"]
    if pid == os.getpid():
        raise Denied
    return pid


def _mount(bait: Bait) -> None:
    """Make calls that change nothing, but that the kernel denies to processes without the right."""
    attributes = (ctypes.c_uint64 * 4)()
    calls = (
        lambda: _LIBC.mount(None, b".", None, _MS_PRIVATE, None),
        lambda: _LIBC.syscall(_FSOPEN, b"tmpfs", 0),
        lambda: _LIBC.syscall(_MOUNT_SETATTR, -100, b".", 0, attributes, ctypes.sizeof(attributes)),
    )
    _any(_raise_if_denied, calls)


def _unshare(bait: Bait) -> None:
    _any(
        _raise_if_denied,
        [lambda: _LIBC.unshare(_CLONE_NEWNS), lambda: _LIBC.unshare(_CLONE_NEWUSER)],
    )


def _trace(bait: Bait) -> None:
    _raise_if_denied(lambda: _LIBC.ptrace(_PTRACE_ATTACH, bait["process"], None, None))


def _raise_if_denied(call: Callable[[], int]) -> None:
    """Raise OSError if the kernel or the sandbox denies `call`.

    Any other error means that the sandbox would have allowed the call with better arguments.
    """
    if call() < 0 and ctypes.get_errno() in _DENIALS:
        raise OSError(ctypes.get_errno(), "denied")


def _use_inherited_descriptor(bait: Bait) -> None:
    _any(os.fstat, range(3, 64))


ATTEMPTS: dict[str, Callable[[Bait], object]] = {
    "write a file outside": lambda bait: _write(bait["file"]),
    "make a file outside": lambda bait: _write(bait["new"]),
    "change the attributes of a file outside": _change_attributes,
    "write a setting of the kernel": _write_kernel,
    "read a file outside": lambda bait: _read(bait["file"]),
    "read a file in the user's home": _read_home,
    "read another process's environment": lambda bait: _read(f"/proc/{bait['process']}/environ"),
    "use an open file of the trainer": _use_inherited_descriptor,
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
