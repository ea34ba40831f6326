"""The record of a run: a text file from which, with the base model, θ can be had again at any step, bit for bit.

`journal.jsonl` begins with a line about the run, then has one line a step. A step counts once its line is on the
disk, so a run that was killed at any moment is resumed by applying the lines that are there. Each line carries a
checksum. A torn last line is what a kill leaves behind, and is dropped; damage anywhere else is an error.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from estune.center import Center
from estune.durable import sync
from estune.errors import JournalError
from estune.lines import signed, verified

FORMAT = 1
NAME = "journal.jsonl"
R = TypeVar("R", "Header", "Step")


@dataclass(frozen=True)
class Header:
    """The first line: which run this is. `digest` is that of θ₀; `notes` hold what does not bear on θ."""

    format: int
    model: str
    digest: str
    config: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One line a step. `coefficients` are the fp32 numbers that multiplied ε, one a seed, empty when nothing moved;
    `rewards` one fitness a member, None for one that was left out; `decay` is the fp32 d by which θ first drew nearer to θ₀,
    None where it did not; `digest` is θ's after steps that save; `task_rewards` are those of a mixture's tasks, by which a
    curriculum goes on; `control` is what a step found out about its size (control.py), from which the next one begins."""

    step: int
    seeds: list[int]
    coefficients: list[float]
    rewards: list[float | None]
    sigma: float
    noise: str
    decay: float | None = None
    task_rewards: dict[str, float | None] | None = None
    digest: str | None = None
    control: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """A journal on disk and what it holds."""

    path: Path
    header: Header
    steps: list[Step]

    @classmethod
    def create(cls, folder: Path, header: Header) -> "Journal":
        """Start a journal in `folder`; it is there, whole, when this returns."""
        path = folder / NAME
        scratch = path.with_name(f".{NAME}.tmp")
        scratch.write_text(_line(asdict(header)), encoding="utf-8")
        sync(scratch)
        scratch.rename(path)
        sync(folder)
        return cls(path, header, [])

    @classmethod
    def open(cls, folder: Path, *, repair: bool = False) -> "Journal":
        """Read the journal in `folder`, without a torn last line; `repair` cuts that off the file too.

        Raises:
            JournalError: there is none, a line is damaged or out of order, or holds a field this version doesn't know.
        """
        path = folder / NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise JournalError(f"{path}: cannot be read ({error.strerror}); is {folder} the folder of a run?") from None
        whole = data[: _whole(data)]
        records = [_parse(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if not records:
            raise JournalError(f"{path}: has no whole line, so nothing was run here; delete it to start afresh")
        header = _header(path, records[0])
        steps = [_record(Step, path, number, record) for number, record in enumerate(records[1:], 2)]
        for number, step in enumerate(steps, 1):
            _check_step(path, number, step)
        if repair and len(whole) < len(data):
            os.truncate(path, len(whole))
            sync(path)
        return cls(path, header, steps)

    @property
    def last(self) -> int:
        """The number of whole steps."""
        return len(self.steps)

    @property
    def control(self) -> dict[str, Any] | None:
        """That of the last step."""
        return self.steps[-1].control if self.steps else None

    def append(self, step: Step) -> None:
        """Add a step, on disk when this returns."""
        with self.path.open("ab") as file:
            file.write(_line(asdict(step)).encode())
            file.flush()
            os.fsync(file.fileno())
        self.steps.append(step)

    def replay(self, center: Center, until: int) -> Iterator[int]:
        """Apply the steps after θ's version up to `until`, yielding each one's number; digests on the way are checked.

        Raises:
            JournalError: the run has fewer steps, or θ is not what a line says.
        """
        if until > self.last:
            raise JournalError(f"{self.path}: has {self.last} steps, so step {until} cannot be replayed")
        self.check(center)
        for step in self.steps[center.version : until]:
            center.update(step.seeds, step.coefficients, noise=step.noise, version=step.step - 1, decay=step.decay or 0.0)
            self.check(center)
            yield step.step

    def check(self, center: Center) -> None:
        """Compare θ's digest with the one that the journal has for its version, if it has one; raises JournalError."""
        if not 0 <= center.version <= self.last:
            raise JournalError(f"{self.path}: has {self.last} steps, but θ is said to be at step {center.version}")
        wanted = self.header.digest if center.version == 0 else self.steps[center.version - 1].digest
        if wanted and center.digest() != wanted:
            whose = "the base model is not the one that" if center.version == 0 else f"θ at step {center.version} is not what"
            raise JournalError(f"{self.path}: {whose} this run had (digest {wanted})")


def exists(folder: Path) -> bool:
    """Whether `folder` holds a run from which something can be resumed."""
    path = folder / NAME
    return path.is_file() and _whole(path.read_bytes()) > 0


def _line(record: dict[str, Any]) -> str:
    return signed(json.dumps({name: value for name, value in record.items() if value is not None}, allow_nan=False))


def _whole(data: bytes) -> int:
    """How many bytes of a journal are whole lines: the last line is torn if it does not end, or does not check."""
    end = data.rfind(b"\n") + 1
    if end < len(data) or end == 0:
        return end
    start = data.rfind(b"\n", 0, end - 1) + 1
    return end if verified(data[start:end]) is not None else start


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    record = verified(line)
    if record is None:
        raise JournalError(f"{path}: line {number} is damaged; restore the file from a copy")
    return record


def _header(path: Path, record: dict[str, Any]) -> Header:
    if record.get("format") != FORMAT:
        raise JournalError(f"{path}: has format {record.get('format')}; this version of estune reads format {FORMAT}")
    return _record(Header, path, 1, record)


def _check_step(path: Path, number: int, step: Step) -> None:
    if step.step != number:
        raise JournalError(f"{path}: line {number + 1} is of step {step.step}, where step {number} belongs")
    if step.coefficients and len(step.coefficients) != len(step.seeds):
        raise JournalError(f"{path}: line {number + 1} has {len(step.coefficients)} coefficients for {len(step.seeds)} seeds")
    if step.decay and not step.coefficients:
        raise JournalError(f"{path}: line {number + 1} has a decay without coefficients; a step that updates nothing decays nothing")


def _record(kind: type[R], path: Path, number: int, record: dict[str, Any]) -> R:
    known = {each.name for each in fields(kind)}
    if unknown := sorted(set(record) - known):
        raise JournalError(
            f"{path}: line {number} has a field {unknown[0]!r} that this version of estune does not know; "
            "it may change θ, so use the version that wrote it"
        )
    try:
        return kind(**record)
    except TypeError as error:
        raise JournalError(f"{path}: line {number} lacks a field ({error})") from None
