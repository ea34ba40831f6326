"""What a journal's lines hold: one record about the run, then one per step, each checked.

A line is refused, and the message gives its number, if it is damaged, has a field that this version
does not know, or does not follow from the line before. Lines of format 2 are chained
(checksummed_lines.py). Lines of format 1 are not, but a step's seeds follow from the run's seed,
which exposes most lines of other runs.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from estune.common.checksummed_lines import CHAIN, chained, checksummed, follows, verified
from estune.errors import JournalError
from estune.noise.seeds import seed_of

FILE = "journal.jsonl"
FORMAT = 2  # of new runs
READ = (1, 2)
R = TypeVar("R", "Header", "Step")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
Seed = Annotated[int, Field(ge=0, lt=2**64)]


@dataclass(frozen=True)
class Header:
    """The first line: which run this is.

    digest: θ₀'s.
    run: a random name that no other run has; from format 2 on.
    notes: whatever does not affect θ.
    """

    format: int
    model: str
    digest: str
    config: dict[str, Any]
    run: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One line per step, which is one update of θ.

    coefficients: fp32 numbers that multiplied ε, one per seed; empty if θ did not move.
    rewards: one fitness per member; None for a member that was left out.
    decay: the fp32 d by which θ first moved towards θ₀; None without weight decay.
    task_rewards: the mean reward of each task of a mixture, which a curriculum reads.
    digest: θ's, after steps that are saved or evaluated, or may be the last.
    control: with `learning_rate: auto`, what the next step size depends on (step_size.py).
    notes: whatever does not affect θ.
    """

    step: int
    seeds: list[Seed]
    coefficients: list[float]
    rewards: list[float | None]
    sigma: float
    noise: Literal["iid", "correlated"]
    decay: float | None = None
    task_rewards: dict[str, float | None] | None = None
    digest: str | None = None
    control: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """All that a journal's whole lines hold, the last of these lines, and their size in bytes."""

    header: Header
    steps: list[Step]
    last_line: bytes
    size: int


class _BadLine(Exception):
    """Why a line is refused."""


def read(path: Path, data: bytes) -> Record:
    """Return what the bytes of the journal at `path` hold, without a torn last line.

    Raises:
        JournalError: no line is whole, or a line is refused.
    """
    lines = data[: whole(data)].splitlines(keepends=True)
    if not lines:
        raise JournalError(
            f"{path}: has no whole line, so nothing was run here; delete it to start afresh"
        )
    steps: list[Step] = []
    number = 1
    try:
        header = _read_header(lines[0])
        for number in range(2, len(lines) + 1):
            steps.append(_read_step(number, lines[number - 1], header, lines[number - 2]))
    except _BadLine as bad:
        raise JournalError(f"{path}: line {number} {bad}") from None
    return Record(header, steps, lines[-1], sum(map(len, lines)))


def header_line(header: Header) -> str:
    """Return the first line of a journal."""
    return checksummed(_json(header))


def step_line(step: Step, header: Header, before: bytes) -> str:
    """Return the line of a step, which follows the line `before`."""
    return checksummed(_json(step)) if header.format == 1 else chained(_json(step), before)


def whole(data: bytes) -> int:
    """Return how many bytes of a journal are whole lines.

    The last line is torn if it has no end, or its checksum is wrong.
    """
    end = data.rfind(b"\n") + 1
    if end < len(data) or end == 0:
        return end
    start = data.rfind(b"\n", 0, end - 1) + 1
    return end if verified(data[start:end]) is not None else start


def _read_header(line: bytes) -> Header:
    record = _parse(line)
    if record.get("format") not in READ:
        raise _BadLine(
            f"has format {record.get('format')!r}; this version of estune reads formats 1 and 2"
        )
    header = _checked(Header, record)
    if header.format > 1 and not header.run:
        raise _BadLine("lacks a field (run)")
    return header


def _read_step(number: int, line: bytes, header: Header, before: bytes) -> Step:
    record = _parse(line)
    link = record.pop(CHAIN, None) if header.format > 1 else None
    step = _checked(Step, record)
    if step.step != number - 1:
        raise _BadLine(f"is of step {step.step}, where step {number - 1} belongs")
    if step.coefficients and len(step.coefficients) != len(step.seeds):
        raise _BadLine(f"has {len(step.coefficients)} coefficients for {len(step.seeds)} seeds")
    if step.decay and not step.coefficients:
        raise _BadLine(
            "has a decay without coefficients; a step that updates nothing decays nothing"
        )
    if header.format > 1 and (link is None or not follows(line, before)):
        raise _BadLine(
            f"does not follow from line {number - 1}: it, or the one before, was exchanged, "
            "repeated, removed, edited or comes from another run; restore the file from a copy"
        )
    _check_seeds(step, header.config.get("seed"))
    return step


def _check_seeds(step: Step, seed: Any) -> None:
    """Compare a step's seeds with those that the run's seed gives, if the header has one."""
    if not isinstance(seed, int):
        return
    if step.seeds != [seed_of(seed, step.step, n) for n in range(len(step.seeds))]:
        raise _BadLine(
            f"has seeds that do not follow from the run's seed, {seed}: it is of another run"
        )


def _json(record: Header | Step) -> str:
    present = {name: value for name, value in asdict(record).items() if value is not None}
    return json.dumps(present, allow_nan=False)


def _parse(line: bytes) -> dict[str, Any]:
    record = verified(line)
    if record is None:
        raise _BadLine("is damaged; restore the file from a copy")
    return record


def _checked(kind: type[R], record: dict[str, Any]) -> R:
    """Return the record as a Header or Step."""
    if unknown := sorted(record.keys() - {each.name for each in fields(kind)}):
        raise _BadLine(
            f"has a field {unknown[0]!r} that this version of estune does not know; "
            "it may change θ, so use the version that wrote it"
        )
    values = {}
    for name, value in record.items():
        try:
            values[name] = _validators()[kind][name].validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise _BadLine(
                f"has a wrong {name} ({problem}); restore the file from a copy"
            ) from None
    try:
        return kind(**values)
    except TypeError as error:
        raise _BadLine(f"lacks a field ({error})") from None


@cache
def _validators() -> dict[type, dict[str, TypeAdapter[Any]]]:
    """Return a strict check per field: no text for a number, and neither NaN nor infinity."""
    hints = {kind: get_type_hints(kind, include_extras=True) for kind in (Header, Step)}
    return {
        kind: {name: TypeAdapter(hint, config=_STRICT) for name, hint in fields_of_kind.items()}
        for kind, fields_of_kind in hints.items()
    }
