"""No sandbox: a program with the user's own rights, and limits on its time and memory alone.

For a machine that is itself a cage, such as a container without a network.
"""

import os
import tempfile
from dataclasses import dataclass

from estune.rewards import keeper
from estune.rewards.sandbox import job
from estune.rewards.sandbox.kinds import Limits, Outcome
from estune.rewards.sandbox.supervise import supervise


@dataclass(frozen=True)
class Unlocked:
    """Programs under the keeper alone."""

    name: str = "unlocked"

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="estune-program-", ignore_cleanup_errors=True) as folder:
            told = job.job(source, request, limits, folder=folder)
            held = [job.interpreter(), "-I", "-S", keeper.__file__, str(os.getpid())]
            return supervise([*held, *job.command()], told, limits)
