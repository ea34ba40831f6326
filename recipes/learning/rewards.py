"""Reward functions of the recipes in this folder, for the questions of the `conciseness` task."""

import re
from typing import Any

FIRST = 20  # an answer within so many characters is given at once
WORDS = 4  # a short completion has at most so many words


def at_once(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
    """Return 1 if the first characters contain the answer, else 0.

    This is a sparse reward, because chat models begin with a phrase.
    """
    return [
        float(_holds(_text(completion)[:FIRST], answer))
        for completion, answer in zip(completions, target, strict=True)
    ]


def short(completions: list[Any], **columns: Any) -> list[float]:
    """Return 1 for a completion of one to four words, right or wrong, else 0."""
    return [float(0 < len(_text(completion).split()) <= WORDS) for completion in completions]


def right(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
    """Return 1 if the completion contains the answer as whole words, else 0."""
    return [
        float(_holds(_text(completion), answer))
        for completion, answer in zip(completions, target, strict=True)
    ]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def _holds(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None
