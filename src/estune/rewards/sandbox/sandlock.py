"""sandlock: Landlock and seccomp of Linux, for machines that give nobody namespaces.

Its supervisor lives in the process that starts a program, so each program gets a process for it, under a keeper. What it
leaves open is closed by the launcher's filter: mounts for root, attributes of files, and calls about other processes.
"""

import importlib.util
import json
import os
from pathlib import Path

from estune.rewards import keeper
from estune.rewards.sandbox import job, sandlock_host
from estune.rewards.sandbox.folder import fresh_folder
from estune.rewards.sandbox.kinds import Limits, Outcome, Unusable
from estune.rewards.sandbox.seccomp import program_filter
from estune.rewards.sandbox.supervise import supervise

_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Sandlock:
    """Programs under the Python package `sandlock`."""

    name = "sandlock"

    def __init__(self) -> None:
        found = importlib.util.find_spec("sandlock")
        if found is None or found.origin is None:
            raise Unusable("sandlock: the package is not installed")
        if not (seccomp := program_filter(on_disk=True)):
            raise Unusable("sandlock: no seccomp filter for this architecture")
        self._package, self._seccomp = str(Path(found.origin).parents[1]), seccomp

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        with fresh_folder() as folder:
            told = job.job(source, request, limits, seccomp=self._seccomp)
            policy = {
                "fs_readable": [*job.readable(), *_DEVICES],
                "fs_denied": job.hidden(),
                "fs_writable": [folder],
                "cwd": folder,
                "clean_env": True,
                "env": job.ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
                "max_memory": limits.memory,
                "max_processes": limits.processes,
            }
            held = [job.interpreter(), "-I", "-S", keeper.__file__, str(os.getpid())]
            host = [sandlock_host.__file__, self._package, json.dumps(policy), *job.command()]
            return supervise([*held, *host], told, limits, folder)
