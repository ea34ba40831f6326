"""sandlock: Linux's Landlock and seccomp, for machines on which users cannot create namespaces.

sandlock does not stop mounts by root, changes of file attributes, and calls that affect other
processes: the launcher's seccomp filter does (seccomp.py). Nor does it limit the size of the
working folder, which is on disk: supervise.py does.
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
        package = importlib.util.find_spec("sandlock")
        if package is None or package.origin is None:
            raise Unusable("sandlock: the package is not installed")
        if not (seccomp := program_filter(on_disk=True)):
            raise Unusable("sandlock: no seccomp filter for this architecture")
        self._host, self._seccomp = Host(str(Path(package.origin).parents[1])), seccomp

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        launcher_input = launch.launcher_input(source, request, limits, seccomp=self._seccomp)
        with fresh_folder() as folder:
            process = self._host.start(_policy(folder, limits), launch.command())
            return supervise(process, launcher_input, limits, folder)


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
