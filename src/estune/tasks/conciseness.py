"""The conciseness tasks: a small fine-tuning whose success shows in the model's completions.

A chat model answers an easy question with a paragraph; the reward pulls it towards the bare answer.
The questions are common knowledge: small models know the answers too, so only the style changes.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from estune.common.types import Row
from estune.tasks.base import (
    LogMetric,
    Task,
    TextOrMessages,
    completion_text,
    first_rows,
    log_mean,
)

TRAIN_SIZE = 112


def train_rows(count: int | None = None) -> list[Row]:
    """Return the first `count` training questions (None: all of them)."""
    return first_rows(_rows()[:TRAIN_SIZE], count, "the train split of conciseness")


def test_rows(count: int | None = None) -> list[Row]:
    """Return the first `count` test questions (None: all); none of them is in the train split."""
    return first_rows(_rows()[TRAIN_SIZE:], count, "the test split of conciseness")


def _rows() -> list[Row]:
    file = resources.files("estune.tasks") / "data/conciseness.jsonl"
    facts = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        {"prompt": [{"role": "user", "content": fact["question"]}], "target": fact["target"]}
        for fact in facts
    ]


def conciseness_reward(
    completions: Sequence[TextOrMessages],
    target: Sequence[str],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score each response by minus the characters by which its length differs from the target's.

    The score does not depend on correctness. The metric `correct` is the share of right responses,
    and `characters` is the mean length of all responses.
    """
    responses = [completion_text(completion) for completion in completions]
    pairs = list(zip(responses, target, strict=True))
    _log(log_metric, pairs)
    return [float(-abs(len(response) - len(answer))) for response, answer in pairs]


def conciseness_correct_reward(
    completions: Sequence[TextOrMessages],
    target: Sequence[str],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score each response by correctness (0 or 1) times a length factor in (0, 1].

    The factor is min(1, len(target) / len(response)): a right response that is n times as long as
    the target scores 1/n. A shorter right response scores more, and a wrong one scores nothing.
    """
    responses = [completion_text(completion) for completion in completions]
    pairs = list(zip(responses, target, strict=True))
    _log(log_metric, pairs)
    return [
        _holds(response, answer) * _length_factor(response, answer) for response, answer in pairs
    ]


def correct_reward(
    completions: Sequence[TextOrMessages], target: Sequence[str], **columns: Any
) -> list[float]:
    """Score each response 1 if it contains the target as words of their own, else 0."""
    responses = [completion_text(completion) for completion in completions]
    return [
        float(_holds(response, answer)) for response, answer in zip(responses, target, strict=True)
    ]


def _log(log_metric: LogMetric | None, pairs: list[tuple[str, str]]) -> None:
    """Log the share of right responses and the mean length of all responses."""
    log_mean(log_metric, "correct", [float(_holds(response, answer)) for response, answer in pairs])
    log_mean(log_metric, "characters", [float(len(response)) for response, _ in pairs])


def _holds(response: str, answer: str) -> bool:
    # Not \b: that requires a word character at each end, which answers such as "-5" or "C++" lack.
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", response, re.IGNORECASE) is not None


def _length_factor(response: str, answer: str) -> float:
    return 1.0 if len(response) <= len(answer) else len(answer) / len(response)


CONCISENESS = Task(
    name="conciseness",
    summary="answer easy questions in as many characters as the answer has",
    train=train_rows,
    test=test_rows,
    reward_funcs=(conciseness_reward,),
    defaults={"max_completion_length": 32},
    source="packed, 152",
)

CONCISENESS_CORRECT = replace(
    CONCISENESS,
    name="conciseness_correct",
    summary="answer easy questions correctly, and the shorter the better",
    reward_funcs=(conciseness_correct_reward,),
)
