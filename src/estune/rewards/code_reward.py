"""A reward for programs: the fraction of a row's tests that the program in a completion passes.

The program runs in a sandbox, which returns only values. The values that a test expects stay in
this process, which compares them with the returned ones. On a machine without a sandbox, no program
is run.
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
from estune.rewards.programs.grade import ProgramGrade, grade, max_seconds

_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SECONDS = 5.0  # the default time limit per test
_SANDBOX_TEST_SECONDS = 30.0  # the longest time to test a sandbox, on a busy machine


def _max_seconds(tests: Sequence[Any], seconds: float = _SECONDS, **columns: Any) -> float:
    """Return the longest time, in seconds, that a call can take, whatever the programs do."""
    per_program = [max_seconds(len(_parsed(given)), seconds) for given in tests if given]
    return _SANDBOX_TEST_SECONDS + sum(per_program)


@prepared_by(sandboxes.prepare)
@bounds_itself(_max_seconds)
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
    A row's `tests` are a list, or the JSON text of a list. A test is either an assert statement as
    text, or {"input": …, "output": …}: the program gets the input on standard input, and what it
    prints is compared with the output word by word. The metric `correct` is the fraction of
    programs that pass all their tests.

    Args:
        seconds: time limit per test. A program that exceeds it fails this test and all later ones.
        unlocked: run programs without a sandbox. ESTUNE_RUN_CODE_UNLOCKED=1 does the same.

    Raises:
        RewardError: this machine has no sandbox, or a row has no tests.
    """
    programs = [program_in(_text(completion)) for completion in completions]
    checked = [_checked_tests(given, index) for index, given in enumerate(tests)]
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
    """Return the last fenced block of Python in `text`, or all of `text` if there is no block."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


def _parsed(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given


def _checked_tests(given: Any, index: int) -> list[str | Mapping[str, Any]]:
    where = f"code_reward: completion {index}"
    try:
        tests = _parsed(given)
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
