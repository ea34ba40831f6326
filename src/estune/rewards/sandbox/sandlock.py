"""sandlock: Landlock and seccomp of Linux, for machines that give nobody namespaces.

What it leaves open is closed by the launcher's filter (mounts for root, attributes of files, calls
about other processes) and by the supervisor, which limits the folder on disk.
"""

import importlib.util
from pathlib import Path

from estune.rewards.sandbox import launch
from estune.rewards.sandbox.interface import Limits, Outcome, Unusable
from estune.rewards.sandbox.sandlock_client import Host
from estune.rewards.sandbox.seccomp import program_filter
from estune.rewards.sandbox.supervise import supervise
from estune.rewards.sandbox.working_folder import fresh_folder

_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")


class Sandlock:
    """Runs programs under the Python package `sandlock`."""

    name = "sandlock"

    def __init__(self) -> None:
        found = importlib.util.find_spec("sandlock")
        if found is None or found.origin is None:
            raise Unusable("sandlock: the package is not installed")
        if not (seccomp := program_filter(on_disk=True)):
            raise Unusable("sandlock: no seccomp filter for this architecture")
        self._host, self._seccomp = Host(str(Path(found.origin).parents[1])), seccomp

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        given = launch.launcher_input(source, request, limits, seccomp=self._seccomp)
        with fresh_folder() as folder:
            process = self._host.start(_policy(folder, limits), launch.command())
            return supervise(process, given, limits, folder)


def _policy(folder: str, limits: Limits) -> dict[str, object]:
    return {
        "fs_readable": [*launch.readable(), *_DEVICES],
        "fs_denied": launch.hidden(),
        "fs_writable": [folder, "/dev/null"],
        "cwd": folder,
        "clean_env": True,
        "env": launch.ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
        "max_memory": limits.memory,
        "max_processes": limits.processes,
    }
