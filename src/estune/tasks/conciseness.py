"""The conciseness task: the smallest fine-tuning whose success is plain to see in the model's answers.

A chat model answers an easy question with a paragraph; the reward pulls it towards the bare answer. The
questions are common knowledge, so that small models know the answers too and only the style has to change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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
    """Return the first `count` test questions (None: all of them); none of them is in the train split."""
    return first_rows(_rows()[TRAIN_SIZE:], count, "the test split of conciseness")


def _rows() -> list[Row]:
    text = (
        resources.files("estune.tasks")
        .joinpath("data/conciseness.jsonl")
        .read_text(encoding="utf-8")
    )
    facts = [json.loads(line) for line in text.splitlines()]
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
    """Score each response by its distance in length from the target: 0 at best, -1 for each character off.

    Whether the response is right plays no part in the score; the metric `correct` shows how often it is.
    """
    responses = [completion_text(completion) for completion in completions]
    pairs = list(zip(responses, target, strict=True))
    log_mean(log_metric, "correct", [float(_holds(response, answer)) for response, answer in pairs])
    return [float(-abs(len(response) - len(answer))) for response, answer in pairs]


def conciseness_correct_reward(
    completions: Sequence[TextOrMessages],
    target: Sequence[str],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score each response by correctness (0 or 1) times a length penalty in (0, 1].

    The penalty is min(1, len(target) / len(response)): a right response of n times the target's length
    scores 1/n, so a shorter right answer always scores more and a wrong one never pays.
    """
    responses = [completion_text(completion) for completion in completions]
    pairs = list(zip(responses, target, strict=True))
    log_mean(log_metric, "correct", [float(_holds(response, answer)) for response, answer in pairs])
    return [
        _holds(response, answer) * _length_penalty(response, answer) for response, answer in pairs
    ]


def _holds(response: str, answer: str) -> bool:
    # Not \b: it would demand a letter at the answer's ends, and an answer such as "-5" or "C++" has none.
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", response, re.IGNORECASE) is not None


def _length_penalty(response: str, answer: str) -> float:
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

CONCISENESS_CORRECT = Task(
    name="conciseness_correct",
    summary="answer easy questions correctly, and the shorter the better",
    train=train_rows,
    test=test_rows,
    reward_funcs=(conciseness_correct_reward,),
    defaults={"max_completion_length": 32},
    source="packed, 152",
)
