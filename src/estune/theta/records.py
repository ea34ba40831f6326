"""What a journal's lines hold: one record about the run, then one per step, each checked as data from anybody.

A line is refused by its number: when it is damaged, has a field that this version does not know, or is not the line that
the run wrote after the one before it. Lines of format 2 are chained (lines.py). Lines of format 1 are not, but a step's seeds
follow from the run's seed, which tells lines of most other runs.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from estune.common.signed_lines import CHAIN, chained, follows, signed, verified
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
    """The first line: which run this is. `digest` is that of θ₀; `run` is a random name that no other run has, from format 2 on;
    `notes` hold what does not bear on θ."""

    format: int
    model: str
    digest: str
    config: dict[str, Any]
    run: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One line a step. `coefficients` are the fp32 numbers that multiplied ε, one a seed, empty when nothing moved;
    `rewards` one fitness a member, None for one that was left out; `decay` is the fp32 d by which θ first drew nearer to θ₀,
    None where it did not; `digest` is θ's after steps that save; `task_rewards` are those of a mixture's tasks, by which a
    curriculum goes on; `control` is what a step found out about its size (control.py), from which the next one begins."""

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
    """All that a journal's bytes hold; `size` of them are whole lines, the last of which is `last_line`."""

    header: Header
    steps: list[Step]
    last_line: bytes
    size: int


def read(path: Path, data: bytes) -> Record:
    """What the bytes of the journal at `path` say, without a torn last line. Raises JournalError."""
    lines = data[: whole(data)].splitlines(keepends=True)
    if not lines:
        raise JournalError(
            f"{path}: has no whole line, so nothing was run here; delete it to start afresh"
        )
    header = _read_header(path, lines[0])
    steps = [
        _read_step(path, n, lines[n - 1], header, lines[n - 2]) for n in range(2, len(lines) + 1)
    ]
    return Record(header, steps, lines[-1], sum(map(len, lines)))


def header_line(header: Header) -> str:
    """The first line of a journal."""
    return signed(_json(header))


def step_line(step: Step, header: Header, before: bytes) -> str:
    """The line of a step, which follows the line `before`."""
    return signed(_json(step)) if header.format == 1 else chained(_json(step), before)


def _read_header(path: Path, line: bytes) -> Header:
    """The record of the first line. Raises JournalError."""
    record = _parse(path, 1, line)
    if record.get("format") not in READ:
        raise JournalError(
            f"{path}: has format {record.get('format')!r}; this version of estune reads formats 1 and 2"
        )
    header = _record(Header, path, 1, record)
    if header.format > 1 and not header.run:
        raise JournalError(f"{path}: line 1 lacks a field (run)")
    return header


def _read_step(path: Path, number: int, line: bytes, header: Header, before: bytes) -> Step:
    """The record of line `number`, which is to follow the line `before`. Raises JournalError."""
    record = _parse(path, number, line)
    link = record.pop(CHAIN, None) if header.format > 1 else None
    step = _record(Step, path, number, record)
    _check(path, number, step)
    if header.format > 1 and (link is None or not follows(line, before)):
        raise JournalError(
            f"{path}: line {number} does not follow from line {number - 1}: it, or the one before, was exchanged, repeated, "
            "removed, edited or comes from another run; restore the file from a copy"
        )
    _check_seeds(path, number, step, header)
    return step


def whole(data: bytes) -> int:
    """How many bytes of a journal are whole lines: the last line is torn if it does not end, or does not check."""
    end = data.rfind(b"\n") + 1
    if end < len(data) or end == 0:
        return end
    start = data.rfind(b"\n", 0, end - 1) + 1
    return end if verified(data[start:end]) is not None else start


def _json(record: Header | Step) -> str:
    return json.dumps(
        {name: value for name, value in asdict(record).items() if value is not None},
        allow_nan=False,
    )


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    record = verified(line)
    if record is None:
        raise JournalError(f"{path}: line {number} is damaged; restore the file from a copy")
    return record


def _record(kind: type[R], path: Path, number: int, record: dict[str, Any]) -> R:
    known = {each.name for each in fields(kind)}
    if unknown := sorted(set(record) - known):
        raise JournalError(
            f"{path}: line {number} has a field {unknown[0]!r} that this version of estune does not know; "
            "it may change θ, so use the version that wrote it"
        )
    try:
        return kind(
            **{name: _typed(kind, path, number, name, value) for name, value in record.items()}
        )
    except TypeError as error:
        raise JournalError(f"{path}: line {number} lacks a field ({error})") from None


def _typed(kind: type[Header] | type[Step], path: Path, number: int, name: str, value: Any) -> Any:
    try:
        return _adapters(kind.__name__)[name].validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise JournalError(
            f"{path}: line {number} has a wrong {name} ({reason}); restore the file from a copy"
        ) from None


@cache
def _adapters(kind: str) -> dict[str, TypeAdapter[Any]]:
    """What each field may hold: no text for a number, and neither NaN nor infinity."""
    hints = get_type_hints({"Header": Header, "Step": Step}[kind], include_extras=True)
    return {name: TypeAdapter(hint, config=_STRICT) for name, hint in hints.items()}


def _check(path: Path, number: int, step: Step) -> None:
    if step.step != number - 1:
        raise JournalError(
            f"{path}: line {number} is of step {step.step}, where step {number - 1} belongs"
        )
    if step.coefficients and len(step.coefficients) != len(step.seeds):
        raise JournalError(
            f"{path}: line {number} has {len(step.coefficients)} coefficients for {len(step.seeds)} seeds"
        )
    if step.decay and not step.coefficients:
        raise JournalError(
            f"{path}: line {number} has a decay without coefficients; a step that updates nothing decays nothing"
        )


def _check_seeds(path: Path, number: int, step: Step, header: Header) -> None:
    """Compare a step's seeds with those that the run's seed gives; a header that says no seed leaves them open."""
    seed = header.config.get("seed")
    if isinstance(seed, int) and step.seeds != [
        seed_of(seed, step.step, n) for n in range(len(step.seeds))
    ]:
        raise JournalError(
            f"{path}: line {number} has seeds that do not follow from the run's seed, {seed}: it is of another run"
        )
