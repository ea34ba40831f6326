"""Grade one program by its tests: ask the sandbox for values, and judge them here.

Tests that can be split and tests of input and output share one start of the sandbox, without what
they expect. Tests that only run as a whole have a start of their own, away from the others.
"""

import hmac
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
_START = 10.0  # seconds for a sandbox and its interpreter to start on a busy machine
_END = 20.0  # seconds that a sandbox may take to end what met a limit
_OUTPUT = 8 << 20  # bytes that a test may add to the report: its output with all letters escaped
_REPORT = 64 << 20  # bytes of all tests' together


@dataclass(frozen=True)
class Grade:
    """The part of its tests that a program passes, and whether it met its time limit."""

    fraction: float
    timed_out: bool = False


@dataclass(frozen=True)
class ProgramTest:
    """One test: what the driver is asked for, and how its report is judged."""

    asked: Mapping[str, Any]
    split: Split | None = None
    output: str | None = None

    @property
    def whole(self) -> bool:
        """Whether the verdict comes from the program's own process."""
        return self.split is None and self.output is None

    def passed(self, report: Mapping[str, Any]) -> bool:
        if self.output is not None:
            return (
                report["ended_well"] is True and str(report["said"]).split() == self.output.split()
            )
        if self.split is not None:
            return report["ended_well"] is True and self.split.passed(report["said"])
        return report["passed"] is True


def program_test(given: str | Mapping[str, Any], program: str) -> ProgramTest:
    """A row's test, an assert as text or {"input": …, "output": …}, for `program`."""
    if not isinstance(given, str):
        return ProgramTest({"input": str(given["input"])}, output=str(given["output"]))
    found = split(given, redefinitions(program))
    return (
        ProgramTest({"whole": given})
        if found is None
        else ProgramTest({"steps": [asdict(step) for step in found.steps]}, found)
    )


def grade(
    program: str, given: Sequence[str | Mapping[str, Any]], seconds: float, sandbox: Sandbox
) -> Grade:
    """Run `program` in `sandbox`, `seconds` per test; a test that takes longer fails those after it."""
    tests = [program_test(one, program) for one in given]
    passed = 0
    for chosen in (
        [test for test in tests if not test.whole],
        [test for test in tests if test.whole],
    ):
        reports, timed_out = _reports(program, chosen, seconds, sandbox) if chosen else ([], False)
        passed += sum(test.passed(report) for test, report in zip(chosen, reports, strict=False))
        if timed_out:
            return Grade(passed / len(tests), timed_out=True)
    return Grade(passed / len(tests))


def most_seconds(tests: int, seconds: float) -> float:
    """Seconds after which the grade of a program with so many tests is there, whatever it does."""
    return 2 * (_START + _END) + tests * (seconds + 1)


def _reports(
    program: str, tests: Sequence[ProgramTest], seconds: float, sandbox: Sandbox
) -> tuple[list[dict[str, Any]], bool]:
    """The driver's reports of the tests that it reached, and whether one ran out of time."""
    asked = {"program": program, "seconds": seconds, "tests": [dict(test.asked) for test in tests]}
    request, secret = marshal.dumps(asked), secrets.token_hex(16)
    whole = _START + len(tests) * (seconds + 0.5)
    limits = Limits(
        seconds=whole, cpu_seconds=2 * whole, output=min(_OUTPUT * (len(tests) + 1), _REPORT)
    )
    outcome = sandbox.run(_DRIVER, b"%016d" % len(request) + request + secret.encode(), limits)
    reports = _read(outcome.output, secret)
    return reports, outcome.timed_out or any(report["timed_out"] for report in reports)


def _read(printed: bytes, secret: str) -> list[dict[str, Any]]:
    """The reports; none if the driver was ended, or something else printed in its place."""
    try:
        found = json.loads(printed)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict) or not hmac.compare_digest(
        str(found.get("secret")).encode(), secret.encode()
    ):
        return []
    reports: list[dict[str, Any]] = found["reports"]
    return reports
