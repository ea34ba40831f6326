"""Programs that a model wrote are scored by their tests, and can reach nothing while they run."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from estune.errors import DataError, RewardError
from estune.rewards import code
from estune.rewards.code import code_reward, program_in
from estune.tasks.code import program_rows

ADD = "def add(a, b):\n    return a + b"
TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
ECHO = [{"input": "4\n", "output": "8\n"}, {"input": "5", "output": "10"}]


def score(program, tests=TESTS, **options) -> float:
    (reward,) = code_reward([program], [tests], **{"seconds": 2.0} | options)
    return reward


GRADES = {
    "right": (ADD, 1.0),
    "in a block": (f"So:\n```python\n{ADD}\n```\nDone.", 1.0),
    "in a block without a language": (f"```\n{ADD}\n```", 1.0),
    "in a block that was cut off": (f"```python\n{ADD}", 1.0),
    "the last of two blocks": (f"```python\ndef add(a, b):\n    return 0\n```\nNo:\n```python\n{ADD}\n```", 1.0),
    "half right": ("def add(a, b):\n    return 3", 0.5),
    "wrong": ("def add(a, b):\n    return 7", 0.0),
    "raises": ("raise ValueError", 0.0),
    "no Python": ("I don't know.", 0.0),
    "empty": ("", 0.0),
    "null bytes": ("\0", 0.0),
    "deep": ("(" * 10_000, 0.0),
    "huge": (f"x = '{'x' * 10**6}'\n{ADD}", 1.0),
    "guarded": (f"{ADD}\nif __name__ == '__main__':\n    print(add(1, 1))", 1.0),
}


@pytest.mark.parametrize(("program", "grade"), GRADES.values(), ids=GRADES)
def test_a_program_earns_the_part_of_its_tests_that_it_passes(program, grade):
    assert score(program) == grade


CHEATS = {
    "leaves before the tests": "import sys\nsys.exit(0)",
    "leaves hard before the tests": "import os\nos._exit(0)",
    "spins": "while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "kills what started it": "import os\nos.kill(os.getppid(), 9)",
    "kills all": "import os\nos.kill(-1, 9)",
    "eats memory": f"x = ' ' * (1 << 33)\n{ADD}",
    "fills the disk": f"open('x', 'wb').write(b'x' * (1 << 27))\n{ADD}",
    "says that it passed": "print('{\"passed\": [true, true]}')",
    "writes to every descriptor": "import os\nfor d in range(64):\n    try: os.write(d, b'x')\n    except OSError: pass",
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_a_program_that_does_something_else_earns_nothing(program):
    assert score(program, seconds=1.0) == 0


def test_input_and_output_are_compared_word_by_word():
    assert score("print(2 * int(input()))", ECHO) == 1
    assert score("print(f'  {2 * int(input())}  ')", ECHO) == 1
    assert score("print(8)", ECHO) == 0.5
    assert score("print(2 * int(input())); raise SystemExit(1)", ECHO) == 0
    assert score("print(2 * int(input()))", json.dumps(ECHO)) == 1


def test_correct_is_the_part_that_passes_all():
    logged = {}
    code_reward([ADD, "def add(a, b): return 3"], [TESTS, TESTS], log_metric=logged.__setitem__)
    assert logged == {"correct": 0.5}


def test_a_program_reaches_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = []
        threading.Thread(target=lambda: reached.append(server.accept()), daemon=True).start()
        assert score(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n{ADD}") == 0
        assert not reached


def test_a_program_changes_no_file_but_its_own(tmp_path):
    mark = tmp_path / "mark"
    assert score(f"open({str(mark)!r}, 'w').write('x')\n{ADD}") == 0
    assert not mark.exists()
    assert score(f"open('mine', 'w').write('x')\n{ADD}") == 1


def test_a_program_sees_neither_other_processes_nor_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert score(f"import os\nassert 'SECRET_TOKEN' not in os.environ\nassert not os.listdir('/proc')\n{ADD}") == 1


def test_what_a_program_started_ends_with_it():
    started = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(987654)\n"
    assert score(started + ADD) == 1
    commands = [path.read_bytes() for path in map(_command, os.listdir("/proc")) if path]
    assert not any(b"jail.py" in command for command in commands)


def _command(process):
    path = Path("/proc") / process / "cmdline"
    return path if process.isdecimal() and path.exists() else None


def test_where_a_program_cannot_be_locked_up_nothing_is_run_unless_it_is_wanted(monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    refuses = "def _refused(flags):\n    ctypes.set_errno(1)\n    return -1\n\n\ndef main()"
    jail.write_text(Path(code.jail.__file__).read_text().replace("_LIBC.unshare(", "_refused(").replace("def main()", refuses))
    monkeypatch.setattr(code.jail, "__file__", str(jail))
    with pytest.raises(RewardError, match=r"no namespaces of its own \(unshare: Operation not permitted\), so nothing was run; .*=1$"):
        score(ADD)
    assert score(ADD, unlocked=True) == 1
    monkeypatch.setenv(code.UNLOCKED, "1")
    assert score(ADD) == 1


def test_a_row_without_tests_is_refused():
    with pytest.raises(RewardError, match="completion 0 has no tests"):
        score(ADD, [])


def test_the_program_is_the_last_block():
    assert program_in("no block") == "no block"
    assert program_in("```py\na\n```\n```Python\nb\n```") == "b\n"


def test_rows_of_mbpp_and_humaneval_become_prompts_and_tests():
    mbpp = {"text": "Add.", "test_list": TESTS, "test_setup_code": "import math"}
    humaneval = {"prompt": "def add(a, b):\n", "test": "def check(f):\n    assert f(1, 2) == 3", "entry_point": "add"}
    own = {"prompt": "p", "tests": TESTS}
    rows = program_rows([mbpp, humaneval, own])
    assert all(set(row) == {"prompt", "tests"} for row in rows)
    assert [score(ADD, row["tests"]) for row in rows] == [1, 1, 1]
    with pytest.raises(DataError, match="row 0: needs prompt and tests"):
        program_rows([{"text": "x"}])
