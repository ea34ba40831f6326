"""What every sandbox is given and what it gives back."""

from dataclasses import dataclass
from typing import Protocol

from estune.errors import RewardError

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a program may take together with all that it starts.

    seconds: wall clock; cpu_seconds: of all its processes; memory: bytes; processes: at a time,
    threads included; disk: bytes written; output: bytes of standard output that are kept.
    """

    seconds: float = 5.0
    cpu_seconds: float = 10.0
    memory: int = 1024 * _MIB
    processes: int = 64
    disk: int = 64 * _MIB
    output: int = 1 * _MIB


@dataclass(frozen=True)
class Outcome:
    """How a program ended. status: 0 when it ended well, None when a limit ended it; errors: the
    start of standard error.
    """

    output: bytes
    status: int | None
    timed_out: bool
    errors: bytes = b""


class Sandbox(Protocol):
    """A place to run one program at a time, from any thread."""

    name: str

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        """Run `source` with this interpreter and its standard library in an empty folder; `request`
        is its standard input.
        """


class Unusable(RewardError):
    """A sandbox that is not installed, does not start, or lets something through; the message says
    which.
    """
