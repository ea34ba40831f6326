"""Grade one program by its tests, which run in the sandbox.

Tests that can be split (split.py) and tests of input and output keep what they expect from the
program. Tests that only run as a whole get a start of their own, apart from the others.
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

# The files that run in the sandbox, as one program
_INSIDE = [Path(__file__).with_name(f"{name}.py") for name in ("inside", "conversation", "driver")]
_DRIVER = "\n".join(
    f"exec(compile({one.read_text('utf-8')!r}, {one.name!r}, 'exec'))" for one in _INSIDE
)
_START = 10.0  # seconds in which a sandbox starts, even on a busy machine
_END = 20.0  # seconds in which a sandbox ends a program that met a limit
_OUTPUT = 8 << 20  # bytes that a test may add to the report: its output with all letters escaped
_REPORT = 64 << 20  # bytes of a report
_AT_ONCE = 10  # split tests per start: each has two open pipes and a process throughout
_UNDECIDED = 3 << 8  # wait status of a split test that has to run as a whole


@dataclass(frozen=True)
class ProgramGrade:
    """The fraction of its tests that a program passes, and whether it met its time limit."""

    fraction: float
    timed_out: bool = False


@dataclass(frozen=True)
class ProgramTest:
    """One test: how it runs, what the driver is asked to do, and the output that is expected."""

    kind: Literal["split", "output", "whole"]
    asked: Mapping[str, Any]
    output: str = ""

    def passed(self, report: Mapping[str, Any]) -> bool:
        """Return whether the driver's report passes the test."""
        if self.kind == "whole":
            return report["passed"] is True
        if self.kind == "output" and str(report["said"]).split() != self.output.split():
            return False
        return bool(report["status"] == 0)


def program_test(given: str | Mapping[str, Any], program: str) -> ProgramTest:
    """Make a test for `program` from a row's: asserts as text, or {"input": …, "output": …}."""
    if not isinstance(given, str):
        return ProgramTest("output", {"input": str(given["input"])}, str(given["output"]))
    found = split(given, redefinitions(program))
    whole = {"whole": given}
    return ProgramTest("split", asdict(found) | whole) if found else ProgramTest("whole", whole)


def grade(
    program: str, given: Sequence[str | Mapping[str, Any]], seconds: float, sandbox: Sandbox
) -> ProgramGrade:
    """Run `program` in `sandbox`, `seconds` per test; after a test that takes longer, all fail."""
    tests = [program_test(one, program) for one in given]
    apart = [test for test in tests if test.kind == "split"]
    starts = [apart[at : at + _AT_ONCE] for at in range(0, len(apart), _AT_ONCE)]
    starts.append([test for test in tests if test.kind == "output"])
    whole = [test for test in tests if test.kind == "whole"]
    passed = 0
    for chosen in filter(None, [*starts, whole]):
        reports, timed_out = _reports(program, chosen, seconds, sandbox)
        for test, report in zip(chosen, reports, strict=False):
            passed += test.passed(report)
            if test.kind == "split" and report["status"] == _UNDECIDED:
                whole.append(ProgramTest("whole", {"whole": test.asked["whole"]}))
        if timed_out:
            return ProgramGrade(passed / len(tests), timed_out=True)
    return ProgramGrade(passed / len(tests))


def max_seconds(tests: int, seconds: float) -> float:
    """Return the seconds within which a program with so many tests is graded, whatever it does."""
    starts = 2 + math.ceil(tests / _AT_ONCE)
    return starts * (_START + _END) + 2 * tests * (seconds + 1)


def _reports(
    program: str, tests: Sequence[ProgramTest], seconds: float, sandbox: Sandbox
) -> tuple[list[dict[str, Any]], bool]:
    """Return the driver's reports on the tests that it reached, and whether one took too long."""
    actors = len(tests) if tests[0].kind == "split" else 0
    request = {"program": program, "seconds": seconds, "actors": actors}
    asked, secret = [dict(test.asked) for test in tests], secrets.token_hex(16)
    whole = _START + len(tests) * (seconds + 0.5)
    output = min(_OUTPUT * (len(tests) + 1), _REPORT)
    limits = Limits(seconds=whole, cpu_seconds=2 * whole, output=output)
    parts = [marshal.dumps(request), marshal.dumps(asked)]
    given = b"".join(b"%016d" % len(part) + part for part in parts) + secret.encode()
    outcome = sandbox.run(_DRIVER, given, limits)
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
