"""Run a program that a model wrote where it can neither harm nor learn anything.

Every sandbox is somebody else's well-kept software, tried in a fixed order behind one small interface; the first that is
installed and passes its proof (`proof.py`) is used. Limits that no sandbox of Linux sets by itself are set or watched here.
"""

import functools
import os
from collections.abc import Callable

from estune.errors import RewardError
from estune.rewards.sandbox.bubblewrap import Bubblewrap
from estune.rewards.sandbox.kinds import Limits, Outcome, Sandbox, Unusable
from estune.rewards.sandbox.proof import prove
from estune.rewards.sandbox.sandlock import Sandlock
from estune.rewards.sandbox.unlocked import Unlocked

__all__ = ["PROVEN", "UNLOCKED", "Limits", "Outcome", "Sandbox", "proven", "unlocked"]

UNLOCKED = "ESTUNE_RUN_CODE_UNLOCKED"  # 1: run programs without any sandbox
PROVEN = "ESTUNE_PROVEN_SANDBOX"  # the name of the sandbox that passed, for the reward processes that a run starts
_ORDER: tuple[Callable[[], Sandbox], ...] = (Bubblewrap, Sandlock)


def unlocked() -> Sandbox:
    """No sandbox at all: limits on time and memory alone, for a machine that is itself a cage."""
    return Unlocked()


@functools.cache
def proven() -> Sandbox:
    """The first sandbox that is installed and passes its proof, which is made once per run.

    Raises:
        RewardError: none does; the message says why, and what to install or allow.
    """
    if passed := os.environ.get(PROVEN):
        return {kind.__name__: kind for kind in (Bubblewrap, Sandlock)}[passed]()
    reasons = []
    for kind in _ORDER:
        try:
            sandbox = kind()
            prove(sandbox)
        except Unusable as error:
            reasons.append(str(error))
        else:
            return sandbox
    raise RewardError(
        f"code_reward: no sandbox on this machine can hold a program ({'; '.join(reasons)}), so nothing was run; install "
        f"bubblewrap or pip install sandlock, or, in a container that is itself a cage without a network, set {UNLOCKED}=1"
    )
