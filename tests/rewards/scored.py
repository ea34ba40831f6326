"""Programs and completions to score, and what they score."""

import pytest

from estune.common.types import Completion
from estune.errors import RewardError
from estune.rewards.code_reward import code_reward
from estune.rewards.scoring import RewardFunctions, Scores

ADD = "def add(a, b):\n    return a + b"

ADD_TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]

ECHO = [{"input": "4\n", "output": "8\n"}, {"input": "5", "output": "10"}]


def program_score(program, tests=ADD_TESTS, **options) -> float:
    (reward,) = code_reward([program], [tests], **{"seconds": 2.0} | options)
    return reward


# Rewards of two completions


TWO_ROWS = [
    {"prompt": "p0", "target": "a", "level": 1},
    {"prompt": "p1", "target": "bb", "level": 2},
]

TWO_COMPLETIONS = [Completion("one", [5], False), Completion("three", [6, 7], True)]


def score(*functions, rows=TWO_ROWS, weights=None, state=None) -> Scores:
    return RewardFunctions(functions, weights).score(rows, TWO_COMPLETIONS[: len(rows)], state)


def refusal(*functions, **options) -> str:
    with pytest.raises(RewardError) as caught:
        score(*functions, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lengths(completions):
    return [len(text) for text in completions]


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, completions, level, **columns):
        return [self.factor * one for one in level]


class AsyncScaled:
    async def __call__(self, completions, level):
        return level
