"""No sandbox: the program has the user's own rights, and only its amounts are limited.

This is for a machine that is itself closed off, such as a container without a network.
"""

import os

from estune.rewards.processes import keeper
from estune.rewards.sandbox import launch
from estune.rewards.sandbox.interface import Limits, Outcome
from estune.rewards.sandbox.supervise import start, supervise
from estune.rewards.sandbox.working_folder import fresh_folder


class Unlocked:
    """Runs programs under their keeper (keeper.py), and nothing else."""

    name = "unlocked"

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        kept = [keeper.__file__, str(os.getpid()), launch.LAUNCHER]
        with fresh_folder() as folder:
            given = launch.launcher_input(source, request, limits, folder=folder)
            process = start([launch.interpreter(), "-I", "-S", *kept])
            return supervise(process, given, limits, folder)
