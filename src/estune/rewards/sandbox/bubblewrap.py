"""bubblewrap: Linux namespaces in which only the interpreter and a folder in memory exist.

The program sees no /proc, no /sys and no network device. All processes that it starts end with the
first process of its namespace, which ends with the process that started the sandbox.
"""

import os
import shutil
from pathlib import Path

from estune.rewards.processes.descendants import end_descendants
from estune.rewards.sandbox import launch
from estune.rewards.sandbox.interface import Limits, Outcome, Unusable
from estune.rewards.sandbox.seccomp import program_filter
from estune.rewards.sandbox.supervise import start, supervise
from estune.rewards.sandbox.working_folder import MAX_FILES

_FOLDER = "/work"  # the working folder inside the sandbox
_NAMESPACES = "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try".split()
_RESTRICTIONS = "--die-with-parent --new-session --cap-drop ALL".split()
_CAPABILITIES = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SYS_ADMIN": 21}


class Bubblewrap:
    """Runs programs under `bwrap`."""

    name = "bubblewrap"

    def __init__(self) -> None:
        if not (bwrap := shutil.which("bwrap")):
            raise Unusable("bubblewrap: bwrap is not installed")
        if not (seccomp := program_filter(on_disk=False)):
            raise Unusable("bubblewrap: no seccomp filter for this architecture")
        self._bwrap, self._seccomp, self._privileged = bwrap, seccomp, _privileged()

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        launcher_input = launch.launcher_input(
            source,
            request,
            limits,
            remount=f"size={limits.disk},nr_inodes={MAX_FILES},mode=1777",
            other_user=self._privileged,
            counted_apart=True,
            seccomp=self._seccomp,
        )
        process = start([self._bwrap, *self._options(limits), "--", *launch.command()])
        # The first process in the namespace is a child of bwrap; all others end with it.
        return supervise(process, launcher_input, limits, end=end_descendants)

    def _options(self, limits: Limits) -> list[str]:
        return [*self._isolation(), *_readable_files(), *_devices(), *_working_folder(limits)]

    def _isolation(self) -> list[str]:
        options = [*_NAMESPACES, *_RESTRICTIONS]
        if self._privileged:
            # Root needs no user namespace: the launcher takes an unused user id instead.
            capabilities = list(_CAPABILITIES)
        else:
            options.append("--unshare-user")
            capabilities = ["CAP_SYS_ADMIN"]
        # The launcher needs these to limit the working folder and to change the user id. Then it
        # gives them up.
        for capability in capabilities:
            options += ["--cap-add", capability]
        return options


def _readable_files() -> list[str]:
    """Show the interpreter and its libraries, but hide installed packages behind empty folders."""
    options = []
    for path in launch.readable():
        options += [*_parent_folders(path), *_bind_read_only(path)]
    for path in launch.hidden():
        options += ["--tmpfs", path, "--remount-ro", path]
    return options


def _devices() -> list[str]:
    options = ["--perms", "0755", "--dir", "/dev"]
    for device in ("null", "zero", "urandom", "random"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return options


def _working_folder(limits: Limits) -> list[str]:
    """Make the working folder, in memory, the only place that the program can write to."""
    return [
        *("--perms", "1777", "--size", str(limits.disk), "--tmpfs", _FOLDER),
        *("--symlink", _FOLDER, "/dev/shm", "--remount-ro", "/", "--chdir", _FOLDER),
        *("--setenv", "HOME", _FOLDER, "--setenv", "TMPDIR", _FOLDER),
    ]


def _parent_folders(path: str) -> list[str]:
    """Create the folders above `path` with read access for all; the real ones may not have it."""
    parents = [str(parent) for parent in reversed(Path(path).parents)][1:]
    return [word for parent in parents for word in ("--perms", "0755", "--dir", parent)]


def _bind_read_only(path: str) -> list[str]:
    if Path(path).is_symlink():
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path]


def _privileged() -> bool:
    """Return whether this process has all of _CAPABILITIES, as root has outside containers."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> number & 1 for number in _CAPABILITIES.values())
