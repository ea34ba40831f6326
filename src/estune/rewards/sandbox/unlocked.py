"""Run a program without a sandbox: only its time, memory, processes and disk are limited.

The program has all of the user's rights. This is for a machine that is itself closed off, such as a
container without a network.
"""

import os

from estune.rewards.processes import reaper
from estune.rewards.sandbox import launch
from estune.rewards.sandbox.interface import Limits, Outcome
from estune.rewards.sandbox.supervise import start, supervise
from estune.rewards.sandbox.working_folder import fresh_folder


class Unlocked:
    """Runs programs under a reaper (reaper.py) alone."""

    name = "unlocked"

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        reaper_command = [reaper.__file__, str(os.getpid()), launch.LAUNCHER]
        with fresh_folder() as folder:
            launcher_input = launch.launcher_input(source, request, limits, folder=folder)
            process = start([launch.interpreter(), "-I", "-S", *reaper_command])
            return supervise(process, launcher_input, limits, folder)
