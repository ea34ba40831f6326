"""A reward for programs: the fraction of a row's tests that a completion's Python passes.

The model's program runs in a sandbox, which only hands back values. What a test expects stays in
this process, which compares the two. On a machine without a sandbox, nothing is run.
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
from estune.rewards.programs.grade import ProgramGrade, grade, most_seconds

_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SECONDS = 5.0  # per test
_PROOF = 30.0  # seconds that the proof of a sandbox can take, on a busy machine


def _most_seconds(tests: Sequence[Any], seconds: float = _SECONDS, **columns: Any) -> float:
    """Return the seconds within which a call ends, whatever the programs do."""
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
    """Score each completion by the fraction of its row's tests that its program passes.

    The program is the last block of Python in the completion, or all of it if there is no block.
    `tests` of a row are a list, or JSON of one: asserts as text, or {"input": …, "output": …} for
    standard input and output, which are compared word by word. The metric `correct` is the fraction
    of programs that pass all their tests.

    Args:
        seconds: limit per test. A program that takes longer fails that test and those after it.
        unlocked: run programs without a sandbox; so does ESTUNE_RUN_CODE_UNLOCKED=1.

    Raises:
        RewardError: this machine has no sandbox, or a row has no tests.
    """
    programs = [program_in(_text(completion)) for completion in completions]
    checked = [_tests(given, row) for row, given in enumerate(tests)]
    unlocked = unlocked or os.environ.get(sandboxes.UNLOCKED) == "1"
    sandbox = sandboxes.Unlocked() if unlocked else sandboxes.proven()
    graded = partial(grade, seconds=seconds, sandbox=sandbox)
    with ThreadPoolExecutor(cores()) as threads:
        grades: list[ProgramGrade] = list(threads.map(graded, programs, checked))
    if log_metric is not None and grades:
        log_metric("correct", sum(each.fraction == 1.0 for each in grades) / len(grades))
    overran = sum(each.timed_out for each in grades)
    return Grades([each.fraction for each in grades], overran)


def program_in(text: str) -> str:
    """Return the last block of Python in `text`, closed or not, or all of `text`."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


def _listed(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given


def _tests(given: Any, row: int) -> list[str | Mapping[str, Any]]:
    where = f"code_reward: completion {row}"
    try:
        tests = _listed(given)
    except (ValueError, RecursionError) as error:
        raise RewardError(f"{where}: its tests are not JSON ({error}); give a list") from None
    if not tests:
        raise RewardError(f"{where} has no tests; give a list of asserts, or of inputs and outputs")
    is_list = isinstance(tests, Sequence) and not isinstance(tests, str)
    if not is_list or not all(map(_is_test, tests)):
        raise RewardError(f"{where}: its tests must be a list, of asserts or of inputs and outputs")
    return list(tests)


def _is_test(test: Any) -> bool:
    return isinstance(test, str) or (isinstance(test, Mapping) and {"input", "output"} <= set(test))
