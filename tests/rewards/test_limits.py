"""A completion that takes a grader too long gets the lowest grade and is counted."""

import functools
import json
import math
import os
import subprocess
import sys
import threading
import time

import limited_child
import psutil
import pytest

from estune.cli.main import main
from estune.common.types import Completion
from estune.errors import ConfigError
from estune.monitor.metrics import failure_metrics
from estune.rewards.code_reward import code_reward
from estune.rewards.marks import Grades, bounds_itself, own_limit
from estune.rewards.processes.limited import Limited, OverLimitError, graded
from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions
from estune.run.task_reward import TaskReward

SPINS = "while True: pass"
RIGHT = "def f(x): return x"
TESTS = ["assert f(1) == 1"]


@pytest.fixture
def limited():
    made = Limited("limited_child:made", 1.0)
    yield made
    made.close()


def children():
    """Return the processes in which limited calls run."""
    return [
        each for each in psutil.Process().children() if "limited_child" in " ".join(each.cmdline())
    ]


@pytest.mark.parametrize("what", ["spin", "power", "memory", "crash"])
def test_a_call_over_its_limit_is_ended_and_the_next_one_works(limited, what):
    started = time.monotonic()
    with pytest.raises(OverLimitError):
        limited(what)
    assert limited("next") == "next"
    assert time.monotonic() - started < 20


def test_the_same_call_is_not_made_twice(limited):
    for _ in range(2):
        with pytest.raises(OverLimitError):
            limited("spin")
    assert not children(), "the second call was answered without a process"


def test_a_process_killed_from_outside_is_replaced(limited):
    assert limited("first") == "first"
    (child,) = children()
    child.kill()
    assert limited("second") == "second"


def test_the_error_of_a_factory_is_reported():
    with pytest.raises(ConfigError, match="cannot be had"):
        Limited("limited_child:not_made", 1.0)("x")


def test_calls_from_several_threads_take_turns(limited):
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.__setitem__(n, limited(n))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {n: n for n in range(8)}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's death signal")
def test_a_limited_process_ends_with_its_parent(tmp_path):
    program = (
        "import subprocess, sys, threading, time; sys.path.insert(0, sys.argv[1])\n"
        "from estune.rewards.processes.limited import Limited\n"
        "made = Limited('limited_child:made', 60.0)\nmade(1)\n"
        "threading.Thread(target=made, args=['spin'], daemon=True).start()\n"
        "time.sleep(0.3)\nprint(made._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, os.path.dirname(limited_child.__file__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asks:
        child = psutil.Process(int(asks.stdout.readline()))
        asks.kill()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone


def test_the_lowest_grade_is_given_and_counted():
    def grade(what):
        if what == "long":
            raise OverLimitError("took long")
        return 1.0

    found = graded([("long",), ("short",), ("long",)], grade)
    assert found == [0, 1, 0]
    assert found.overran == 2


# rewards


@bounds_itself(lambda completions, seconds=1.0, **columns: seconds * len(completions))
def bounded(completions, seconds=1.0, **columns):
    time.sleep(seconds)
    return Grades([float(len(text)) for text in completions], overran=1)


def test_own_limit_is_the_longest_time_of_a_marked_graders_call():
    columns = {"completions": ["a", "b"]}
    assert own_limit(bounded, columns) == 2
    assert own_limit(functools.partial(bounded, seconds=3.0), columns) == 6
    assert own_limit(TaskReward(bounded, "one"), columns) == 2
    assert own_limit(bounded, {}) is None  # it will be refused by name when it is called
    assert own_limit(len, columns) is None
    tests = {
        "completions": ["", "", ""],
        "tests": [["a"] * 3, '["a"]', None],
    }  # None: a row of another task
    assert (
        own_limit(code_reward, tests)
        > own_limit(functools.partial(code_reward, seconds=1.0), tests)
        > 4
    )


@pytest.fixture
def rewards():
    made = []

    def make(*functions, **limits):
        made.append(RewardFunctions(functions, None, RewardLimits(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_reward_timeout_does_not_apply_to_a_grader_that_bounds_itself(rewards, workers, first):
    rows = [{"prompt": "p", "tests": TESTS}] * 3
    answers = [Completion(text, [1], False) for text in (SPINS, RIGHT, SPINS)]
    scores = rewards(
        functools.partial(code_reward, seconds=0.5), timeout=0.2, workers=workers
    ).score(rows, answers, first=first)
    assert scores.total.tolist() == [0, 1, 0]
    assert not scores.failures
    assert failure_metrics([scores, scores]) == {"es/reward_errors": 0, "es/reward_timeouts": 4}


def test_a_mixture_counts_completions_that_exceeded_a_limit(rewards):
    rows = [
        {"prompt": "p", "tests": TESTS, "task": "code"},
        {"prompt": "p", "tests": None, "task": "other"},
    ]
    answers = [Completion(SPINS, [1], False)] * 2
    scores = rewards(
        TaskReward(functools.partial(code_reward, seconds=0.5), "code"), timeout=0.2
    ).score(rows, answers)
    assert scores.total[0] == 0
    assert math.isnan(scores.total[1])
    assert scores.overran == 1


def test_reward_timeout_applies_to_other_functions(rewards):
    def sleeps(completions):
        time.sleep(100)

    scores = rewards(sleeps, timeout=0.3).score(
        [{"prompt": "p"}], [Completion("a", [1], False)], first=False
    )
    assert failure_metrics([scores]) == {"es/reward_errors": 1, "es/reward_timeouts": 1}


def test_training_logs_completions_that_exceeded_a_limit_from_the_first_step(
    tiny, tmp_path, capsys, monkeypatch
):
    body = (
        "    from estune.rewards.marks import Grades\n"
        "    return Grades(map(float, range(len(completions))), overran=1)\n"
    )
    (tmp_path / "bounded_reward.py").write_text(f"def mine(completions, **columns):\n{body}")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        "train",
        "--model_name_or_path",
        str(tiny),
        "--engine",
        "fake",
        "--dataset_name",
        str(tmp_path / "rows.jsonl"),
    ]
    words += [
        "--reward_funcs",
        "bounded_reward.mine",
        "--population_size",
        "2",
        "--max_steps",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    metrics = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(line["es/reward_timeouts"], line["es/reward_errors"]) for line in metrics] == [
        (2, 0),
        (2, 0),
    ]


def test_score_reports_how_many_exceeded_the_limit(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"completion": "import os; os._exit(0)", "tests": ["assert f(1) == 1"]}\n')
    assert main(["score", "--task", "mbpp", "--completions", str(rows)]) == 0
    assert capsys.readouterr() == ("0.0\n", "")
    lines = [
        "from estune.rewards.marks import Grades",
        "def mine(completions, **columns): return Grades([0.0], overran=1)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    sys.path.insert(0, str(tmp_path))
    try:
        assert main(["score", "--reward_funcs", "mine.mine", "--completions", str(rows)]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    out, err = capsys.readouterr()
    assert out == "0.0\n"
    assert err.startswith("1 completion exceeded the grader's time limit and got its lowest grade")
