"""Run a program that a model wrote where it can neither harm nor learn anything.

Every sandbox is somebody else's well-kept software, tried in a fixed order behind one small
interface; the first that is installed and passes its proof (`proof.py`) is used. Limits that no
sandbox of Linux sets by itself are set or watched here.
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

__all__ = ["PROVEN", "UNLOCKED", "Limits", "Outcome", "Sandbox", "prepare", "proven", "unlocked"]

UNLOCKED = "ESTUNE_RUN_CODE_UNLOCKED"  # 1: run programs without any sandbox
PROVEN = "ESTUNE_PROVEN_SANDBOX"  # the name of the one that passed, for the reward processes that this one starts
_KINDS: dict[str, Callable[[], Sandbox]] = {
    "bubblewrap": Bubblewrap,
    "sandlock": Sandlock,
}  # in the order of trial


def unlocked() -> Sandbox:
    """No sandbox at all: limits on time and amounts alone, for a machine that is itself a cage."""
    return Unlocked()


@functools.cache
def proven() -> Sandbox:
    """The first sandbox that is installed and passes its proof, which is made once per run.

    Raises:
        RewardError: none does; the message says why, and what to install or allow.
    """
    if passed := _KINDS.get(os.environ.get(PROVEN, "")):
        return passed()
    reasons = []
    for kind in _KINDS.values():
        try:
            sandbox = kind()
            prove(sandbox)
        except Unusable as error:
            reasons.append(str(error))
        else:
            os.environ[PROVEN] = sandbox.name
            return sandbox
    raise RewardError(
        f"code_reward: no sandbox on this machine can hold a program ({'; '.join(reasons)}), so nothing was run; install "
        f"bubblewrap or pip install sandlock, or, in a container without a network, set {UNLOCKED}=1"
    )


def prepare() -> None:
    """Prove a sandbox for the processes that will need one. Where none passes, they say so, unless
    they need none.
    """
    if os.environ.get(UNLOCKED) != "1":
        with contextlib.suppress(RewardError):
            proven()
