"""No sandbox: a program with the user's own rights, and limits on its time, memory, processes and
files alone.

For a machine that is itself a cage, such as a container without a network.
"""

import os

from estune.rewards.processes import keeper
from estune.rewards.sandbox import launch
from estune.rewards.sandbox.interface import Limits, Outcome
from estune.rewards.sandbox.supervise import start, supervise
from estune.rewards.sandbox.working_folder import fresh_folder


class Unlocked:
    """Programs under the keeper alone."""

    name = "unlocked"

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        with fresh_folder() as folder:
            told = launch.launcher_input(source, request, limits, folder=folder)
            command = [
                launch.interpreter(),
                "-I",
                "-S",
                keeper.__file__,
                str(os.getpid()),
                launch.LAUNCHER,
            ]
            return supervise(start(command), told, limits, folder)
