"""What every sandbox is given, and what it gives back."""

from dataclasses import dataclass
from typing import Protocol

from estune.errors import RewardError

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits on a program together with all processes that it starts.

    seconds: by the clock.
    cpu_seconds: processor time of all processes.
    memory: bytes.
    processes: processes and threads at a time.
    disk: bytes written.
    output: bytes of standard output that are kept.
    """

    seconds: float = 5.0
    cpu_seconds: float = 10.0
    memory: int = 1024 * _MIB
    processes: int = 64
    disk: int = 64 * _MIB
    output: int = 1 * _MIB


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    status: the exit status, or None if a limit ended it.
    errors: the start of standard error.
    """

    output: bytes
    status: int | None
    timed_out: bool
    errors: bytes = b""


class Sandbox(Protocol):
    """A place to run programs, one per call, from any thread."""

    name: str

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        """Run `source` in an empty folder, with `request` as its standard input.

        It runs in this interpreter with the standard library alone.
        """


class Unusable(RewardError):
    """A sandbox is missing, does not start, or lets something through; the message says which."""
