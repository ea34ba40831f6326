"""The countdown tasks: what the grader accepts, what it refuses and what it survives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estune.errors import DataError
from estune.tasks.countdown import countdown_answer_reward, countdown_reward

MEGABYTE = 1_000_000


def score(completion: Any, numbers: Any = (1, 2), target: Any = 3) -> float:
    [value] = countdown_reward([completion], numbers=[numbers], target=[target])
    return value


def in_full_format(expression: str) -> str:
    return f"let me see</think>\n<answer>{expression}</answer>"


def is_right(expression: str, numbers: Any, target: Any) -> bool:
    return score(in_full_format(expression), numbers, target) == 1.1


# Format


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        # one thought, a newline, one answer block
        ("so</think>\n<answer>1+2</answer>", 1.1),
        ("</think>\n<answer>1+2</answer>", 1.1),
        ("line\nline\n</think>\n<answer>1+2</answer>", 1.1),
        ("so</think>\n<answer>2-1</answer>", 0.1),
        ("so</think>\n<answer></answer>", 0.1),
        # what a thought mentions does no harm
        ("I write <answer> next</think>\n<answer>1+2</answer>", 1.1),
        ("not <answer>2-1</answer></think>\n<answer>1+2</answer>", 1.1),
        ("a </answer> too</think>\n<answer>1+2</answer>", 1.1),
        ("<think>again</think>\n<answer>1+2</answer>", 1.1),
        # the answer block alone
        ("<answer>1+2</answer>", 1.05),
        ("so\n<answer>1+2</answer> there", 1.05),
        ("<answer>1+1</answer>", 0.05),
        # both blocks, but something else as well
        ("so</think><answer>1+2</answer>", 1.06),
        ("so</think> \n<answer>1+2</answer>", 1.06),
        ("so</think>\r\n<answer>1+2</answer>", 1.06),
        ("so</think>\n\n<answer>1+2</answer>", 1.06),
        ("so</think>\n<answer>1+2</answer>\n", 1.06),
        ("so</think>\n<answer>1+2</answer> ", 1.06),
        ("so</think>\n<answer>1+2</answer></answer>", 1.06),
        ("so</think>\n<answer>1+2</answer><answer>", 1.06),
        ("so</think>\nThe answer: <answer>1+2</answer>", 1.06),
        ("so</think>no</think>\n<answer>1+2</answer>", 1.06),
        ("<answer>1+2</answer> so</think>", 1.06),
        # the last block counts, and its inside begins at the nearest tag
        ("so</think>\n<answer>1+2</answer>\n<answer>2-1</answer>", 0.06),
        ("so</think>\n<answer>2-1</answer>\n<answer>1+2</answer>", 1.06),
        ("so</think>\n<answer>I say <answer>1+2</answer>", 1.06),
        ("so</think>\n<answer>1+2</answer> or <answer>2-1", 1.06),
        # a thought alone, or nothing
        ("so</think>", 0.01),
        ("so</think>\n<answer>1+2", 0.01),
        ("so</think>\n1+2</answer>", 0.01),
        ("so</think>\n</answer>1+2<answer>", 0.01),
        ("so</think>\n<Answer>1+2</Answer>", 0.01),
        ("1+2", 0),
        ("", 0),
    ],
)
def test_a_completion_is_scored_by_a_tenth_of_its_format_plus_its_answer(
    completion: str, expected: float
) -> None:
    assert score(completion) == pytest.approx(expected, abs=1e-12)
    assert score([{"role": "assistant", "content": completion}]) == score(completion)
    [answer] = countdown_answer_reward([completion], numbers=[[1, 2]], target=[3])
    assert answer == (1.0 if expected >= 1 else 0.0)


# Answers


@pytest.mark.parametrize(
    ("expression", "numbers", "target"),
    [
        ("1+2", [1, 2], 3),
        ("2 + 1", [1, 2], 3),
        ("  1  +  2  ", [1, 2], 3),
        ("(1+2)", [1, 2], 3),
        ("((1)+((2)))", [1, 2], 3),
        ("( 1 + 2 )", [1, 2], 3),
        ("+1+2", [1, 2], 3),
        ("1++2", [1, 2], 3),
        ("1 - -2", [1, 2], 3),
        ("1--2", [1, 2], 3),
        ("-(1 - 4)", [1, 4], 3),
        ("-(-3)", [3], 3),
        ("- 1 + 4", [1, 4], 3),
        ("3 * -5", [3, 5], -15),
        ("-3 * 5", [3, 5], -15),
        ("-3 - -5", [3, 5], 2),
        ("2+3*4", [2, 3, 4], 14),
        ("(2+3)*4", [2, 3, 4], 20),
        ("2*3+4", [2, 3, 4], 10),
        ("10-4-3", [3, 4, 10], 3),
        ("10-(4-3)", [3, 4, 10], 9),
        ("12/2/3", [2, 3, 12], 2),
        ("12/(2/3)", [2, 3, 12], 18),
        ("2-6/-3*4", [2, 3, 4, 6], 10),
        ("8/(3-8/3)", [3, 3, 8, 8], 24),
        ("3/3*5", [3, 5, 3], 5),
        ("0+5", [0, 5], 5),
        ("0*7", [0, 7], 0),
        ("7", [7], 7),
        ("100/3", [100, 3], "33.33333"),
        ("100/3", [100, 3], 33.33333),
        ("100/3", [100, 3], "33.333325"),
        ("1/4", [1, 4], "0.25"),
        ("1/4", [1, 4], "2.5e-1"),
        ("1/4", [1, 4], 0.25),
        ("1/4", [1, 4], Decimal("0.25")),
        ("1+2", [1, 2], "3"),
        ("1+2", [1, 2], 3.0),
        ("1+2", ["1", "2.0"], 3),
        ("1+2", [1.0, 2.0], " 3 "),
        ("1+2", (2, 1), 3),
    ],
)
def test_right(expression: str, numbers: Any, target: Any) -> None:
    assert is_right(expression, numbers, target)


@pytest.mark.parametrize(
    ("expression", "numbers", "target"),
    [
        # the wrong value
        ("1+2", [1, 2], 4),
        ("100/3", [100, 3], 33.3333),
        ("100/3", [100, 3], "33.33332"),
        ("1+2", [1, 2], "3.00002"),
        ("2+3*4", [2, 3, 4], 20),
        # the wrong numbers
        ("1+2", [1, 2, 3], 3),
        ("1+2+0", [1, 2], 3),
        ("1+2", [1, 2, 2], 3),
        ("1+1+1", [1, 2], 3),
        ("3", [1, 2], 3),
        ("12-9", [1, 2, 9], 3),
        ("1+2", [12], 3),
        ("1+2", [], 3),
        # more than one sign
        ("--3", [3], 3),
        ("- -3", [3], 3),
        ("+-3", [3], -3),
        ("1 - - -2", [1, 2], -1),
        ("1+++2", [1, 2], 3),
        ("1---2", [1, 2], -1),
        ("--(1+2)", [1, 2], 3),
        # other operators and other numerals
        ("3**1", [3, 1], 3),
        ("3* *1", [3, 1], 3),
        ("7//2", [7, 2], 3),
        ("7/ /2", [7, 2], 3),
        ("7%4", [7, 4], 3),
        ("1+2=3", [1, 2], 3),
        ("1+2=3", [1, 2, 3], 3),
        ("1|2", [1, 2], 3),
        ("01+2", [1, 2], 3),
        ("007", [7], 7),
        ("00+3", [0, 3], 3),
        ("1_0", [10], 10),
        ("1.0+2", [1, 2], 3),
        ("1e0+2", [1, 2], 3),
        ("0x1+2", [1, 2], 3),
        ("1,2", [1, 2], 3),
        ("\u0661+\u0662", [1, 2], 3),
        ("\uff11+\uff12", [1, 2], 3),
        ("\u00b9+\u00b2", [1, 2], 3),
        ("4\u22121", [4, 1], 3),
        ("3\u00d71", [3, 1], 3),
        # no product without its sign, no number with a space in it
        ("2(3)", [2, 3], 6),
        ("(2)3", [2, 3], 6),
        ("(2)(3)", [2, 3], 6),
        ("2 3", [2, 3], 6),
        ("2 3", [23], 23),
        # brackets and operators that miss their other half
        ("(1+2", [1, 2], 3),
        ("1+2)", [1, 2], 3),
        (")1+2(", [1, 2], 3),
        ("1+2()", [1, 2], 3),
        ("()", [], 0),
        ("(1+)2", [1, 2], 3),
        ("1+2+", [1, 2], 3),
        ("*1+2", [1, 2], 3),
        ("1+*2", [1, 2], 3),
        ("1 2+", [1, 2], 3),
        ("", [1, 2], 3),
        (" ", [], 0),
        ("-", [], 0),
        # only the space is a space
        ("1+2\n", [1, 2], 3),
        ("\n1+2", [1, 2], 3),
        ("1\t+2", [1, 2], 3),
        ("1\u00a0+ 2", [1, 2], 3),
        ("1+2\r", [1, 2], 3),
        # words and code
        ("1+2 # yes", [1, 2], 3),
        ("x=3", [3], 3),
        ("abs(3)", [3], 3),
        ("__import__('os')", [1, 2], 3),
        ("True+2", [1, 2], 3),
        # no value
        ("1/0", [1, 0], 1),
        ("1/(2-2)", [1, 2, 2], 0),
        ("0/0", [0, 0], 0),
        ("0/(1/0)", [0, 1, 0], 0),
    ],
)
def test_wrong(expression: str, numbers: list[int], target: Any) -> None:
    assert score(in_full_format(expression), numbers, target) == 0.1
    [answer] = countdown_answer_reward(
        [in_full_format(expression)], numbers=[numbers], target=[target]
    )
    assert answer == 0


ADVERSARIAL = {
    "brackets": "(" * 10_000,
    "brackets around a number": "(" * 10_000 + "1" + ")" * 10_000,
    "empty brackets": "()" * 10_000,
    "closing brackets": "1" + ")" * 10_000,
    "minus signs": "-" * 10_000 + "1",
    "signed brackets": "-(" * 10_000 + "1" + ")" * 10_000,
    "a tower of powers": "9**" * 10_000 + "9",
    "one large power": "9**9**9**9",
    "floor divisions": "9//" * 10_000 + "9",
    "a number of 100,000 digits": "9" * 100_000,
    "a sum with a number of 100,000 digits": "1+2+" + "9" * 100_000,
    "a megabyte of digits": "1" * MEGABYTE,
    "a megabyte of sums": "1+" * (MEGABYTE // 2) + "1",
    "a megabyte of spaces": "1+" + " " * MEGABYTE + "x",
    "a megabyte of brackets": "(" * MEGABYTE,
    "a megabyte of letters": "a" * MEGABYTE,
    "nothing but unicode digits": "\u0663" * 10_000,
    "a lone surrogate": "\ud800",
    "a null": "1+2\x00",
}


@pytest.mark.parametrize("expression", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_an_answer_made_to_break_the_grader_is_merely_wrong(expression: str) -> None:
    assert score(in_full_format(expression)) == 0.1


def test_a_right_answer_among_a_megabyte_of_spaces_is_right() -> None:
    assert is_right("1" + " " * MEGABYTE + "+2" + " " * MEGABYTE, [1, 2], 3)


@pytest.mark.parametrize(
    "piece", ["<answer>", "</answer>", "<think>", "</think>", "<answer></answer>", "<", "\n"]
)
@pytest.mark.parametrize("where", ["alone", "before", "after"])
def test_a_megabyte_of_tags_takes_no_time_worth_noting(piece: str, where: str) -> None:
    flood = piece * (MEGABYTE // len(piece))
    right = "<answer>1+2</answer>"
    if where == "alone":
        assert score(flood) <= 0.1
    elif where == "before":
        assert score(flood + right) >= 1
    else:
        assert score(right + flood) >= (0.05 if piece == "<answer></answer>" else 1)


def test_the_grader_works_at_the_bottom_of_a_deep_stack() -> None:
    def descend(levels: int) -> float:
        return (
            score(in_full_format("(" * 99 + "1" + ")" * 99 + "+2"))
            if not levels
            else descend(levels - 1)
        )

    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    assert descend(sys.getrecursionlimit() - depth - 50) == 1.1


TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="0123456789+-*/() ").map(in_full_format),
    st.lists(
        st.sampled_from(
            [
                "<think>",
                "</think>",
                "\n",
                "<answer>",
                "</answer>",
                "1",
                "2",
                "+",
                "-",
                "(",
                ")",
                " ",
                "x",
            ]
        )
    ).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_text_gets_a_score_from_0_to_1_1(text: str) -> None:
    assert 0 <= score(text) <= 1.1


# Columns


@pytest.mark.parametrize(
    ("numbers", "target", "shown"),
    [
        ([1, 2], "abc", "'abc'"),
        ([1, 2], "", "''"),
        ([1, 2], None, "None"),
        ([1, 2], float("nan"), "nan"),
        ([1, 2], "nan", "'nan'"),
        ([1, 2], "inf", "'inf'"),
        ([1, 2], "1e999999999", "'1e999999999'"),
        ([1, 2], "1/3", "'1/3'"),
        ([1, 2], [3], "[3]"),
        ([1, "two"], 3, "'two'"),
        ([1, 2.5], 3, "[1, 2.5]"),
        ([1, None], 3, "None"),
        ([1, True], 3, "True"),
        ("12", 3, "'12'"),
        (7, 3, "7"),
        (None, 3, "None"),
    ],
)
@pytest.mark.parametrize("reward", [countdown_reward, countdown_answer_reward])
def test_a_column_that_cannot_be_read_is_an_error_that_names_the_row_and_the_value(
    reward: Callable[..., Any], numbers: Any, target: Any, shown: str
) -> None:
    with pytest.raises(DataError) as refusal:
        reward(["", ""], numbers=[[1, 2], numbers], target=[3, target])
    assert "row 1" in str(refusal.value) and shown in str(refusal.value)


def test_the_metrics_are_the_share_of_right_answers_and_the_mean_format() -> None:
    metrics: dict[str, float] = {}
    columns: dict[str, Any] = {"numbers": [[1, 2]] * 4, "target": [3, "3", 3.0, 3]}
    completions = [in_full_format("1+2"), in_full_format("1-2"), "<answer>1+2</answer>", "hm"]
    countdown_reward(completions, **columns, prompts=["?"] * 4, log_metric=metrics.__setitem__)
    assert metrics == {"correct": 0.5, "format": 0.625}
    metrics.clear()
    countdown_answer_reward(completions, **columns, log_metric=metrics.__setitem__)
    assert metrics == {"correct": 0.5}
