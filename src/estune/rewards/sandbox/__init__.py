"""Run a program that a model wrote where it can neither do harm nor learn anything.

Every sandbox is well-kept software of others behind one small interface. They are tried in a fixed
order; the first that is installed and passes its proof (proof.py) is used. Limits that no sandbox
of Linux sets are set or watched here (supervise.py).
"""

import contextlib
import functools
import os
from collections.abc import Callable

from estune.errors import RewardError
from estune.rewards.sandbox.bubblewrap import Bubblewrap
from estune.rewards.sandbox.interface import Limits, Outcome, Sandbox, Unusable
from estune.rewards.sandbox.proof import prove
from estune.rewards.sandbox.sandlock import Sandlock
from estune.rewards.sandbox.unlocked import Unlocked

__all__ = [
    "KINDS",
    "PROVEN",
    "UNLOCKED",
    "Limits",
    "Outcome",
    "Sandbox",
    "Unlocked",
    "prepare",
    "proven",
]

UNLOCKED = "ESTUNE_RUN_CODE_UNLOCKED"  # "1": run programs without any sandbox
PROVEN = "ESTUNE_PROVEN_SANDBOX"  # names the sandbox that passed, for the reward processes
KINDS: dict[str, Callable[[], Sandbox]] = {"bubblewrap": Bubblewrap, "sandlock": Sandlock}


@functools.cache
def proven() -> Sandbox:
    """Return the first sandbox that is installed and passes its proof, which is made once per run.

    Raises:
        RewardError: none does; the message says why, and what to install or allow.
    """
    if passed := KINDS.get(os.environ.get(PROVEN, "")):
        return passed()
    reasons = []
    for kind in KINDS.values():
        try:
            sandbox = kind()
            prove(sandbox)
        except Unusable as error:
            reasons.append(str(error))
        else:
            os.environ[PROVEN] = sandbox.name
            return sandbox
    raise RewardError(
        f"code_reward: no sandbox on this machine can hold a program ({'; '.join(reasons)}),"
        " so nothing was run; install bubblewrap or pip install sandlock,"
        f" or, in a container without a network, set {UNLOCKED}=1"
    )


def prepare() -> None:
    """Prove a sandbox for the reward processes. If none passes, they report it."""
    if os.environ.get(UNLOCKED) != "1":
        with contextlib.suppress(RewardError):
            proven()
