"""The countdown task: reach a target from given numbers by right arithmetic.

The prompt ends in `<think>`, so a completion is the rest of a thought and then an answer. The
grader searches text by position only, so it takes linear time on any completion.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from typing import Any

from estune.common.types import Row
from estune.errors import DataError
from estune.tasks.answers import CLOSE, OPEN, last_block
from estune.tasks.arithmetic import value_of
from estune.tasks.base import (
    LogMetric,
    Task,
    TextOrMessages,
    completion_text,
    count_of_endless,
    log_mean,
)
from estune.tasks.puzzles import Puzzle, puzzles

TRAIN_SIZE = 200
TEST_SIZE = 2000

_TOLERANCE = Fraction(1, 100_000)
_THINK_END = "</think>"


def train_rows(count: int | None = None) -> list[Row]:
    """Return the first `count` training puzzles (None: 200); there are endlessly many."""
    return _rows("train", count_of_endless(count, TRAIN_SIZE, "countdown"))


def test_rows(count: int | None = None) -> list[Row]:
    """Return the first `count` test puzzles (None: 2000); none is a training puzzle."""
    return _rows("test", count_of_endless(count, TEST_SIZE, "countdown"))


def _rows(split: str, count: int) -> list[Row]:
    return [
        {"prompt": _prompt(puzzle), "numbers": list(puzzle.numbers), "target": puzzle.target}
        for puzzle in islice(puzzles(split), count)
    ]


def _prompt(puzzle: Puzzle) -> str:
    numbers = ", ".join(map(str, puzzle.numbers))
    return (
        f"Here are some numbers: {numbers}. "
        f"Write an arithmetic expression that equals {puzzle.target}. "
        "It must use every one of these numbers exactly once; the operators are +, -, * and /, "
        "and brackets are allowed. Reason first, inside <think> </think>. "
        "Then, on the next line, write only the finished expression inside <answer> </answer>, "
        "for example <answer>(9 - 4) * 6</answer>.\n<think>"
    )


def countdown_reward(
    completions: Sequence[TextOrMessages],
    numbers: Sequence[Any],
    target: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score each completion by 0.1 * format + answer, which is 1.1 at best."""
    grades = _grades(completions, numbers, target)
    log_mean(log_metric, "correct", [grade.answer for grade in grades])
    log_mean(log_metric, "format", [grade.format for grade in grades])
    return [0.1 * grade.format + grade.answer for grade in grades]


def countdown_answer_reward(
    completions: Sequence[TextOrMessages],
    numbers: Sequence[Any],
    target: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score each completion by its answer alone: 1 when it is right, else 0."""
    grades = _grades(completions, numbers, target)
    log_mean(log_metric, "correct", [grade.answer for grade in grades])
    return [grade.answer for grade in grades]


@dataclass(frozen=True)
class Grade:
    """How well a completion keeps the format (0 to 1) and whether its answer is right (0 or 1)."""

    format: float
    answer: float


def grade_completion(completion: str, numbers: Iterable[int], target: Fraction) -> Grade:
    """Grade `completion`, the text that follows a prompt's `<think>`.

    Format is 1 for one thought, a newline and one answer block with nothing after it; otherwise
    0.1 for a thought that ends plus 0.5 for an answer block. The last block's answer counts.
    """
    block = last_block(completion)
    if block is None:
        return Grade(0.1 if _THINK_END in completion else 0.0, 0.0)
    start, end = block
    value = value_of(completion[start:end], numbers)
    right = value is not None and abs(value - target) <= _TOLERANCE
    return Grade(_format_with_block(completion, start, end), float(right))


def _format_with_block(text: str, start: int, end: int) -> float:
    thought_end = text.find(_THINK_END)
    if thought_end < 0:
        return 0.5
    adjoins = text[thought_end:start] == f"{_THINK_END}\n{OPEN}"
    return 1.0 if adjoins and end + len(CLOSE) == len(text) else 0.6


def _grades(
    completions: Sequence[TextOrMessages], numbers: Sequence[Any], target: Sequence[Any]
) -> list[Grade]:
    rows = enumerate(zip(completions, numbers, target, strict=True))
    return [
        grade_completion(
            completion_text(completion),
            _read_numbers(given, row),
            _read_number(goal, row, "target"),
        )
        for row, (completion, given, goal) in rows
    ]


def _read_numbers(given: Any, row: int) -> list[int]:
    # Text is iterable too, and its characters would pass for numbers.
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise DataError(f"row {row}: numbers is {_shown(given)}, not a list of integers")
    values = [_read_number(number, row, "number") for number in given]
    if any(value.denominator != 1 for value in values):
        raise DataError(f"row {row}: numbers is {_shown(given)}, and not all of them are integers")
    return [int(value) for value in values]


def _read_number(value: Any, row: int, what: str) -> Fraction:
    """Return the exact value of a number or its text; of a float, that of its decimal text."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise DataError(f"row {row}: the {what} {_shown(value)} is not a number") from None
    # As a fraction, 1e999999999 would fill the memory.
    if not number.is_finite() or abs(number.adjusted()) > 300:
        raise DataError(
            f"row {row}: the {what} {_shown(value)} is not a finite number of ordinary size"
        )
    return Fraction(number)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


COUNTDOWN = Task(
    name="countdown",
    summary="reach a target with given numbers; rewards the format a little and the right answer",
    train=train_rows,
    test=test_rows,
    reward_funcs=(countdown_reward,),
    defaults={"max_completion_length": 1024},
    source="generated",
)

COUNTDOWN_BINARY = replace(
    COUNTDOWN,
    name="countdown_binary",
    summary="reach a target with given numbers; rewards the right answer alone",
    reward_funcs=(countdown_answer_reward,),
)
