"""An innocent program costs little more in a sandbox than outside."""

import subprocess
import time

import pytest

from estune.rewards.sandbox import Limits, job

MOST = 0.1  # seconds more than plain Python


@pytest.mark.slow
def test_a_program_costs_at_most_a_tenth_of_a_second_more(sandbox):
    sandbox.run("pass", b"", Limits())  # what is started once
    pairs = [(_seconds(_plain), _seconds(lambda: sandbox.run("print(1)", b"", Limits()))) for _ in range(15)]
    assert min(inside for _, inside in pairs) - min(outside for outside, _ in pairs) < MOST


def _plain():
    subprocess.run([job.interpreter(), "-I", "-S", "-c", "print(1)"], capture_output=True, check=True)


def _seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
