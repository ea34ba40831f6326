"""Grade one program by its tests: let the sandbox compute values, and judge them in this process.

The sandbox is started at most twice. The first start is for tests that can be split, and tests of
input and output: it gets none of the values that they expect. The second start is for tests that
must run as a whole in the sandbox, so that the program cannot read other tests' values there.
"""

import json
import marshal
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from estune.rewards.programs.split import Split, redefinitions, split
from estune.rewards.sandbox import Limits, Sandbox

_DRIVER = (Path(__file__).parent / "driver.py").read_text(encoding="utf-8")
_START_SECONDS = 10.0  # the longest time to start a sandbox, on a busy machine
_END_SECONDS = 20.0  # the longest time until a sandbox has ended a program
_MAX_TEST_REPORT = 8 << 20  # bytes per test: the longest output with all characters escaped
_MAX_REPORT = 64 << 20  # bytes of all reports together


@dataclass(frozen=True)
class ProgramGrade:
    """The fraction of its tests that a program passes, and whether it exceeded its time limit."""

    fraction: float
    timed_out: bool = False


@dataclass(frozen=True)
class ProgramTest:
    """One test.

    for_driver: what driver.py gets of the test.
    split: the checks of a test that was split.
    output: the expected output of a test of input and output.
    """

    for_driver: Mapping[str, Any]
    split: Split | None = None
    output: str | None = None

    @property
    def runs_whole(self) -> bool:
        """Whether the test runs in the program's process, which then gives the verdict."""
        return self.split is None and self.output is None

    def passed(self, report: Mapping[str, Any]) -> bool:
        """Return whether the driver's report passes the test."""
        if self.runs_whole:
            return report["passed"] is True
        if report["ended_well"] is not True:
            return False
        if self.split is not None:
            return self.split.passed(report["output"])
        return self.output is not None and str(report["output"]).split() == self.output.split()


def program_test(given: str | Mapping[str, Any], program: str) -> ProgramTest:
    """Return a test of a row in the form that `program` needs.

    given: asserts as text, or {"input": …, "output": …}.
    """
    if not isinstance(given, str):
        return ProgramTest({"input": str(given["input"])}, output=str(given["output"]))
    found = split(given, redefinitions(program))
    if found is None:
        return ProgramTest({"whole": given})
    return ProgramTest({"requests": [asdict(each) for each in found.requests]}, found)


def grade(
    program: str, given: Sequence[str | Mapping[str, Any]], seconds: float, sandbox: Sandbox
) -> ProgramGrade:
    """Run `program` in `sandbox` with each of the tests, and return its grade.

    A test may take `seconds`. After one that takes longer, all remaining tests count as failed.
    """
    tests = [program_test(one, program) for one in given]
    passed = 0
    for runs_whole in (False, True):
        selected = [test for test in tests if test.runs_whole is runs_whole]
        if not selected:
            continue
        reports, timed_out = _reports(program, selected, seconds, sandbox)
        passed += sum(test.passed(report) for test, report in zip(selected, reports, strict=False))
        if timed_out:
            return ProgramGrade(passed / len(tests), timed_out=True)
    return ProgramGrade(passed / len(tests))


def max_seconds(tests: int, seconds: float) -> float:
    """Return the longest time, in seconds, that `grade` can take for a number of tests."""
    return 2 * (_START_SECONDS + _END_SECONDS) + tests * (seconds + 1)


def _reports(
    program: str, tests: Sequence[ProgramTest], seconds: float, sandbox: Sandbox
) -> tuple[list[dict[str, Any]], bool]:
    """Return the driver's reports on the tests that it ran, and whether one took too long."""
    for_driver = [dict(test.for_driver) for test in tests]
    request = marshal.dumps({"program": program, "seconds": seconds, "tests": for_driver})
    secret = secrets.token_hex(16)
    total = _START_SECONDS + len(tests) * (seconds + 0.5)
    max_output = min(_MAX_TEST_REPORT * (len(tests) + 1), _MAX_REPORT)
    limits = Limits(seconds=total, cpu_seconds=2 * total, output=max_output)
    outcome = sandbox.run(_DRIVER, b"%016d" % len(request) + request + secret.encode(), limits)
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
