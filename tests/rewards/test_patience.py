"""Only the time in which this process was stopped does not count against a reward function."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from estune.rewards.processes import patience
from estune.rewards.processes.patience import done_within

CHILD = """
import asyncio, time
from estune.common.types import Completion
from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions

kept = []

def elsewhere(completions, prompts):
    import time
    time.sleep(2 * prompts[0])  # goes on while the trainer is stopped, and ends after that
    return [1.0]

def here(completions, prompts):
    kept.append(1)
    for _ in range(int(prompts[0] * 100)):
        time.sleep(0.01)
    return [1.0]

async def awaited_here(completions, prompts):
    kept.append(1)
    for _ in range(int(prompts[0] * 100)):
        await asyncio.sleep(0.01)
    return [1.0]

def score(rewards, seconds):
    return rewards.score([{"prompt": seconds}], [Completion("", [1], False)], first=False).total[0]

for function in (elsewhere, here, awaited_here):
    rewards = RewardFunctions([function], None, RewardLimits(workers=1, timeout=2.0), "drop")
    score(rewards, 0)
    print("go", flush=True)
    print("total", score(rewards, 1.6), flush=True)
    rewards.close()
"""


def waited(future_seconds, seconds):
    """Wait `seconds` for a future of `future_seconds`; return whether it is done, and when."""

    async def run():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(future_seconds, future.set_result, None)
        started = time.monotonic()
        return await done_within(future, seconds), time.monotonic() - started

    return asyncio.run(run())


def test_it_waits_for_the_future_or_the_end_of_the_time():
    done, took = waited(0.15, 5)
    assert done
    assert took < 2
    done, took = waited(5, 0.3)
    assert not done
    assert 0.25 < took < 2


@pytest.mark.parametrize(
    ("passed", "computed", "counted"),
    [(0.1, 0.0, 0.1), (0.3, 0.0, 0.3), (4.0, 0.0, 0.1), (4.0, 4.0, 4.0), (4.0, 2.0, 2.1)],
)
def test_a_late_tick_counts_only_for_the_time_computed(passed, computed, counted):
    assert patience._counted(passed, computed) == pytest.approx(counted)


@pytest.mark.slow
def test_stopping_and_continuing_the_trainer_loses_no_reward():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    totals = []
    for line in child.stdout:
        if line == "go\n":
            time.sleep(0.3)
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(child.pid, signal.SIGCONT)
        else:
            totals.append(line)
    assert child.wait(30) == 0
    assert totals == ["total 1.0\n"] * 3


def test_a_function_that_stops_its_own_process_times_out():
    from estune.common.types import Completion
    from estune.rewards.processes.pool import RewardLimits
    from estune.rewards.scoring import RewardFunctions

    def judge(completions):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSTOP)
        return [1.0]

    rewards = RewardFunctions([judge], None, RewardLimits(workers=1, timeout=1.0), "zero")
    found = rewards.score([{"prompt": ""}], [Completion("", [1], False)])
    rewards.close()
    assert found.failures["judge"][0].timed_out
