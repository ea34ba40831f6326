"""The benchmarks run, and print the ratios that they promise; their size is nobody's test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_kernel_benchmark_prints_its_ratios_as_one_json_object():
    command = [sys.executable, "-m", "benchmarks.kernels", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    assert {"perturbed_over_copy", "usual_over_perturbed", "usual_over_update"} <= figures.keys()
    assert all(value > 0 for value in figures.values())
