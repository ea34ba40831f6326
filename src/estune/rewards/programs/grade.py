"""Grade one program by its tests, which run in the sandbox.

The program cannot see the values that are expected by split tests (split.py) and by tests of input
and output. It could see those of tests that must run as a whole. So these run in another start of
the sandbox, which gets no other tests.
"""

import json
import marshal
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from estune.rewards.programs.split import redefinitions, split
from estune.rewards.sandbox import Limits, Sandbox

# The files that run in the sandbox as one program
_INSIDE = [Path(__file__).with_name(f"{name}.py") for name in ("inside", "remote_calls", "driver")]
_DRIVER = "\n".join(
    f"exec(compile({one.read_text('utf-8')!r}, {one.name!r}, 'exec'))" for one in _INSIDE
)
_START_SECONDS = 10.0  # the longest time to start a sandbox, on a busy machine
_END_SECONDS = 20.0  # the longest time until a sandbox has ended a program
_MAX_TEST_REPORT = 8 << 20  # bytes per test: the longest output with all characters escaped
_MAX_REPORT = 64 << 20  # bytes of all reports together
_SPLIT_TESTS_PER_START = 10  # each needs a process and two pipes from the start to the end
_MUST_RUN_WHOLE = 3 << 8  # wait status of a split test whose process exits with MUST_RUN_WHOLE


@dataclass(frozen=True)
class ProgramGrade:
    """The fraction of its tests that a program passes, and whether it exceeded its time limit."""

    fraction: float
    timed_out: bool = False


@dataclass(frozen=True)
class ProgramTest:
    """One test.

    kind: `split` runs apart from the program, `whole` together with it, and `output` gives input to
        the program and compares what it prints.
    for_driver: what driver.py gets of the test.
    output: what the program must print, for the kind `output`.
    """

    kind: Literal["split", "output", "whole"]
    for_driver: Mapping[str, Any]
    output: str = ""

    def passed(self, report: Mapping[str, Any]) -> bool:
        """Return whether the driver's report passes the test."""
        if self.kind == "whole":
            return report["passed"] is True
        if self.kind == "output" and str(report["output"]).split() != self.output.split():
            return False
        return bool(report["status"] == 0)


def program_test(given: str | Mapping[str, Any], program: str) -> ProgramTest:
    """Return a test of a row in the form that `program` needs.

    given: asserts as text, or {"input": …, "output": …}.
    """
    if not isinstance(given, str):
        return ProgramTest("output", {"input": str(given["input"])}, str(given["output"]))
    found = split(given, redefinitions(program))
    whole = {"whole": given}
    return ProgramTest("split", asdict(found) | whole) if found else ProgramTest("whole", whole)


def grade(
    program: str, given: Sequence[str | Mapping[str, Any]], seconds: float, sandbox: Sandbox
) -> ProgramGrade:
    """Run `program` in `sandbox` with each of the tests, and return its grade.

    A test may take `seconds`. After one that takes longer, all remaining tests count as failed.
    """
    tests = [program_test(one, program) for one in given]
    split_tests = [test for test in tests if test.kind == "split"]
    whole_tests = [test for test in tests if test.kind == "whole"]  # grows during the loop below
    starts = [
        *_chunks(split_tests, _SPLIT_TESTS_PER_START),
        [test for test in tests if test.kind == "output"],
        whole_tests,
    ]
    passed = 0
    for in_this_start in starts:
        if not in_this_start:
            continue
        reports, timed_out = _reports(program, in_this_start, seconds, sandbox)
        for test, report in zip(in_this_start, reports, strict=False):
            passed += test.passed(report)
            if test.kind == "split" and report["status"] == _MUST_RUN_WHOLE:
                whole_tests.append(ProgramTest("whole", {"whole": test.for_driver["whole"]}))
        if timed_out:
            return ProgramGrade(passed / len(tests), timed_out=True)
    return ProgramGrade(passed / len(tests))


def max_seconds(tests: int, seconds: float) -> float:
    """Return the longest time, in seconds, that `grade` can take for a number of tests."""
    starts = 2 + math.ceil(tests / _SPLIT_TESTS_PER_START)
    # A split test may have to run a second time, as a whole.
    return starts * (_START_SECONDS + _END_SECONDS) + 2 * tests * (seconds + 1)


def _chunks(tests: Sequence[ProgramTest], size: int) -> list[Sequence[ProgramTest]]:
    return [tests[start : start + size] for start in range(0, len(tests), size)]


def _reports(
    program: str, tests: Sequence[ProgramTest], seconds: float, sandbox: Sandbox
) -> tuple[list[dict[str, Any]], bool]:
    """Return the driver's reports on the tests that it ran, and whether one took too long.

    All `tests` are split tests, or none is.
    """
    split_tests = len(tests) if tests[0].kind == "split" else 0
    request = {"program": program, "seconds": seconds, "split_tests": split_tests}
    messages = [marshal.dumps(request), marshal.dumps([dict(test.for_driver) for test in tests])]
    secret = secrets.token_hex(16)
    stdin = b"".join(b"%016d" % len(each) + each for each in messages) + secret.encode()
    total = _START_SECONDS + len(tests) * (seconds + 0.5)
    max_output = min(_MAX_TEST_REPORT * (len(tests) + 1), _MAX_REPORT)
    limits = Limits(seconds=total, cpu_seconds=2 * total, output=max_output)
    outcome = sandbox.run(_DRIVER, stdin, limits)
    reports = _read(outcome.output, secret)
    return reports, outcome.timed_out or any(report["timed_out"] for report in reports)


def _read(printed: bytes, secret: str) -> list[dict[str, Any]]:
    """Return the reports in the driver's output.

    Return [] if the driver was ended, or if the secret is wrong because the program printed instead
    of the driver.
    """
    try:
        found = json.loads(printed)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict) or found.get("secret") != secret:
        return []
    reports: list[dict[str, Any]] = found["reports"]
    return reports
