"""Run Python that a model wrote, where it can neither reach a network nor change a file, and for a limited time.

    python -I jail.py   (a JSON request on standard input; one JSON line of results on standard output)

Only the standard library is imported: this is run as a program by itself. Namespaces of Linux take the network, the other
processes and every file system but an empty temporary one away from it; see `code.py` for where that cannot be had.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import time

_NEW_MOUNTS, _NEW_USER, _NEW_PROCESSES, _NEW_NETWORK, _NEW_IPC = 0x20000, 0x10000000, 0x20000000, 0x40000000, 0x8000000
_REC, _PRIVATE, _NODEV_NOSUID = 0x4000, 0x40000, 0x6
_SYS_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY = 442, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_OUTPUT = 1 << 20  # bytes of a program's output that are looked at
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    request = json.load(sys.stdin)
    locked = _lock_up(request["folder"]) if request["locked"] else "not asked for"
    if request["locked"] and locked:
        print(json.dumps({"refused": locked}))
        return
    inside = os.fork()  # the first process of the new namespace: when it ends, the kernel ends all that is in there
    if inside == 0:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.chdir(request["folder"])
        print(json.dumps({"passed": [_passes(request, test) for test in request["tests"]]}), flush=True)
        os._exit(0)
    os.waitpid(inside, 0)


def _lock_up(folder: str) -> str:
    """Leave for namespaces of our own; what was refused, or nothing."""
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(_NEW_USER | _NEW_MOUNTS | _NEW_PROCESSES | _NEW_NETWORK | _NEW_IPC):
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    for failed in (
        _LIBC.mount(None, b"/", None, _REC | _PRIVATE, None),
        _LIBC.syscall(_SYS_MOUNT_SETATTR, -100, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes)),
        _LIBC.mount(b"tmpfs", folder.encode(), b"tmpfs", _NODEV_NOSUID, b"size=64m"),
        _LIBC.mount(b"tmpfs", b"/proc", b"tmpfs", _NODEV_NOSUID, b"size=4k"),  # other processes' environments
    ):
        if failed:
            return f"mount: {os.strerror(ctypes.get_errno())}"
    return ""


def _passes(request: dict, test: dict) -> bool:  # type: ignore[type-arg]
    """Whether the program passes one test: asserts after it, or its output for an input."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile(dir=".") as given, tempfile.TemporaryFile(dir=".") as printed:
        given.write(test.get("input", "").encode())
        given.seek(0)
        child = os.fork()
        if child == 0:
            os.close(reader)
            _run(request, test, given.fileno(), printed.fileno(), writer)
        os.close(writer)
        status = _wait(child, request["seconds"])
        reached = os.read(reader, 1) == b"+"
        os.close(reader)
        printed.seek(0)
        output = printed.read(_OUTPUT).decode(errors="replace")
    if "output" in test:
        return status == 0 and output.split() == test["output"].split()
    return reached


def _run(request: dict, test: dict, given: int, printed: int, writer: int) -> None:  # type: ignore[type-arg]
    nothing = os.open(os.devnull, os.O_WRONLY)
    for source, target in ((given, 0), (printed, 1), (nothing, 2)):
        os.dup2(source, target)
    os.setpgid(0, 0)
    _limit(request)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    status = 1
    try:
        names = {"__name__": "__main__"}
        exec(compile(request["program"], "program.py", "exec"), names)
        if "assert" in test:
            exec(compile(test["assert"], "test.py", "exec"), names)
            os.write(writer, b"+")  # a program that ends early does not come here
        status = 0
    except SystemExit as ended:
        status = 0 if ended.code in (None, 0) else 1
    except BaseException:
        pass  # whatever it raised, it failed
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)


def _limit(request: dict) -> None:  # type: ignore[type-arg]
    seconds = int(request["seconds"]) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _wait(child: int, seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return status
        time.sleep(0.002)
    _end_group(child)
    os.kill(child, signal.SIGKILL)  # it may have left its group
    os.waitpid(child, 0)
    return -1


def _end_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
