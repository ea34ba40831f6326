"""A sandbox proves itself."""

from estune.rewards.sandbox.kinds import Sandbox


def prove(sandbox: Sandbox) -> None:
    pass
