"""bubblewrap: namespaces of Linux with nothing in them but the interpreter and a bounded folder in
memory.

The program sees no /proc, no /sys and no network device, and all that it started ends with the
first process of its process namespace, which ends with whoever started the sandbox.
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
_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 6, 7, 21


class Bubblewrap:
    """Programs under `bwrap`."""

    name = "bubblewrap"

    def __init__(self) -> None:
        if not (found := shutil.which("bwrap")):
            raise Unusable("bubblewrap: bwrap is not installed")
        if not (seccomp := program_filter(on_disk=False)):
            raise Unusable("bubblewrap: no seccomp filter for this architecture")
        self._bwrap, self._seccomp, self._privileged = found, seccomp, _privileged()

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        bounds = f"size={limits.disk},nr_inodes={MOST_FILES},mode=1777"
        told = launch.launcher_input(
            source,
            request,
            limits,
            remount=bounds,
            other_user=self._privileged,
            counted_apart=True,
            seccomp=self._seccomp,
        )
        process = start([self._bwrap, *self._options(limits), "--", *launch.command()])
        # The first process inside takes all others along.
        return supervise(process, told, limits, end=end_descendants)

    def _options(self, limits: Limits) -> list[str]:
        # Root's programs take a user id of their own; a user's are alone in a user namespace.
        rights = ["CAP_SYS_ADMIN"]
        rights += ["CAP_SETUID", "CAP_SETGID"] if self._privileged else []
        options = [
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
        options += [] if self._privileged else ["--unshare-user"]
        options += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        for right in rights:  # the launcher needs them to bound the folder, and gives them up
            options += ["--cap-add", right]
        for path in launch.readable():
            options += [*_open_parents(path), *_shown(path)]
        for path in launch.hidden():
            options += ["--tmpfs", path, "--remount-ro", path]
        options += ["--perms", "0755", "--dir", "/dev"]
        for device in ("null", "zero", "urandom", "random"):
            options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        options += [
            "--perms",
            "1777",
            "--size",
            str(limits.disk),
            "--tmpfs",
            _FOLDER,
            "--chdir",
            _FOLDER,
        ]
        options += ["--symlink", _FOLDER, "/dev/shm", "--remount-ro", "/"]
        return [*options, "--setenv", "HOME", _FOLDER, "--setenv", "TMPDIR", _FOLDER]


def _open_parents(path: str) -> list[str]:
    """Make the folders above `path` such that any user may pass, which those outside may not be."""
    parents = [str(parent) for parent in reversed(Path(path).parents)][1:]
    return [word for parent in parents for word in ("--perms", "0755", "--dir", parent)]


def _shown(path: str) -> list[str]:
    if Path(path).is_symlink():
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path]


def _privileged() -> bool:
    """Whether this process may make namespaces and change its user id without a user namespace."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> right & 1 for right in (_CAP_SYS_ADMIN, _CAP_SETUID, _CAP_SETGID))
