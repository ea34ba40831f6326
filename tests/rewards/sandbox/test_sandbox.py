"""A harmless program works in each sandbox as outside; each limit ends one that exceeds it."""

import time

import pytest

from estune.rewards.sandbox import Limits, Unlocked, working_folder
from estune.rewards.sandbox.working_folder import fresh_folder


def run(sandbox, source, request=b"", **limits):
    return sandbox.run(source, request, Limits(**{"seconds": 10.0} | limits))


def test_a_program_reads_its_input_and_prints(sandbox):
    outcome = run(sandbox, "print('hello', input(), input())", b"you\nthere\n")
    assert outcome.output == b"hello you there\n"
    assert (outcome.status, outcome.timed_out) == (0, False)


def test_the_outcome_says_how_the_program_ended(sandbox):
    assert run(sandbox, "exit(3)").status == 3
    failed = run(sandbox, "1 / 0")
    assert failed.status == 1
    assert b"ZeroDivisionError" in failed.errors


def test_long_programs_and_inputs_arrive_whole(sandbox):
    outcome = run(
        sandbox, f"text = '{'x' * 5_000_000}'\nprint(len(text), len(input()))", b"y" * 3_000_000
    )
    assert outcome.output == b"5000000 3000000\n"


def test_a_program_need_not_read_its_input(sandbox):
    assert run(sandbox, "print(1)", b"y" * 3_000_000).output == b"1\n"


LIBRARY = """
import asyncio, concurrent.futures, decimal, fractions, heapq, itertools, json
import random, re, sqlite3, string, tempfile, zlib
with tempfile.TemporaryFile() as file:
    file.write(b"x")
with open("mine", "w") as file:
    file.write("x")
async def wait():
    await asyncio.sleep(0)
asyncio.run(wait())
with concurrent.futures.ThreadPoolExecutor(4) as threads:
    print(list(threads.map(abs, [-1, 2])), __name__, open("mine").read())
"""


def test_the_standard_library_works(sandbox):
    outcome = run(sandbox, LIBRARY)
    assert outcome.output == b"[1, 2] __main__ x\n", outcome.errors


THREADS = """
import threading, time
waiting = [threading.Thread(target=time.sleep, args=[0.1]) for n in range(8)]
for each in waiting:
    each.start()
print(len(waiting))
"""


@pytest.mark.slow
def test_other_processes_of_the_user_do_not_count_as_the_programs(run_as):
    for kind in ("bubblewrap", "sandlock"):
        assert run_as("user", "crowd_child.py", kind, THREADS) == "8\n"


USES_DEVICES = """
import os, subprocess, sys
open(os.devnull, "w").write("x")
command = [sys.executable, "-c", "print(5)"]
ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
print(ended.stdout, len(open("/dev/urandom", "rb").read(4)))
"""


def test_a_program_may_start_python_and_use_harmless_devices(sandbox):
    outcome = run(sandbox, USES_DEVICES)
    assert outcome.output == b"b'5\\n' 4\n", outcome.errors


def test_a_programs_folder_is_empty_at_the_start(sandbox):
    run(sandbox, "open('mine', 'w')")
    assert run(sandbox, "import os; print(os.listdir('.'))").output == b"[]\n"


def test_only_the_standard_library_can_be_imported(sandbox):
    for package in ("psutil", "estune", "pip"):
        assert b"ModuleNotFoundError" in run(sandbox, f"import {package}").errors


ENDLESS = {
    "spins": "while True: pass",
    "sleeps": "import time; time.sleep(60)",
    "closes its output first": "import os, time; os.close(1); os.close(2); time.sleep(60)",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_program_is_ended_at_its_time_limit(sandbox, source):
    started = time.monotonic()
    outcome = run(sandbox, source, seconds=1.0)
    assert (outcome.status, outcome.timed_out) == (None, True)
    assert time.monotonic() - started < 30, "it would run for a minute, or forever"


def test_a_program_is_ended_by_the_processor_time_of_all_its_processes(sandbox):
    outcome = run(
        sandbox, "import os\nfor n in range(3): os.fork()\nwhile True: pass", cpu_seconds=0.3
    )
    assert (outcome.status, outcome.timed_out) == (None, False)


def test_the_start_of_a_programs_output_is_returned(sandbox):
    outcome = run(sandbox, "print('x' * 300_000)", output=1000)
    assert outcome.output == b"x" * 1000
    assert outcome.status == 0


def test_a_program_is_ended_by_the_memory_of_its_children(sandbox):
    fork = (
        "import os, time\nfor n in range(4):\n    if os.fork() == 0:\n"
        "        kept = b'x' * (100 << 20); time.sleep(60)\ntime.sleep(60)"
    )
    started = time.monotonic()
    outcome = run(sandbox, fork, memory=256 << 20, seconds=5.0)
    assert outcome.status is None
    assert not outcome.timed_out or sandbox.name == "sandlock"  # which ends the children alone
    assert time.monotonic() - started < 30


def test_limits_hold_without_a_sandbox():
    assert run(Unlocked(), "print(input())", b"x\n").output == b"x\n"
    assert run(Unlocked(), "import time; time.sleep(60)", seconds=0.5).timed_out
    assert run(Unlocked(), "kept = b'x' * (1 << 30)", memory=256 << 20).status == 1
    assert run(Unlocked(), "open('x', 'wb').write(b'x' * (9 << 20))", disk=8 << 20).status != 0


def test_folders_of_killed_runs_are_removed_later(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "estune-program-left"
    left.mkdir()
    working_folder._remove_old_folders.cache_clear()
    run(Unlocked(), "pass")
    assert left.exists()
    monkeypatch.setattr(working_folder, "_MAX_AGE", -1.0)
    working_folder._remove_old_folders.cache_clear()
    run(Unlocked(), "pass")
    assert not left.exists()


FOLDERS = {
    "nested deeper than Python can go": (
        "import os\nfor n in range(3000):\n    os.mkdir('d'); os.chdir('d')"
    ),
    "closed": "import os\nos.mkdir('a'); open('a/b', 'w').close(); os.chmod('a', 0)",
}


@pytest.mark.parametrize("source", FOLDERS.values(), ids=FOLDERS)
def test_a_programs_folder_is_removed_whatever_it_contains(source, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(Unlocked(), source)
    assert list(tmp_path.iterdir()) == []
    with fresh_folder() as folder:
        assert [str(each) for each in tmp_path.iterdir()] == [folder]
