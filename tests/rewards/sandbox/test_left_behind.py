"""However the trainer ends, programs and reward functions leave no process or file behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from attacks import ATTACKS, PRELUDE
from boxes import made

from estune.rewards.processes import reaper
from estune.rewards.sandbox import PROVEN, UNLOCKED, Limits
from estune.rewards.sandbox.baits import baits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has reapers")
HOLDS = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(987654)
    os._exit(0)
time.sleep(987654)
"""
SERVES = """
import subprocess, time
def serves(completions, **columns):
    subprocess.Popen(["sleep", "{mark}"], start_new_session=True)
    time.sleep(1000)
"""
MOVES = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    time.sleep(987655)
os.kill(os.getpid(), int(sys.argv[1]))
"""


def running(mark):
    """Return the processes with `mark` in their command."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(
            str(mark) in word for word in process.info["cmdline"] or []
        ):
            found.append(process)
    return found


def soon(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def descendants(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def gone(processes):
    return soon(
        lambda: (
            not [
                each
                for each in processes
                if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
            ]
        )
    )


@pytest.mark.parametrize("kind", ["bubblewrap", "sandlock", "unlocked"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_programs_end_with_the_trainer(kind, number, tmp_path):
    if kind != "unlocked":
        made(kind)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"completion": HOLDS, "tests": ["assert True"]}))
    environment = (
        os.environ
        | {"TMPDIR": str(tmp_path)}
        | ({UNLOCKED: "1"} if kind == "unlocked" else {PROVEN: kind})
    )
    command = [
        sys.executable,
        "-m",
        "estune",
        "score",
        "--task",
        "mbpp",
        "--completions",
        str(rows),
    ]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as trainer:
        assert soon(lambda: len(descendants(trainer.pid)) >= 5, 60)
        time.sleep(0.5)
        started = descendants(trainer.pid)
        trainer.send_signal(number)
    assert gone(started)


def test_processes_of_a_reward_function_end_with_a_killed_trainer(tmp_path):
    mark = 876500 + os.getpid() % 100
    (tmp_path / "r.py").write_text(SERVES.format(mark=mark))
    script = tmp_path / "train.py"
    script.write_text(
        "from estune.rewards.call import Call\n"
        "from estune.rewards.processes.pool import Pool, RewardLimits\nfrom r import serves\n"
        "Pool([serves], ['serves'], RewardLimits())"
        ".submit(0, Call({'completions': ['a']}, {}, (), 1), strict=False).result()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path) as trainer:
        assert soon(lambda: running(mark), 60)
        started = descendants(trainer.pid)
        trainer.kill()
    assert gone(started)
    assert soon(lambda: not running(mark))


def test_a_reaper_ends_processes_in_other_sessions_and_exits_like_its_child(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(MOVES)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        command = [
            sys.executable,
            "-I",
            "-S",
            reaper.__file__,
            str(os.getpid()),
            str(script),
            str(int(number)),
        ]
        assert subprocess.run(command).returncode == -number
    assert not running(script)


def test_a_reaper_whose_parent_has_ended_starts_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    ended = subprocess.run([sys.executable, "-I", "-S", reaper.__file__, "1", str(script)])
    assert ended.returncode == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_hostile_programs_leave_nothing_behind(sandbox, tmp_path, monkeypatch):
    """They leave no process, file, descriptor or memory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = Limits(seconds=1.0, cpu_seconds=1.0, memory=256 << 20, disk=32 << 20)
    sandbox.run("pass", b"", limits)
    before = _state(tmp_path)
    with baits() as placed, ThreadPoolExecutor(2) as threads:
        locations = json.dumps(placed.locations).encode()
        outcomes = list(
            threads.map(
                lambda source: sandbox.run(PRELUDE + source, locations, limits), ATTACKS.values()
            )
        )
        assert placed.touched() == []
    assert not [outcome for outcome in outcomes if b"GOT" in outcome.output]
    assert soon(lambda: _nothing_left(_state(tmp_path), before))
    assert _state(tmp_path)[3] < before[3] + (64 << 20)


def _nothing_left(after, before):
    """Fewer processes and descriptors are fine: those of earlier tests end in the meantime."""
    return after[0] <= before[0] and after[1] <= before[1] and after[2] == before[2]


def _state(folder):
    own = psutil.Process()
    return (
        len(own.children(recursive=True)),
        own.num_fds(),
        sorted(os.listdir(folder)),
        own.memory_info().rss,
    )
