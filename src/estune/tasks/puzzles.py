"""Endless countdown puzzles with a solution, in two splits that never share one.

Each puzzle is built backwards from an expression over its numbers. Its own hash decides its split,
so the splits stay disjoint however many puzzles either gives.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

MAX_NUMBER = 99
MAX_TARGET = 100

_SEED = 2025
_Term = tuple[str, int]


@dataclass(frozen=True)
class Puzzle:
    """The numbers to use, the target to reach, and one expression that reaches it."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """What makes two puzzles the same: the numbers in any order, and the target."""
        return tuple(sorted(self.numbers)), self.target


def puzzles(split: str) -> Iterator[Puzzle]:
    """Yield the puzzles of "train" or "test" without end or repetition, in a fixed order."""
    rng = random.Random(_SEED)
    seen = set()
    while True:
        puzzle = _build(rng)
        if 1 <= puzzle.target <= MAX_TARGET and puzzle.key not in seen:
            seen.add(puzzle.key)
            if _split(puzzle) == split:
                yield puzzle


def _split(puzzle: Puzzle) -> str:
    digest = blake2b(repr(puzzle.key).encode(), digest_size=1).digest()
    return "train" if digest[0] % 2 else "test"


def _build(rng: random.Random) -> Puzzle:
    numbers = tuple(1 + _below(rng, MAX_NUMBER) for _ in range(3 + _below(rng, 2)))
    terms: list[_Term] = [(str(number), number) for number in numbers]
    while len(terms) > 1:
        left = terms.pop(_below(rng, len(terms)))
        right = terms.pop(_below(rng, len(terms)))
        terms.append(_join(rng, left, right))
    text, target = terms[0]
    return Puzzle(numbers, target, text)


def _join(rng: random.Random, left: _Term, right: _Term) -> _Term:
    (left_text, a), (right_text, b) = left, right
    values = {"+": a + b, "-": a - b, "*": a * b}
    # Only whole quotients, so that a person could follow every step of the solution.
    if b and a % b == 0:
        values["/"] = a // b
    sign = list(values)[_below(rng, len(values))]
    return f"({left_text} {sign} {right_text})", values[sign]


def _below(rng: random.Random, limit: int) -> int:
    # Only random(): Python keeps its stream the same from version to version.
    return int(rng.random() * limit)
