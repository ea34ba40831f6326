"""The record of a run: a text file from which, with the base model, θ can be had again at any step, bit for bit.

`journal.jsonl` begins with a line about the run, then has one line a step (records.py). A step counts once its line is on the
disk, so a run that was killed at any moment is resumed by applying the lines that are there. Each line carries a
checksum, and a digest that chains it to the line before. A torn last line is what a kill leaves behind, and is dropped;
damage anywhere else, or a line that does not follow from the one before, is an error.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estune.common.anchor import Anchor
from estune.common.durable import sync
from estune.errors import JournalError, LostFolderError
from estune.theta.records import FILE, FORMAT, Header, Step, header_line, read, step_line, whole
from estune.theta.theta import Theta

__all__ = ["FORMAT", "Header", "Journal", "Step", "exists"]


@dataclass
class Journal:
    """A journal on disk and what it holds. Only one that was created, or opened to go on with it, is appended to."""

    path: Path
    header: Header
    steps: list[Step]
    _last_line: bytes
    _size: int
    _anchor: Anchor | None = None

    @classmethod
    def create(cls, folder: Path, header: Header) -> "Journal":
        """Start a journal in `folder`; it is there, whole, when this returns."""
        path, line = folder / FILE, header_line(header).encode()
        scratch = path.with_name(f".{FILE}.tmp")
        scratch.write_bytes(line)
        sync(scratch)
        scratch.rename(path)
        sync(folder)
        return cls(path, header, [], line, len(line), _anchored(path))

    @classmethod
    def open(cls, folder: Path, *, repair: bool = False) -> "Journal":
        """Read the journal in `folder`, without a torn last line; `repair` cuts that off the file too, to go on with it.

        Raises:
            JournalError: there is none, a line is damaged, out of order or of another run, or holds a field this version doesn't know.
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
        """The number of whole steps."""
        return len(self.steps)

    @property
    def control(self) -> dict[str, Any] | None:
        """That of the last step."""
        return self.steps[-1].control if self.steps else None

    def append(self, step: Step) -> None:
        """Add a step, on disk when this returns.

        Raises:
            LostFolderError: the file is no longer this journal, or somebody else wrote to it.
        """
        line = step_line(step, self.header, self._last_line).encode()
        self.check_own()
        assert self._anchor is not None
        try:
            _write(self._anchor.descriptor, line)
            os.fsync(self._anchor.descriptor)
        except OSError:
            os.ftruncate(
                self._anchor.descriptor, self._size
            )  # the disk is full: no part of a line stays
            raise
        self._last_line = line
        self._size += len(line)
        self.steps.append(step)

    def check_own(self) -> None:
        """Raises LostFolderError when the path leads to another file, or the file has other lines than this run wrote."""
        if self._anchor is None:
            raise JournalError(f"{self.path}: was opened to be read, not to go on with it")
        self._anchor.check()
        if os.fstat(self._anchor.descriptor).st_size != self._size:
            raise LostFolderError(
                f"{self.path}: was changed by somebody else while the run wrote there; it stops here"
            )

    def replay(self, theta: Theta, until: int) -> Iterator[int]:
        """Apply the steps after θ's version up to `until`, yielding each one's number; digests on the way are checked.

        Raises:
            JournalError: the run has fewer steps, or θ is not what a line says.
        """
        if until > self.last:
            raise JournalError(
                f"{self.path}: has {self.last} steps, so step {until} cannot be replayed"
            )
        self.check(theta)
        for step in self.steps[theta.version : until]:
            theta.update(
                step.seeds,
                step.coefficients,
                noise=step.noise,
                version=step.step - 1,
                decay=step.decay or 0.0,
            )
            self.check(theta)
            yield step.step

    def check(self, theta: Theta) -> None:
        """Compare θ's digest with the one that the journal has for its version, if it has one; raises JournalError."""
        if not 0 <= theta.version <= self.last:
            raise JournalError(
                f"{self.path}: has {self.last} steps, but θ is said to be at step {theta.version}"
            )
        wanted = self.digest(theta.version)
        if wanted and theta.digest() != wanted:
            whose = (
                "the base model is not the one that"
                if theta.version == 0
                else f"θ at step {theta.version} is not what"
            )
            raise JournalError(f"{self.path}: {whose} this run had (digest {wanted})")

    def digest(self, step: int) -> str | None:
        """θ's digest after `step`, where the journal has it."""
        return self.header.digest if step == 0 else self.steps[step - 1].digest


def exists(folder: Path) -> bool:
    """Whether `folder` holds a run from which something can be resumed."""
    path = folder / FILE
    return path.is_file() and whole(path.read_bytes()) > 0


def _anchored(path: Path) -> Anchor:
    return Anchor(path, os.O_RDWR | os.O_APPEND)


def _write(descriptor: int, data: bytes) -> None:
    """All of it: a system call may take a part only."""
    while data:
        data = data[os.write(descriptor, data) :]
