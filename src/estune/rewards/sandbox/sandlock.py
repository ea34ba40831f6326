"""sandlock."""

from estune.rewards.sandbox.kinds import Limits, Outcome, Unusable


class Sandlock:
    name = "sandlock"

    def __init__(self) -> None:
        raise Unusable("sandlock: not yet")

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        raise NotImplementedError
