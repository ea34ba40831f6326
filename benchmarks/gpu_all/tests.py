"""Run the tests that need a GPU; with --cpu, run the same tests on CPU tensors.

python -m benchmarks.gpu_all.tests [--cpu]
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.common import ROOT
from benchmarks.gpu_all import print_figures

# only these, because collecting all tests takes half a minute
FILES = ("tests/theta/test_on_a_gpu.py", "tests/noise/test_noise_triton.py")


def main() -> int:
    on_cpu = sys.argv[1:] == ["--cpu"]
    which = [FILES[0], "-m", "not gpu"] if on_cpu else [*FILES, "-m", "gpu"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*pytest, f"--junit-xml={report}", *which]
        status = subprocess.run(command, cwd=ROOT).returncode
        if report.is_file():
            print_figures(counts(report))
    return status


def counts(report: Path) -> dict[str, float | str]:
    """Return how many tests passed, were skipped, and failed or could not run."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    total, failures, errors, skipped = (int(suite.get(name, 0)) for name in names)
    failed = failures + errors
    return {
        "tests_passed": total - failed - skipped,
        "tests_failed": failed,
        "tests_skipped": skipped,
    }


if __name__ == "__main__":
    sys.exit(main())
