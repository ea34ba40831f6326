"""A reward for programs: the part of a row's tests that the Python in a completion passes.

A model's program runs in a sandbox, which is asked for values alone; what a test expects stays in
this process, and is compared here. Where the machine has no sandbox, nothing is run.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from estune.common.resources import cores
from estune.errors import RewardError
from estune.rewards import sandbox as sandboxes
from estune.rewards.marks import Grades, bounds_itself, prepared_by
from estune.rewards.programs.grade import Grade, grade, most_seconds

UNLOCKED = sandboxes.UNLOCKED
_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SECONDS = 5.0  # that a test may take
_PROOF = 30.0  # seconds that a sandbox may take to prove itself on a machine that is busy


def _most_seconds(tests: Sequence[Any], seconds: float = _SECONDS, **columns: Any) -> float:
    """Seconds after which a call is over, whatever the programs do."""
    return _PROOF + sum(most_seconds(len(_listed(given)), seconds) for given in tests if given)


@prepared_by(sandboxes.prepare)
@bounds_itself(_most_seconds)
def code_reward(
    completions: Sequence[Any],
    tests: Sequence[Any],
    log_metric: Any = None,
    *,
    seconds: float = _SECONDS,
    unlocked: bool = False,
    **columns: Any,
) -> list[float]:
    """Score each completion by the part of its row's tests that its program passes.

    The program is the last block of Python in the completion, or all of it if there is no block. `tests`
    of a row are a list, or JSON of one, of asserts as text, or of {"input": …, "output": …} for standard
    input and output, which are compared word by word. The metric `correct` counts programs that pass all.

    Args:
        seconds: that one test may take. A program that takes longer fails it and those after it.
        unlocked: run programs without a sandbox; so does ESTUNE_RUN_CODE_UNLOCKED=1.

    Raises:
        RewardError: this machine has no sandbox, or a row has no tests.
    """
    jobs = [
        (program_in(_text(one)), _tests(given, row))
        for row, (one, given) in enumerate(zip(completions, tests, strict=True))
    ]
    unlocked = unlocked or os.environ.get(UNLOCKED) == "1"
    of_one = partial(
        grade, seconds=seconds, sandbox=sandboxes.unlocked() if unlocked else sandboxes.proven()
    )
    with ThreadPoolExecutor(cores()) as threads:
        grades: list[Grade] = list(threads.map(lambda job: of_one(*job), jobs))
    if log_metric is not None and grades:
        log_metric("correct", sum(each.part == 1.0 for each in grades) / len(grades))
    return Grades([each.part for each in grades], overran=sum(each.timed_out for each in grades))


def program_in(text: str) -> str:
    """The last block of Python in `text`, closed or not, or the whole of it."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


def _listed(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given


def _tests(given: Any, row: int) -> list[str | Mapping[str, Any]]:
    try:
        listed = _listed(given)
    except (ValueError, RecursionError) as error:
        raise RewardError(
            f"code_reward: completion {row}: its tests are no JSON ({error}); give a list"
        ) from None
    if not listed:
        raise RewardError(
            f"code_reward: completion {row} has no tests; give a list of asserts, or of inputs and outputs"
        )
    tests = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else []
    if not tests or not all(
        isinstance(test, str) or (isinstance(test, Mapping) and {"input", "output"} <= set(test))
        for test in tests
    ):
        raise RewardError(
            f"code_reward: completion {row}: its tests must be a list, of asserts or of inputs and outputs"
        )
    return tests
