"""The exact value of an arithmetic expression that a model wrote, safe for any text.

`eval` would run code, overflow the stack on nested brackets, and round divisions. This reader takes
one symbol at a time. It stops at the first misplaced one, and at the first number that was not
given, so its work is bounded by the given numbers rather than by the length of the text.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

MAX_DEPTH = 100

_TOKEN = re.compile(r" *([0-9]+|[-+*/()])")
_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
# A sign has its own name on the stack; it binds tighter than every binary operator.
_SIGNS = {"+": "plus", "-": "minus"}
_RANK = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "plus": 3, "minus": 3}


def value_of(text: str, numbers: Iterable[int]) -> Fraction | None:
    """Return the value of `text` if it is an expression that uses each number exactly once.

    Otherwise, after a division by zero, and if brackets nest deeper than MAX_DEPTH, return None.
    An expression consists of ASCII digits, + - * / ( ) and spaces. A number or a bracket may have
    one sign; a number has no leading zero; two adjacent values are no product.
    """
    reader = _Reader(numbers)
    try:
        for token in _tokens(text):
            reader.take(token)
        return reader.result()
    except (_Refused, ZeroDivisionError):
        return None


class _Refused(Exception):
    """The text is no expression over the given numbers."""


def _tokens(text: str) -> Iterator[str]:
    position = 0
    end = len(text.rstrip(" "))
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Refused
        yield match[1]
        position = match.end()


class _Reader:
    """Dijkstra's two stacks: values, and the operators that wait for their right-hand side.

    Recursion instead would make the result depend on the depth of the caller's stack.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        # As text, so that a number of 100,000 digits is refused without a conversion.
        self._unused = Counter(str(number) for number in numbers)
        self._values: list[Fraction] = []
        self._waiting: list[str] = []
        self._depth = 0
        self._after_value = False

    def take(self, token: str) -> None:
        if not self._after_value:
            self._take_value_part(token)
        elif token == ")":
            self._close_bracket()
        elif token in _BINARY:
            self._apply_waiting(_RANK[token])
            self._waiting.append(token)
            self._after_value = False
        else:
            raise _Refused

    def result(self) -> Fraction:
        if not self._after_value or self._depth or self._unused.total():
            raise _Refused
        self._apply_waiting(1)
        return self._values[0]

    def _take_value_part(self, token: str) -> None:
        if token == "(" and self._depth < MAX_DEPTH:
            self._waiting.append(token)
            self._depth += 1
        elif token in _SIGNS and not self._sign_waits():
            self._waiting.append(_SIGNS[token])
        elif self._unused[token] > 0:
            self._unused[token] -= 1
            self._values.append(Fraction(int(token)))
            self._after_value = True
        else:
            raise _Refused

    def _sign_waits(self) -> bool:
        return bool(self._waiting) and self._waiting[-1] in _SIGNS.values()

    def _close_bracket(self) -> None:
        if not self._depth:
            raise _Refused
        self._apply_waiting(1)
        self._waiting.pop()
        self._depth -= 1

    def _apply_waiting(self, rank: int) -> None:
        """Apply the waiting operators that bind at least as tightly as `rank`."""
        while self._waiting and _RANK[self._waiting[-1]] >= rank:
            self._apply(self._waiting.pop())

    def _apply(self, name: str) -> None:
        right = self._values.pop()
        if name in _BINARY:
            self._values.append(_BINARY[name](self._values.pop(), right))
        else:
            self._values.append(-right if name == "minus" else right)
