"""Reward functions are called in other processes or, as a message says, in the run's own."""

import functools
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from helpers import MARKED_ROWS, ONE_GUILTY, scored

from estune.errors import RewardError


def test_lambdas_closures_and_partials_are_called_in_another_process(rewards):
    def of(factor):
        def judge(completions):
            return [factor * os.getpid()] * len(completions)

        return judge

    def scaled(factor, completions):
        return [factor * os.getpid()] * len(completions)

    for function in (
        of(1),
        lambda completions: [os.getpid()] * len(completions),
        functools.partial(scaled, 1),
    ):
        assert scored(rewards(function)).total[0] != os.getpid()


def test_a_script_without_a_main_guard_runs_once(
    tmp_path,
):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nprint('script')\n"
        "from estune.rewards.scoring import RewardFunctions\n"
        "from estune.common.types import Completion\n"
        "def judge(completions):\n    return [os.getpid()] * len(completions)\n"
        "completions = [Completion('', [1], False)]\n"
        "total = RewardFunctions([judge]).score([{'prompt': ''}], completions).total\n"
        "print('elsewhere' if total[0] != os.getpid() else 'here')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.split(), done.returncode) == (["script", "elsewhere"], 0), done.stderr


def test_a_function_that_keeps_state_is_called_here_and_keeps_it(rewards, caplog):
    caplog.set_level(logging.INFO)
    seen = []

    def judge(completions):
        seen.append(os.getpid())
        return [1] * len(completions)

    scored(rewards(judge))
    assert seen == [os.getpid()]
    assert any(
        "judge is called in this process, where it can't be killed: it keeps a list"
        in r.getMessage()
        for r in caplog.records
    )


def test_a_function_in_a_thread_that_hangs_is_given_up(rewards):
    seen = []

    def judge(completions):
        seen.append(len(completions))
        if "guilty" in completions:
            time.sleep(60)
        return [1] * len(completions)

    assert list(scored(rewards(judge, timeout=0.5)).failures["judge"]) == [1]
    assert seen == [4, 1, 1, 1, 1]


def test_a_column_that_cannot_be_sent_keeps_the_function_here(rewards, caplog):
    caplog.set_level(logging.INFO)
    rows = [row | {"lock": threading.Lock()} for row in MARKED_ROWS]

    def judge(completions, lock):
        return [os.getpid()] * len(completions)

    assert rewards(judge).score(rows, ONE_GUILTY).total[0] == os.getpid()
    assert any("its arguments cannot be sent" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "words",
    [
        "signal only works in main thread of the main interpreter",
        "due to usage of signal.alarm() in timeout",
    ],
)
def test_a_function_in_a_thread_that_needs_an_alarm_signal_gets_advice(rewards, words):
    seen = []

    def judge(completions):
        seen.append(completions)
        raise ValueError(words)

    with pytest.raises(
        RewardError,
        match="write it as a plain function, or turn the time limit off .*parsing_timeout=None",
    ):
        rewards(judge).score(MARKED_ROWS[: len(ONE_GUILTY)], ONE_GUILTY, first=True)


def test_a_function_in_a_thread_is_warned_about_math_verifys_time_limits(
    rewards, caplog, monkeypatch
):
    monkeypatch.setitem(sys.modules, "math_verify", object())
    seen = []

    def judge(completions):
        seen.append(completions)
        return [0.0] * len(completions)

    with caplog.at_level(logging.INFO, "estune"):
        scored(rewards(judge))
    assert any(
        "math-verify's own time limits fail there" in record.getMessage()
        for record in caplog.records
    )
