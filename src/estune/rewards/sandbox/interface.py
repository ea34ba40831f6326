"""The interface of every sandbox: the limits it gets and the outcome it returns."""

from dataclasses import dataclass
from typing import Protocol

from estune.errors import RewardError

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits on a program and all processes that it starts, taken together.

    seconds: wall time.
    cpu_seconds: processor time.
    memory: bytes.
    processes: simultaneous processes and threads.
    disk: bytes of files.
    output: how many bytes of standard output are kept; the rest is discarded.
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

    output: the start of standard output.
    status: the exit status, or None if a limit ended the program.
    timed_out: whether the limit on wall time ended it.
    errors: the start of standard error.
    """

    output: bytes
    status: int | None
    timed_out: bool
    errors: bytes = b""


class Sandbox(Protocol):
    """Runs programs in isolation. Any thread may call `run`."""

    name: str

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        """Run the Python program `source` in an empty folder, with `request` as standard input.

        The program is run by the interpreter that runs estune, without installed packages.
        """


class Unusable(RewardError):
    """A sandbox is missing, does not start, or lets an attack succeed; the message says which."""
