"""How a sandbox starts Python: the interpreter, its libraries, and the launcher's input."""

import marshal
import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

from estune.rewards.sandbox.interface import Limits

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_OPEN_FILES = 64
_BASE = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # of a virtual environment
_SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/etc/ld.so.cache")


def interpreter() -> str:
    """Return this interpreter's executable, past the links of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def readable() -> tuple[str, ...]:
    """Return the paths that a program must read: the interpreter and its libraries."""
    standard = [sysconfig.get_path(name, vars=_BASE) for name in ("stdlib", "platstdlib")]
    own = [interpreter(), str(Path(sys.base_prefix, "lib")), *standard]
    found = [path for path in dict.fromkeys([*_SYSTEM, *own]) if os.path.exists(path)]
    return tuple(path for path in found if not any(_within(path, other) for other in found))


def _within(path: str, folder: str) -> bool:
    return path != folder and Path(path).is_relative_to(folder)


@cache
def hidden() -> tuple[str, ...]:
    """Return the folders of installed packages, which lie inside `readable` ones."""
    installed = [sysconfig.get_path(name, vars=_BASE) for name in ("purelib", "platlib")]
    return tuple(path for path in dict.fromkeys(installed) if os.path.isdir(path))


@cache
def command() -> list[str]:
    """Return the command of the launcher, isolated and without installed packages."""
    return [interpreter(), "-I", "-S", "-c", Path(LAUNCHER).read_text()]


def launcher_input(
    source: str,
    request: bytes,
    limits: Limits,
    *,
    folder: str = "",
    remount: str = "",
    other_user: bool = False,
    counted_apart: bool = False,
    seccomp: bytes = b"",
) -> bytes:
    """Return the launcher's standard input: its job, then the program's own input.

    folder: where the program works, if the launcher has to go there.
    remount: options with which to mount the working folder again.
    other_user: give up the user id.
    counted_apart: the kernel does not count the user's other processes with the program's.
    seccomp: a filter; with it, capabilities are given up too.
    """
    job = {
        "source": source,
        "folder": folder,
        "remount": remount,
        "other_user": other_user,
        "filter": seccomp,
        "rlimits": _resource_limits(limits, counted_apart),
    }
    data = marshal.dumps(job)
    return len(data).to_bytes(8, "little") + data + request


def _resource_limits(limits: Limits, counted_apart: bool) -> list[tuple[str, int]]:
    processes = [("RLIMIT_NPROC", limits.processes)] if counted_apart else []
    return [
        *processes,
        ("RLIMIT_CPU", int(limits.cpu_seconds) + 1),
        ("RLIMIT_AS", limits.memory),
        ("RLIMIT_FSIZE", limits.disk),
        ("RLIMIT_NOFILE", _OPEN_FILES),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_CORE", 0),
    ]
