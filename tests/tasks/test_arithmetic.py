"""The reader of arithmetic gives any expression over the given numbers its exact value."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estune.tasks.arithmetic import MAX_DEPTH, value_of
from estune.tasks.countdown import countdown_answer_reward


def test_brackets_may_nest_a_hundred_deep_and_no_deeper() -> None:
    deep, deeper = ("(" * depth + "1" + ")" * depth for depth in (MAX_DEPTH, MAX_DEPTH + 1))
    assert value_of(deep, [1]) == 1 and value_of(deeper, [1]) is None
    # The limit is on depth, not on the number of brackets.
    assert value_of("+".join(["(1)"] * 1000), [1] * 1000) == 1000


@st.composite
def trees(draw: st.DrawFn) -> tuple[str, list[int], Fraction | None]:
    """Draw an expression as text, its numbers, and its exact value (None where it has none)."""
    numbers = draw(st.lists(st.integers(0, 120), min_size=1, max_size=6))
    space = st.sampled_from(["", " ", "   "])
    terms: list[tuple[str, Fraction | None]] = [
        (str(number), Fraction(number)) for number in numbers
    ]

    def dress(text: str, value: Fraction | None, atom: bool) -> tuple[str, Fraction | None]:
        if not atom or draw(st.booleans()):
            text = f"({draw(space)}{text}{draw(space)})"
        sign = draw(st.sampled_from(["", "", "+", "-"]))
        return sign + draw(space) + text, -value if sign == "-" and value is not None else value

    terms = [dress(text, value, atom=True) for text, value in terms]
    while len(terms) > 1:
        (left, a), (right, b) = terms.pop(draw(st.integers(0, len(terms) - 1))), terms.pop()
        sign = draw(st.sampled_from("+-*/"))
        terms.append(
            dress(f"{left}{draw(space)}{sign}{draw(space)}{right}", combine(sign, a, b), atom=False)
        )
    return terms[0][0], numbers, terms[0][1]


def combine(sign: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
    if a is None or b is None or (sign == "/" and b == 0):
        return None
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}[sign]


@settings(max_examples=300, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_any_expression_over_the_numbers_is_graded_as_fraction_arithmetic_says(
    tree: tuple[str, list[int], Fraction | None], rng: random.Random
) -> None:
    expression, numbers, value = tree
    shuffled = rng.sample(numbers, len(numbers))
    assert value_of(expression, shuffled) == value
    if value is not None and value.denominator == 1:
        asked: dict[str, Any] = {
            "numbers": [shuffled, shuffled, [*shuffled, 1]],
            "target": [value.numerator, value.numerator + 1, 0],
        }
        answers = [f"<answer>{expression}</answer>"] * 3
        assert countdown_answer_reward(answers, **asked) == [1, 0, 0]


SYMBOLS = st.lists(st.sampled_from([*"12+-*/() "]), max_size=14).map("".join)
STEPS = st.tuples(
    st.sampled_from("+-*/"), st.sampled_from(["", "", "-", "+ ", "("]), st.sampled_from("123456789")
)


def chain(steps: list[tuple[str, str, str]]) -> str:
    """Write "5" and then the steps; at the end, close the brackets that the steps opened."""
    text = "5" + "".join(f"{operator}{before}{number}" for operator, before, number in steps)
    return text + ")" * text.count("(")


@settings(max_examples=300, deadline=None)
@given(st.one_of(SYMBOLS, st.lists(STEPS, max_size=8).map(chain)))
def test_what_is_accepted_has_the_value_that_python_gives_it(text: str) -> None:
    value = value_of(text, [int(digit) for digit in text if digit.isdigit()])
    if value is not None:
        exact = re.sub(r"([0-9])", r"Fraction(\1)", text.strip())
        assert value == eval(exact)  # a few digits and operators: nothing that could do harm


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=8).map(chain))
def test_a_well_formed_chain_is_refused_only_for_a_division_by_zero(text: str) -> None:
    if value_of(text, [int(digit) for digit in text if digit.isdigit()]) is None:
        with pytest.raises(ZeroDivisionError):
            eval(re.sub(r"([0-9])", r"Fraction(\1)", text))
