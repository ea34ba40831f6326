"""The record of a run: a text file that, with the base model, gives θ at any step, bit for bit.

`journal.jsonl` has a line about the run, then one per step (records.py). A step counts as done as
soon as its line is on the disk, so a run that was killed at any moment resumes by applying the
lines that it left. A torn last line is what a kill leaves behind, and is dropped; damage anywhere
else is an error.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estune.common.anchor import Anchor
from estune.common.durable import sync
from estune.common.types import ThetaUpdate
from estune.errors import JournalError, LostFolderError
from estune.theta.records import FILE, FORMAT, Header, Step, header_line, read, step_line, whole
from estune.theta.theta import Theta

__all__ = ["FORMAT", "Header", "Journal", "Step", "exists"]


@dataclass
class Journal:
    """A journal on disk and what it holds.

    Only one that was created, or opened with `repair`, can be appended to.
    """

    path: Path
    header: Header
    steps: list[Step]
    _last_line: bytes
    _size: int
    _anchor: Anchor | None = None

    @classmethod
    def create(cls, folder: Path, header: Header) -> "Journal":
        """Start a journal in `folder`; it is on the disk, whole, when this returns."""
        path, line = folder / FILE, header_line(header).encode()
        scratch = path.with_name(f".{FILE}.tmp")
        scratch.write_bytes(line)
        sync(scratch)
        scratch.rename(path)
        sync(folder)
        return cls(path, header, [], line, len(line), _anchored(path))

    @classmethod
    def open(cls, folder: Path, *, repair: bool = False) -> "Journal":
        """Return the journal in `folder`, without a torn last line.

        Args:
            repair: also cut the torn line off the file, so that the journal can be continued.

        Raises:
            JournalError: there is no journal, or a line is damaged, out of order, of another run,
                or has an unknown field.
        """
        path = folder / FILE
        anchor = _anchored(path) if repair and path.is_file() else None
        try:
            data = path.read_bytes()
        except OSError as error:
            raise JournalError(
                f"{path}: cannot be read ({error.strerror}); is {folder} the folder of a run?"
            ) from None
        found = read(path, data)
        if repair and found.size < len(data):
            os.truncate(path, found.size)
            sync(path)
        return cls(path, found.header, found.steps, found.last_line, found.size, anchor)

    @property
    def last(self) -> int:
        """The number of steps."""
        return len(self.steps)

    @property
    def control(self) -> dict[str, Any] | None:
        """The last step's `control`."""
        return self.steps[-1].control if self.steps else None

    def append(self, step: Step) -> None:
        """Add a step; it is on the disk when this returns.

        Raises:
            LostFolderError: the file is no longer this journal, or another program wrote to it.
        """
        line = step_line(step, self.header, self._last_line).encode()
        descriptor = self.check_own()
        try:
            _write(descriptor, line)
            os.fsync(descriptor)
        except OSError:  # the disk is full: keep no part of the line
            os.ftruncate(descriptor, self._size)
            raise
        self._last_line = line
        self._size += len(line)
        self.steps.append(step)

    def check_own(self) -> int:
        """Return the file's descriptor, having checked that it is still this journal.

        Raises:
            LostFolderError: the path leads to another file, or another program wrote to it.
        """
        if self._anchor is None:
            raise JournalError(f"{self.path}: was opened for reading, not to continue the run")
        self._anchor.check()
        if os.fstat(self._anchor.descriptor).st_size != self._size:
            raise LostFolderError(
                f"{self.path}: another program changed it while the run wrote there; it stops here"
            )
        return self._anchor.descriptor

    def replay(self, theta: Theta, until: int) -> Iterator[int]:
        """Apply the steps after θ's version up to `until`; yield the number of each.

        Raises:
            JournalError: the run has fewer steps, or θ's digest is not the recorded one.
        """
        if until > self.last:
            raise JournalError(
                f"{self.path}: has {self.last} steps, so step {until} cannot be replayed"
            )
        self.check(theta)
        for step in self.steps[theta.version : until]:
            version, decay = step.step - 1, step.decay or 0.0
            theta.update(ThetaUpdate(step.seeds, step.coefficients, step.noise, version, decay))
            self.check(theta)
            yield step.step

    def check(self, theta: Theta) -> None:
        """Compare θ's digest with the recorded one of its version, if there is one.

        Raises:
            JournalError: they differ, or the run has no such step.
        """
        version = theta.version
        if not 0 <= version <= self.last:
            raise JournalError(
                f"{self.path}: has {self.last} steps, but θ is said to be at step {version}"
            )
        wanted = self.digest(version)
        if wanted and theta.digest() != wanted:
            if version:
                wrong = f"θ at step {version} is not what this run had (digest {wanted})"
            else:
                wrong = f"the base model is not the one that this run had (digest {wanted})"
            raise JournalError(f"{self.path}: {wrong}")

    def digest(self, step: int) -> str | None:
        """Return θ's digest after `step`, if the journal has it."""
        return self.header.digest if step == 0 else self.steps[step - 1].digest


def exists(folder: Path) -> bool:
    """Return whether `folder` holds a run that can be resumed."""
    path = folder / FILE
    return path.is_file() and whole(path.read_bytes()) > 0


def _anchored(path: Path) -> Anchor:
    return Anchor(path, os.O_RDWR | os.O_APPEND)


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`; one system call may write only a part."""
    while data:
        data = data[os.write(descriptor, data) :]
