r"""A reward for math problems: 1 where the last \boxed{} of a completion holds the answer as it is written, else 0.

It compares text, so 0.5 is not \frac{1}{2}. Grading by value with math-verify takes its place once estune has math tasks.
"""

import re
from collections.abc import Sequence
from typing import Any

from estune.tasks.base import Completion, completion_text


def boxed_reward(completions: Sequence[Completion], answer: Sequence[str], **columns: Any) -> list[float]:
    """Score each completion 1 or 0; white space counts only where it separates words or numbers."""
    given = [last_boxed(completion_text(completion)) for completion in completions]
    return [float(box is not None and _plain(box) == _plain(right)) for box, right in zip(given, answer, strict=True)]


def last_boxed(text: str) -> str | None:
    r"""What stands between the braces of the last \boxed{}; None where there is none or it never closes."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for end, letter in enumerate(rest if found else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:end]
    return None


def _plain(text: str) -> str:
    return re.sub(r"(?<!\w) | (?!\w)", "", " ".join(text.split()))
