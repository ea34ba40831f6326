"""bubblewrap: Linux namespaces that hold nothing but the interpreter and a folder in memory.

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
from estune.rewards.sandbox.working_folder import MOST_FILES

_FOLDER = "/work"
_NAMESPACES = "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try".split()
_NO_RIGHTS = "--die-with-parent --new-session --cap-drop ALL".split()
_RIGHTS = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SYS_ADMIN": 21}


class Bubblewrap:
    """Runs programs under `bwrap`."""

    name = "bubblewrap"

    def __init__(self) -> None:
        if not (found := shutil.which("bwrap")):
            raise Unusable("bubblewrap: bwrap is not installed")
        if not (seccomp := program_filter(on_disk=False)):
            raise Unusable("bubblewrap: no seccomp filter for this architecture")
        self._bwrap, self._seccomp, self._privileged = found, seccomp, _privileged()

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        given = launch.launcher_input(
            source,
            request,
            limits,
            remount=f"size={limits.disk},nr_inodes={MOST_FILES},mode=1777",
            other_user=self._privileged,
            counted_apart=True,
            seccomp=self._seccomp,
        )
        process = start([self._bwrap, *self._options(limits), "--", *launch.command()])
        # The first process inside takes all others along.
        return supervise(process, given, limits, end=end_descendants)

    def _options(self, limits: Limits) -> list[str]:
        # Root's programs take a user id of their own; a user's are alone in a user namespace.
        options = [*_NAMESPACES, *([] if self._privileged else ["--unshare-user"]), *_NO_RIGHTS]
        for right in _RIGHTS if self._privileged else ["CAP_SYS_ADMIN"]:
            options += ["--cap-add", right]  # the launcher limits the folder, and gives it up
        for path in launch.readable():
            options += [*_open_parents(path), *_shown(path)]
        for path in launch.hidden():
            options += ["--tmpfs", path, "--remount-ro", path]
        options += ["--perms", "0755", "--dir", "/dev"]
        for device in ("null", "zero", "urandom", "random"):
            options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        options += ["--perms", "1777", "--size", str(limits.disk), "--tmpfs", _FOLDER]
        options += ["--symlink", _FOLDER, "/dev/shm", "--remount-ro", "/", "--chdir", _FOLDER]
        return [*options, "--setenv", "HOME", _FOLDER, "--setenv", "TMPDIR", _FOLDER]


def _open_parents(path: str) -> list[str]:
    """Make the folders above `path` open to any user, which the real ones may not be."""
    parents = [str(parent) for parent in reversed(Path(path).parents)][1:]
    return [word for parent in parents for word in ("--perms", "0755", "--dir", parent)]


def _shown(path: str) -> list[str]:
    if Path(path).is_symlink():
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path]


def _privileged() -> bool:
    """Return whether this process may make namespaces and change its user id."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> number & 1 for number in _RIGHTS.values())
