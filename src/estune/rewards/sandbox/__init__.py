"""Run a program that a model wrote in a sandbox, where it can neither do harm nor learn anything.

bubblewrap and sandlock, which others maintain, are used through one small interface
(interface.py). The first of them that is installed and passes its proof (proof.py) is used. A proof
is a set of attacks on the sandbox, all of which must fail. Limits that neither sandbox offers are
enforced here (supervise.py).
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
PROVEN = "ESTUNE_PROVEN_SANDBOX"  # tells reward processes the name of the sandbox that passed
KINDS: dict[str, Callable[[], Sandbox]] = {"bubblewrap": Bubblewrap, "sandlock": Sandlock}


@functools.cache
def proven() -> Sandbox:
    """Return the first sandbox that is installed and passes its proof.

    The proof is made once per run: an environment variable tells reward processes its result.

    Raises:
        RewardError: no sandbox passes; the message says why, and what to install or allow.
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
    """Find a sandbox before reward processes start; without one, `code_reward` reports it later."""
    if os.environ.get(UNLOCKED) != "1":
        with contextlib.suppress(RewardError):
            proven()
