"""A reward for programs: the part of a row's tests that the Python in a completion passes.

A model's program is run in a process that is locked up (jail.py): without a network, with read-only files but for an empty
folder, and with limits on time, memory and output. Where the machine does not allow that, nothing is run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from estune.errors import RewardError
from estune.resources import cores
from estune.rewards import jail

UNLOCKED = "ESTUNE_RUN_CODE_UNLOCKED"
_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_MEMORY = 1 << 30  # bytes of address space that a program may take
_SECONDS = 5.0  # that a test may take


def code_reward(
    completions: Sequence[Any],
    tests: Sequence[Any],
    log_metric: Any = None,
    *,
    seconds: float = _SECONDS,
    unlocked: bool = False,
    **columns: Any,
) -> list[float]:
    """Score each completion by the part of its row's tests that its program passes; the metric `correct` counts all or none.

    The program is the last block of Python in the completion, or all of it where there is no block. `tests` of a row are a
    list, or JSON of one, of asserts as text, or of {"input": …, "output": …} for standard input and output, which are
    compared word by word.

    Args:
        seconds: that one test may take.
        unlocked: run programs even where they cannot be locked up; so does the environment variable ESTUNE_RUN_CODE_UNLOCKED=1.

    Raises:
        RewardError: this machine cannot lock a program up, or a row has no tests.
    """
    unlocked = unlocked or os.environ.get(UNLOCKED) == "1"
    pairs = enumerate(zip(completions, tests, strict=True))
    jobs = [(program_in(_text(one)), _tests(given, row), seconds, unlocked) for row, (one, given) in pairs]
    with ThreadPoolExecutor(cores()) as threads:
        grades = list(threads.map(lambda job: part_passed(*job), jobs))
    if log_metric is not None and grades:
        log_metric("correct", sum(grade == 1.0 for grade in grades) / len(grades))
    return grades


def program_in(text: str) -> str:
    """The last block of Python in `text`, closed or not, or the whole of it."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def part_passed(program: str, tests: Sequence[Mapping[str, str]], seconds: float, unlocked: bool) -> float:
    """The part of `tests` that `program` passes. Raises RewardError where it cannot be locked up."""
    with tempfile.TemporaryDirectory(prefix="estune-code-") as folder:
        request = {
            "program": program,
            "tests": list(tests),
            "seconds": seconds,
            "memory": _MEMORY,
            "folder": folder,
            "locked": not unlocked,
        }
        results = _results(_run(json.dumps(request), (seconds + 1) * len(tests) + 10))
    if "refused" in results:
        raise RewardError(
            f"code_reward: this machine gives a program no namespaces of its own ({results['refused']}), so nothing was run; "
            f"run it where it does, or in a container without a network and with {UNLOCKED}=1"
        )
    passed = results.get("passed")
    return sum(one is True for one in passed) / len(tests) if isinstance(passed, list) and len(passed) == len(tests) else 0.0


def _results(printed: str) -> dict[str, Any]:
    """The jail's results; none where it fell apart or something else was written in their place: then no test is passed."""
    try:
        found = json.loads(printed.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _run(request: str, seconds: float) -> str:
    """What the jail printed; nothing where its time was over."""
    process = subprocess.Popen(
        [sys.executable, "-I", jail.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )
    try:
        return process.communicate(request, timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return ""
    finally:
        process.kill()
        process.wait()


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


def _tests(given: Any, row: int) -> list[dict[str, str]]:
    listed = json.loads(given) if isinstance(given, str) else given
    if not listed:
        raise RewardError(f"code_reward: completion {row} has no tests; give a list of asserts, or of inputs and outputs")
    return [{"assert": test} if isinstance(test, str) else {"input": str(test["input"]), "output": str(test["output"])} for test in listed]
