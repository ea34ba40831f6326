"""RewardFunctions of the benchmark tasks beside this file; they judge answers to the questions of the `conciseness` task."""

import re
from typing import Any

FIRST = 20  # characters within which an answer counts as given at once
WORDS = 4  # of a short answer, at most


def at_once(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
    """1 when the right answer stands in the first characters, else 0: sparse, since chat models begin with a phrase."""
    return [
        float(_holds(_text(completion)[:FIRST], answer))
        for completion, answer in zip(completions, target, strict=True)
    ]


def short(completions: list[Any], **columns: Any) -> list[float]:
    """1 for an answer of a few words, at least one, whatever it says."""
    return [float(0 < len(_text(completion).split()) <= WORDS) for completion in completions]


def right(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
    """1 when the right answer stands in the completion as words of their own."""
    return [
        float(_holds(_text(completion), answer))
        for completion, answer in zip(completions, target, strict=True)
    ]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def _holds(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None
