"""The first program inside every sandbox: it gives up its remaining rights, then runs the model's.

It runs as `python -I -S -c <this text>`, so it imports only the standard library, and little of
that. Standard input starts with its job (launch.launcher_input); the rest is for the model's
program.
"""

import builtins
import ctypes
import marshal
import os
import resource
import site
import sys
import types

_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 22, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAPABILITY_VERSION_3 = 0x20080522
_REMOUNT_NOSUID_NODEV = 0x20 | 0x2 | 0x4
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    job = marshal.loads(_exactly(int.from_bytes(_exactly(8), "little")))
    if job["folder"]:
        os.chdir(job["folder"])
    if job["remount"]:
        _checked(
            _LIBC.mount(b"none", b".", None, _REMOUNT_NOSUID_NODEV, job["remount"].encode()),
            "mount",
        )
    for name, value in job["rlimits"]:
        _limit(name, value)
    if job["other_user"]:
        _become_unused_user()
    if job["filter"]:
        give_up_capabilities()
        _install_filter(job["filter"])
    _run(job["source"])


def _limit(name: str, value: int) -> None:
    if hasattr(resource, name):  # macOS has fewer
        kind = getattr(resource, name)
        hard_limit = resource.getrlimit(kind)[1]
        value = value if hard_limit == resource.RLIM_INFINITY else min(value, hard_limit)
        resource.setrlimit(kind, (value, value))


def _exactly(size: int) -> bytes:
    """Read exactly `size` bytes from standard input and leave the rest for the program."""
    data = bytearray()
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def _become_unused_user() -> None:
    """Take a user id that no other process has.

    Otherwise a program could signal other processes of the user, and the kernel would count these
    against the program's limit on processes.
    """
    os.setgroups([])
    for identity in ((1 << 30) + int.from_bytes(os.urandom(3), "little"), 65534):
        try:
            os.setresgid(identity, identity, identity)
            os.setresuid(identity, identity, identity)
            return
        except OSError:  # in a container that maps few ids, only nobody (65534) exists
            continue
    raise PermissionError("no other user id")


def give_up_capabilities() -> None:
    """Give up the rights of root, for this process and all that it starts."""
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _install_filter(instructions: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    _checked(
        _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp"
    )


def _checked(failed: int, what: str) -> None:
    """Raise OSError if a function of the C library returned a nonzero value."""
    if failed:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _run(source: str) -> None:
    site.setquit()
    sys.argv[:] = ["program.py"]
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    exec(compile(source, "program.py", "exec"), module.__dict__)


if __name__ == "__main__":
    main()
