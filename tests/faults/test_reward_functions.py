"""Nothing that a reward function does ends a run; only completions at which it fails are lost."""

import asyncio
import ctypes
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import MARKED_ROWS, ONE_GUILTY, scored

from estune.common.types import Completion
from estune.errors import RewardError

# Functions that do something bad when they see the guilty completion, and count characters else


def guarded(harm):
    def judge(completions, **columns):
        if "guilty" in completions:
            harm()
        return [len(text) for text in completions]

    return judge


def raises():
    raise ValueError("mend me")


def sleeps():
    time.sleep(1e6)


def spins_in_c():
    ctypes.PyDLL(None).sleep(10**6)  # PyDLL keeps the lock that all threads of Python need


def exits():
    os._exit(3)


def leaves():
    sys.exit(3)


def crashes():
    ctypes.string_at(0)


def kills_itself():
    os.kill(os.getpid(), 9)


def eats_memory():
    bytearray(1 << 40)
    hog = []
    while True:
        hog.append(bytearray(1 << 24))


def recurses():
    recurses()


HARMS = {
    raises: "raised ValueError: mend me",
    sleeps: "did not return within 2 s",
    spins_in_c: "did not return within 2 s",
    exits: r"ended the process that it was called in \(exit status 3\)",
    leaves: "raised SystemExit: 3",
    crashes: r"ended the process that it was called in \(killed by SIGSEGV\)",
    kills_itself: r"ended the process that it was called in \(killed by SIGKILL\)",
    eats_memory: "raised MemoryError",
    recurses: "raised RecursionError",
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_only_the_guilty_completion_fails_and_it_gets_the_lowest_reward(rewards, harm):
    scores = scored(rewards(guarded(harm), timeout=2.0))
    assert scores.by_function["judge"].tolist() == [4, 4, 4, 4]
    assert list(scores.failures["judge"]) == [1]
    pytest.importorskip("re").compile(HARMS[harm])
    import re

    assert re.search(HARMS[harm], scores.failures["judge"][1].reason)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [raises, sleeps, exits], ids=lambda harm: harm.__name__)
def test_a_failure_in_the_first_batch_is_raised(rewards, harm):
    with pytest.raises(
        RewardError, match=rf"^reward function judge {HARMS[harm]}.*; fix it and resume the run$"
    ):
        rewards(guarded(harm), timeout=2.0).score(MARKED_ROWS, ONE_GUILTY, first=True)


BAD_RETURNS = {
    "nothing": None,
    "text": "good",
    "a number": 1.0,
    "too few": [1] * 3,
    "a word": ["1", "1", "1", "1"],
    "nan": [math.nan] * 4,
    "infinity": [math.inf] * 4,
    "nested": [[1], [1], [1], [1]],
    "huge": [10**400] * 4,
}


@pytest.mark.parametrize("value", BAD_RETURNS.values(), ids=BAD_RETURNS)
def test_a_value_that_is_no_reward_is_named_and_counts_as_failed(rewards, value):
    constant = repr(value).replace("nan", "float('nan')").replace("inf", "float('inf')")
    judge = eval(f"lambda completions: {constant}")
    scores = scored(rewards(judge))
    assert np.isnan(scores.total).all()
    assert math.isnan(scores.mean_reward)
    assert len(scores.failures["<lambda>"]) == 4
    assert (
        "must return one number (or None) per completion" in scores.failures["<lambda>"][0].reason
    )


def test_none_is_no_failure(rewards):
    def judge(completions):
        return [None, 1, 2, 3]

    scores = scored(rewards(judge))
    assert not scores.failures
    assert scores.total.tolist()[1:] == [1, 2, 3]


# What a lost reward counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "total"),
    [("lowest", [4, 4, 4, 4]), ("zero", [4, 0, 4, 4]), ("drop", [4, None, 4, 4])],
)
def test_on_reward_error_sets_the_reward_of_a_failed_completion(rewards, policy, total):
    scores = scored(rewards(guarded(raises), on_error=policy))
    assert [None if math.isnan(value) else value for value in scores.total] == total


def test_raise_ends_the_run_at_any_time(rewards):
    with pytest.raises(RewardError, match="mend me"):
        scored(rewards(guarded(raises), on_error="raise"))


@pytest.mark.slow
def test_the_lowest_reward_is_that_of_all_members_of_the_step_in_any_order(rewards):
    judged = rewards(guarded(raises))
    low, high = ([Completion(text, [1], False)] * 4 for text in ("a", "abcdefgh"))
    members = [
        judged.submit(MARKED_ROWS, answers, first=False) for answers in (ONE_GUILTY, low, high)
    ]
    scores = [member.result() for member in members]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        settled = judged.settle([scores[i] for i in order])
        assert settled[order.index(0)].by_function["judge"].tolist() == [4, 1, 4, 4]


@pytest.mark.slow
def test_a_member_is_left_out_if_most_of_its_completions_failed(rewards):
    guilty = [Completion("guilty", [1], False)] * 3 + [Completion("fine", [1], False)]
    assert math.isnan(scored(rewards(guarded(raises)), guilty).mean_reward)


# After the first failure


def test_a_function_that_failed_is_called_once_per_completion_from_then_on(
    rewards, tmp_path, caplog
):
    log = str(tmp_path / "calls")

    def judge(completions):
        with open(log, "a") as file:
            file.write(f"{len(completions)} ")
        if len(completions) == 4 and "guilty" in completions:
            raise ValueError
        return [1] * len(completions)

    judged = rewards(judge, workers=1)
    fine = [ONE_GUILTY[0]] * 4
    for answers in (fine, ONE_GUILTY, fine):
        assert not scored(judged, answers).failures
    assert Path(log).read_text().split() == ["4", "4", "1", "1", "1", "1", "1", "1", "1", "1"]
    assert (
        sum(
            "from now on it is called once per completion" in record.getMessage()
            for record in caplog.records
        )
        == 1
    )


def test_logs_of_single_calls_are_merged(rewards):
    def judge(completions, mark, log_metric, log_extra):
        if completions == ["guilty"] or len(completions) > 1:
            raise ValueError
        log_metric("mark", int(mark[0]))
        log_extra("seen", mark)
        return [1]

    scores = scored(rewards(judge))
    assert scores.metrics == {"mark": (0 + 2 + 3) / 3}
    assert scores.extra == {"seen": ["0", None, "2", "3"]}


# Processes


@pytest.mark.slow
def test_children_of_a_killed_function_are_killed_too(rewards, tmp_path):
    pids = tmp_path / "pids"
    script = (
        "import os, sys, time; os.setsid(); "
        "open(sys.argv[1], 'a').write(f'{os.getpid()} '); time.sleep(1e6)"
    )

    def judge(completions):
        if "guilty" in completions:
            for number in range(100):
                if number % 10:
                    if os.fork() == 0:
                        time.sleep(1e6)
                else:  # in a session of its own
                    subprocess.Popen([sys.executable, "-S", "-c", script, str(pids)])
            time.sleep(1e6)
        return [1] * len(completions)

    started = time.time()
    assert list(scored(rewards(judge, timeout=4.0), ONE_GUILTY).failures["judge"]) == [1]
    left = [
        p
        for p in psutil.process_iter()
        if p.create_time() > started - 1 and "1e6" in " ".join(_command(p))
    ]
    assert pids.read_text().split()
    assert not left


def _command(process):
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return []


@pytest.mark.slow
def test_children_that_use_too_much_memory_end_the_process(rewards):
    def judge(completions):
        if "guilty" in completions:
            for _ in range(4):
                if os.fork() == 0:
                    hog = bytearray(300 << 20)
                    hog[:: 1 << 12] = b"x" * len(hog[:: 1 << 12])
                    time.sleep(1e6)
            time.sleep(1e6)
        return [1] * len(completions)

    reason = scored(rewards(judge, timeout=60.0)).failures["judge"][1].reason
    assert "took more than 1 GiB of memory with its children (reward_memory)" in reason


def test_gigabytes_of_output_are_not_shown(rewards, capfd, caplog):
    def judge(completions):
        print("thinking")
        for _ in range(2000):
            os.write(1, b"x" * (1 << 20))
        return [1] * len(completions)

    scores = scored(rewards(judge, timeout=60.0))
    assert scores.total.tolist() == [1] * 4
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err) < 200_000
    assert any("prints much" in record.getMessage() for record in caplog.records)


def test_the_working_folder_and_the_environment_are_restored(rewards, tmp_path):
    there = str(tmp_path)

    def judge(completions):
        changed = os.getcwd() == there or "ESTUNE_TEST" in os.environ
        os.chdir(there)
        os.environ["ESTUNE_TEST"] = "1"
        return [float(changed)] * len(completions)

    judged, before = rewards(judge, workers=1), (os.getcwd(), dict(os.environ))
    assert [scored(judged).total.sum() for _ in range(3)] == [0, 0, 0]
    assert (os.getcwd(), dict(os.environ)) == before


def test_threads_left_behind_do_not_accumulate(rewards):
    def judge(completions):
        for _ in range(30):
            threading.Thread(target=time.sleep, args=[1e6], daemon=False).start()
        return [threading.active_count()] * len(completions)

    judged = rewards(judge, workers=1)
    assert max(scored(judged).total.max() for _ in range(8)) < 130


def test_reward_processes_end_when_the_process_that_started_them_is_killed(tmp_path):
    program = """
import os, sys, time
from estune.rewards.scoring import RewardFunctions
from estune.common.types import Completion
def judge(completions):
    open(sys.argv[1] if len(sys.argv) > 1 else path, "w").write(str(os.getpid()))
    time.sleep(1e6)
path = sys.argv[1]
RewardFunctions([judge]).score([{"prompt": ""}], [Completion("", [1], False)])
"""
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", program, str(path)])
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    reward_process = psutil.Process(int(path.read_text()))
    parent.kill()
    parent.wait()
    reward_process.wait(timeout=30)


# Async functions


def test_an_async_function_is_called_concurrently_after_a_failure(rewards):
    async def judge(completions):
        await asyncio.sleep(0.2)
        if "guilty" in completions:
            raise ValueError
        return [1] * len(completions)

    answers = [Completion("guilty" if i == 7 else "fine", [1], False) for i in range(100)]
    judged = rewards(judge, workers=1, concurrency=100)
    rows = [{"prompt": ""}] * 100
    assert list(judged.score(rows, answers, first=False).failures["judge"]) == [7]
    started = time.monotonic()
    judged.score(rows, answers, first=False)
    assert time.monotonic() - started < 100 * 0.2 / 2


@pytest.mark.parametrize("blocks", [False, True], ids=["awaits", "blocks its loop"])
def test_only_the_hanging_call_of_an_async_function_fails(rewards, blocks):
    async def judge(completions):
        if "guilty" in completions:
            time.sleep(1e6) if blocks else await asyncio.sleep(1e6)
        return [1] * len(completions)

    assert list(scored(rewards(judge, timeout=1.0)).failures["judge"]) == [1]
