r"""Mathematics with an answer in \boxed{}: GSM8K and MATH to train on, and the usual benchmarks.

The problems come from the hub, or from a local file with the hub's columns or with `prompt` and
`answer`. The benchmarks have no training problems: their tasks train on those of MATH.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from estune.common.types import Row
from estune.errors import DataError
from estune.rewards.marks import bounds_itself
from estune.rewards.processes.limited import graded, max_seconds
from estune.tasks.answers import boxed_argument, last_boxed
from estune.tasks.base import (
    LogMetric,
    Task,
    TextOrMessages,
    completion_text,
    first_rows,
    hub_rows,
    log_mean,
)
from estune.tasks.grading import same_answer
from estune.tasks.usable_rows import usable

# The instruction that Qwen2.5-Math was trained with.
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
HARD = 3  # the paper trains on MATH's levels 3 to 5


@bounds_itself(max_seconds)
def math_reward(
    completions: Sequence[TextOrMessages],
    answer: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    r"""Score each completion 1 if its last \boxed{} holds the answer, else 0.

    An answer on which sympy takes too long scores 0.

    Raises:
        ConfigError: math-verify is not installed.
    """
    pairs = [
        (completion_text(completion), answer_text(right))
        for completion, right in zip(completions, answer, strict=True)
    ]
    grades = graded(pairs, _is_right)
    log_mean(log_metric, "correct", grades)
    return grades


def _is_right(completion: str, right: str) -> bool:
    box = last_boxed(completion)
    return box is not None and same_answer(box, right)


@dataclass(frozen=True)
class MathDataset:
    """A split of a dataset on the hub."""

    hub: str
    split: str
    config: str | None = None


# The 12,000 problems that are not in MATH-500.
_MATH_TRAIN = MathDataset("nlile/hendrycks-MATH-benchmark", "train")


def problem_rows(rows: Iterable[Mapping[str, Any]], what: str = "the data") -> list[Row]:
    r"""Return rows of `prompt`, `answer` and, if they exist, `level` and `subject`.

    The problem is in prompt, problem or question. The answer is in answer or final_answer, after
    GSM8K's `####`, or in the last \boxed{} of the solution. Rows without a problem or an answer are
    left out, with a warning.

    Raises:
        DataError: most rows have no problem or no answer.
    """
    return usable(rows, _problem_row, what)


def _problem_row(row: Mapping[str, Any]) -> Row:
    problem = next((row[name] for name in ("prompt", "problem", "question") if row.get(name)), None)
    answers = (row[name] for name in ("answer", "final_answer") if row.get(name) is not None)
    answer = answer_text(next(answers, "")) or boxed_argument(str(row.get("solution") or ""))
    if not problem or not answer:
        raise DataError(
            "needs a problem (prompt, problem or question) and its answer; "
            f"its columns are {', '.join(row)}"
        )
    instruction = {"role": "system", "content": INSTRUCTION}
    messages = [instruction, {"role": "user", "content": problem}]
    extra = {name: row[name] for name in ("level", "subject") if name in row}
    return {"prompt": problem if "prompt" in row else messages, "answer": answer, **extra}


def answer_text(answer: Any) -> str:
    """Return an answer as text.

    A list becomes its members separated by commas, a whole float an integer, and a solution of
    GSM8K what follows its `####`.
    """
    if isinstance(answer, (list, tuple)):
        return ", ".join(map(answer_text, answer))
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    return str(answer).rpartition("####")[2].strip()


def _rows(name: str, source: MathDataset, hard: bool, count: int | None) -> list[Row]:
    rows = hub_rows(name, source.hub, source.split, source.config, problem_rows)
    if hard:
        rows = [row for row in rows if _level(row) >= HARD]
    return first_rows(rows, count, f"the {source.split} split of {source.hub}")


def _level(row: Row) -> int:
    found = re.search(r"\d+", str(row.get("level")))  # 3 in one copy of MATH, "Level 3" in others
    return int(found[0]) if found else HARD


def _task(name: str, summary: str, test: MathDataset, train: MathDataset = _MATH_TRAIN) -> Task:
    return Task(
        name=name,
        summary=summary,
        train=partial(_rows, name, train, train is _MATH_TRAIN),
        test=partial(_rows, name, test, False),
        reward_funcs=(math_reward,),
        defaults={"max_completion_length": 1024 if name == "gsm8k" else 3000},
        source=test.hub,
        adapt=problem_rows,
    )


_GSM8K = "openai/gsm8k"
MATH_TASKS = (
    _task(
        "gsm8k",
        "word problems of grade school",
        test=MathDataset(_GSM8K, "test", "main"),
        train=MathDataset(_GSM8K, "train", "main"),
    ),
    _task(
        "math",
        "MATH: competition problems, levels 3 to 5 to learn from",
        MathDataset(_MATH_TRAIN.hub, "test"),
    ),
    _task(
        "math500",
        "500 problems of MATH, all levels; learns from math",
        MathDataset("HuggingFaceH4/MATH-500", "test"),
    ),
    _task(
        "minerva",
        "272 problems of university courses; learns from math",
        MathDataset("math-ai/minervamath", "test"),
    ),
    _task(
        "olympiadbench",
        "674 problems of olympiads, in English, text alone; learns from math",
        MathDataset("Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP"),
    ),
    _task(
        "amc",
        "40 problems of the AMC 2023; learns from math",
        MathDataset("math-ai/amc23", "test"),
    ),
    _task(
        "aime",
        "30 problems of the AIME 2024; learns from math",
        MathDataset("HuggingFaceH4/aime_2024", "train"),
    ),
)
