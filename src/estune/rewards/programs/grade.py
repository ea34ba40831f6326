"""Grade one program by its tests: ask the sandbox for values, and judge them here.

Tests that can be split and tests of input and output share one start of the sandbox, which never
gets what they expect. Tests that only run as a whole get a start of their own, apart from the
others.
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
_START = 10.0  # seconds in which a sandbox starts, even on a busy machine
_END = 20.0  # seconds in which a sandbox ends a program that met a limit
_OUTPUT = 8 << 20  # bytes that a test may add to the report: its output with all letters escaped
_REPORT = 64 << 20  # bytes of a report


@dataclass(frozen=True)
class ProgramGrade:
    """The fraction of its tests that a program passes, and whether it met its time limit."""

    fraction: float
    timed_out: bool = False


@dataclass(frozen=True)
class ProgramTest:
    """One test: what the driver is asked to do, and how its report is judged."""

    asked: Mapping[str, Any]
    split: Split | None = None
    output: str | None = None

    @property
    def whole(self) -> bool:
        """Whether the program's own process gives the verdict."""
        return self.split is None and self.output is None

    def passed(self, report: Mapping[str, Any]) -> bool:
        """Return whether the driver's report passes the test."""
        if self.whole:
            return report["passed"] is True
        if report["ended_well"] is not True:
            return False
        if self.split is not None:
            return self.split.passed(report["said"])
        return self.output is not None and str(report["said"]).split() == self.output.split()


def program_test(given: str | Mapping[str, Any], program: str) -> ProgramTest:
    """Make a test for `program` from a row's: asserts as text, or {"input": …, "output": …}."""
    if not isinstance(given, str):
        return ProgramTest({"input": str(given["input"])}, output=str(given["output"]))
    found = split(given, redefinitions(program))
    if found is None:
        return ProgramTest({"whole": given})
    return ProgramTest({"requests": [asdict(each) for each in found.requests]}, found)


def grade(
    program: str, given: Sequence[str | Mapping[str, Any]], seconds: float, sandbox: Sandbox
) -> ProgramGrade:
    """Run `program` in `sandbox`, `seconds` per test; after a test that takes longer, all fail."""
    tests = [program_test(one, program) for one in given]
    passed = 0
    for whole in (False, True):
        chosen = [test for test in tests if test.whole is whole]
        reports, timed_out = _reports(program, chosen, seconds, sandbox) if chosen else ([], False)
        passed += sum(test.passed(report) for test, report in zip(chosen, reports, strict=False))
        if timed_out:
            return ProgramGrade(passed / len(tests), timed_out=True)
    return ProgramGrade(passed / len(tests))


def max_seconds(tests: int, seconds: float) -> float:
    """Return the seconds within which a program with so many tests is graded, whatever it does."""
    return 2 * (_START + _END) + tests * (seconds + 1)


def _reports(
    program: str, tests: Sequence[ProgramTest], seconds: float, sandbox: Sandbox
) -> tuple[list[dict[str, Any]], bool]:
    """Return the driver's reports on the tests that it reached, and whether one took too long."""
    asked = {"program": program, "seconds": seconds, "tests": [dict(test.asked) for test in tests]}
    request, secret = marshal.dumps(asked), secrets.token_hex(16)
    whole = _START + len(tests) * (seconds + 0.5)
    output = min(_OUTPUT * (len(tests) + 1), _REPORT)
    limits = Limits(seconds=whole, cpu_seconds=2 * whole, output=output)
    outcome = sandbox.run(_DRIVER, b"%016d" % len(request) + request + secret.encode(), limits)
    reports = _read(outcome.output, secret)
    return reports, outcome.timed_out or any(report["timed_out"] for report in reports)


def _read(printed: bytes, secret: str) -> list[dict[str, Any]]:
    """Return the reports: [] if the driver was ended, or the program printed in its place."""
    try:
        found = json.loads(printed)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict) or found.get("secret") != secret:
        return []
    reports: list[dict[str, Any]] = found["reports"]
    return reports
