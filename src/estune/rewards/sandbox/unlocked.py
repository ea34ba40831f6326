"""No sandbox: a program with the user's own rights, and limits on its time, memory, processes and
files alone.

For a machine that is itself a cage, such as a container without a network.
"""

import os

from estune.rewards import keeper
from estune.rewards.sandbox import job
from estune.rewards.sandbox.folder import fresh_folder
from estune.rewards.sandbox.kinds import Limits, Outcome
from estune.rewards.sandbox.supervise import start, supervise


class Unlocked:
    """Programs under the keeper alone."""

    name = "unlocked"

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        with fresh_folder() as folder:
            told = job.job(source, request, limits, folder=folder)
            command = [
                job.interpreter(),
                "-I",
                "-S",
                keeper.__file__,
                str(os.getpid()),
                job.LAUNCHER,
            ]
            return supervise(start(command), told, limits, folder)
