"""What a sandbox needs to start Python: the interpreter, its libraries, the launcher's input."""

import marshal
import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

from estune.rewards.sandbox.interface import Limits

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_MAX_OPEN_FILES = 64
# The installation of Python on which a virtual environment is built.
_BASE = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/etc/ld.so.cache")


def interpreter() -> str:
    """Return the interpreter's executable, with the links of a virtual environment resolved."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def readable() -> tuple[str, ...]:
    """Return the paths that a program needs to read: the interpreter and its libraries."""
    standard = [sysconfig.get_path(name, vars=_BASE) for name in ("stdlib", "platstdlib")]
    own = [interpreter(), str(Path(sys.base_prefix, "lib")), *standard]
    found = [path for path in dict.fromkeys([*_SYSTEM_LIBRARIES, *own]) if os.path.exists(path)]
    return tuple(path for path in found if not any(_within(path, other) for other in found))


def _within(path: str, folder: str) -> bool:
    return path != folder and Path(path).is_relative_to(folder)


@cache
def hidden() -> tuple[str, ...]:
    """Return the folders of installed packages, which lie inside folders of `readable`."""
    installed = [sysconfig.get_path(name, vars=_BASE) for name in ("purelib", "platlib")]
    return tuple(path for path in dict.fromkeys(installed) if os.path.isdir(path))


@cache
def command() -> list[str]:
    """Return the command that starts the launcher, without installed packages or user settings."""
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

    folder: the folder to change to, if the sandbox does not start in the working folder.
    remount: options with which the launcher remounts the working folder, to limit its size.
    other_user: whether the launcher changes to an unused user id.
    counted_apart: whether the kernel counts the program's processes apart from the user's other
        ones, so that RLIMIT_NPROC can limit them.
    seccomp: a filter of system calls; with it, the launcher gives up capabilities too.
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
        ("RLIMIT_NOFILE", _MAX_OPEN_FILES),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_CORE", 0),
    ]
