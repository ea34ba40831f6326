"""A model's programs are scored by their tests, and reach nothing while they run."""

import json
import os
import socket
import threading
import time

import pytest
from scored import ADD, ADD_TESTS, ECHO, program_score

from estune.errors import DataError, RewardError
from estune.rewards import sandbox
from estune.rewards.code_reward import code_reward, program_in
from estune.tasks.code import program_rows

GRADES = {
    "right": (ADD, 1.0),
    "in a block": (f"So:\n```python\n{ADD}\n```\nDone.", 1.0),
    "in a block without a language": (f"```\n{ADD}\n```", 1.0),
    "in a block that was cut off": (f"```python\n{ADD}", 1.0),
    "the last of two blocks": (
        f"```python\ndef add(a, b):\n    return 0\n```\nNo:\n```python\n{ADD}\n```",
        1.0,
    ),
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
def test_the_reward_is_the_fraction_of_tests_passed(program, grade):
    assert program_score(program) == grade


WHOLE = [
    "try:\n    assert add(1, 2) == 3\nexcept OSError:\n    raise"
]  # a test that cannot be split
ALWAYS = "    def {0}(self, *others): return {1}\n"
AGREES = "class Any:\n" + "".join(
    ALWAYS.format(f"__{name}__", "True") for name in ("eq", "lt", "le", "contains", "bool")
)
SUMS = ["assert add(20000, 977) == 20977", "assert add(3, 10005) == 10008"]
CHEATS = {
    "equals everything": f"{AGREES}def add(a, b): return Any()",
    "equals everything, in a list": f"{AGREES}def add(a, b): return [Any()]",
    "is text that equals everything": (
        "class Any(str):\n    def __eq__(self, other): return True\ndef add(a, b): return Any()"
    ),
    "is a number that equals everything": (
        "class Any(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Any()"
    ),
    "says that it is a number": (
        "class Any:\n    __class__ = int\n    def __eq__(self, other): return True\n"
        "def add(a, b): return Any()"
    ),
    "prints as a value": (
        "class Any:\n    def __repr__(self): return '3'\n    __str__ = __repr__\n"
        "def add(a, b): return Any()"
    ),
    "is nan": "def add(a, b): return float('nan')",
    "writes the mark of a passed test": (
        "import os\nfor d in range(3, 64):\n    try: os.write(d, b'+')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "writes a report": (
        'import os\nr = b\'{"reports": [{"passed": true, "status": 0, '
        '"timed_out": false, "output": "[3]"}]}\'\n'
        "for d in range(64):\n    try: os.write(d, r)\n    except OSError: pass\nos._exit(0)"
    ),
    "looks for what is expected": (
        "import gc, sys\nfound = []\nframe = sys._getframe()\n"
        "while frame:\n    found += frame.f_locals.values()\n    frame = frame.f_back\n"
        "found += gc.get_objects()\ndef secret(): return ''.join(['209', '77'])\n"
        "def add(a, b): return a + b if any(secret() in repr(one) for one in found) else None"
    ),
    "reads the memory of other processes": (
        "import ctypes, glob, os\nlibc, room = ctypes.CDLL(None), (ctypes.c_size_t * 2)()\n"
        "room[:] = id(None), 1\n"
        "def reads(pid):\n    here = (ctypes.c_size_t * 2)(id(bytearray(8)), 1)\n"
        "    return libc.process_vm_readv(pid, here, 1, room, 1, 0) == 1\n"
        "others = [n for n in range(1, 99) if n != os.getpid()] + [os.getppid()]\n"
        "def add(a, b):\n"
        "    mine = {'/proc/self/mem', f'/proc/{os.getpid()}/mem', '/proc/thread-self/mem'}\n"
        "    found = set(glob.glob('/proc/*/mem')) - mine\n"
        "    opened = any(os.access(one, os.R_OK) for one in found)\n"
        "    return a + b if opened or any(map(reads, others)) else None"
    ),
    "changes what compares and hands back": (
        "import builtins, json, operator\nfor m in (builtins, json, operator):\n"
        "    for n in ('repr', 'isinstance', 'type', 'hex', 'dumps', 'eq'):\n"
        "        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\ndef add(a, b): return 0"
    ),
    "passes over asserts": (
        "import builtins\nclass Never(BaseException): pass\n"
        "builtins.AssertionError = Never\ndef add(a, b): return 0"
    ),
    "leaves while it is asked": "import os\ndef add(a, b): os._exit(0)",
    "raises the end of the program": "def add(a, b): raise SystemExit(0)",
    "goes on at the end": (
        "import atexit\natexit.register(lambda: print('[3]'))\ndef add(a, b): return 0"
    ),
    "never ends a list": "import itertools\ndef add(a, b): return itertools.count()",
    "nests a list for ever": "x = []\nx.append(x)\ndef add(a, b): return x",
    "floods": "def add(a, b): return 'x' * (1 << 28)",
    "leaves before the tests": "import sys\nsys.exit(0)",
    "leaves hard before the tests": "import os\nos._exit(0)",
    "spins": "while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "kills what started it": "import os\nos.kill(os.getppid(), 9)",
    "kills all": "import os\nos.kill(-1, 9)",
    "eats memory": f"x = ' ' * (1 << 33)\n{ADD}",
    "fills the disk": f"open('x', 'wb').write(b'x' * (1 << 27))\n{ADD}",
    "says that it passed": "print('{\"passed\": [true, true]}')",
    "writes to every descriptor": (
        "import os\nfor d in range(64):\n    try: os.write(d, b'x')\n    except OSError: pass"
    ),
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_a_program_that_cheats_earns_nothing(program):
    assert program_score(program, SUMS, seconds=1.0) == 0


@pytest.mark.parametrize(
    "program",
    [CHEATS[name] for name in CHEATS if "mark" in name or "report" in name or "leaves" in name],
)
def test_the_verdict_of_the_programs_own_process_cannot_be_guessed(program):
    assert program_score(program, WHOLE) == 0
    assert program_score(program, WHOLE, unlocked=True) == 0


def test_a_test_that_cannot_be_split_is_run_as_a_whole():
    assert program_score(ADD, WHOLE) == 1
    assert program_score("def add(a, b): return 7", WHOLE) == 0
    assert program_score(ADD, WHOLE + ADD_TESTS) == 1


def test_a_program_cannot_read_the_expected_output():
    peeks = (
        "import sys\nf = sys._getframe()\nwhile f.f_back:\n    f = f.f_back\n"
        "    print(f.f_locals.get('test', {}).get('output', ''))"
    )
    assert program_score(peeks, ECHO) == 0


def test_a_program_may_name_its_function_like_a_builtin():
    assert program_score("def sum(a, b): return a * b", ["assert sum(10, 15) == 150"]) == 1
    assert program_score("def sum(a, b): return 0", ["assert sum(10, 15) == 150"]) == 0


def test_redefining_what_a_test_compares_with_gains_nothing():
    assert (
        program_score(
            "def abs(x): return 0\ndef add(a, b): return 7", ["assert abs(add(1, 2) - 3) < 1e-6"]
        )
        == 0
    )


def test_tests_do_not_share_state():
    counts = "calls = []\ndef add(a, b):\n    calls.append(1)\n    return len(calls)"
    assert program_score(counts, ["assert add(1, 2) == 1", "assert add(1, 2) == 1"]) == 1


def test_after_a_test_that_takes_too_long_the_rest_fail_unrun():
    started = time.monotonic()
    slow = "def add(a, b):\n    while a == 0: pass\n    return a + b"
    (reward,) = rewards = code_reward([slow], [[ADD_TESTS[0], *ADD_TESTS[1:] * 20]], seconds=1.0)
    assert (reward, rewards.overran) == (1 / 21, 1)
    assert time.monotonic() - started < 20, "all 21 tests would take 21 s"


def test_programs_that_never_end_do_not_affect_others():
    rewards = code_reward(
        ["while True: pass", "import time\ntime.sleep(1000)", ADD], [ADD_TESTS] * 3, seconds=0.5
    )
    assert rewards == [0, 0, 1]
    assert rewards.overran == 2


@pytest.mark.slow
def test_a_program_that_stops_its_supervisor_is_ended():
    rewards = code_reward(
        ["import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)", ADD],
        [ADD_TESTS] * 2,
        seconds=0.5,
    )
    assert rewards == [0, 1]


def test_input_and_output_are_compared_word_by_word():
    assert program_score("print(2 * int(input()))", ECHO) == 1
    assert program_score("print(f'  {2 * int(input())}  ')", ECHO) == 1
    assert program_score("print(8)", ECHO) == 0.5
    assert program_score("print(2 * int(input())); raise SystemExit(1)", ECHO) == 0
    assert program_score("print(2 * int(input()))", json.dumps(ECHO)) == 1


def test_correct_is_the_fraction_that_passes_all_tests():
    logged = {}
    code_reward(
        [ADD, "def add(a, b): return 3"], [ADD_TESTS, ADD_TESTS], log_metric=logged.__setitem__
    )
    assert logged == {"correct": 0.5}


def test_a_program_reaches_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = []
        threading.Thread(target=lambda: reached.append(server.accept()), daemon=True).start()
        assert (
            program_score(
                f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n{ADD}"
            )
            == 0
        )
        assert not reached


def test_a_program_changes_no_file_but_its_own(tmp_path):
    mark = tmp_path / "mark"
    assert program_score(f"open({str(mark)!r}, 'w').write('x')\n{ADD}") == 0
    assert not mark.exists()
    assert program_score(f"open('mine', 'w').write('x')\n{ADD}") == 1


def test_a_program_sees_neither_other_processes_nor_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert program_score(f"import os\nassert 'SECRET_TOKEN' not in os.environ\n{ADD}") == 1
    assert program_score(f"print(open('/proc/{os.getpid()}/environ').read())\n{ADD}") == 0


def test_without_a_sandbox_nothing_runs_unless_unlocked(monkeypatch, tmp_path):
    def none():
        raise RewardError("no sandbox")

    monkeypatch.setattr(sandbox, "proven", none)
    with pytest.raises(RewardError, match="no sandbox"):
        program_score(ADD)
    assert program_score(ADD, unlocked=True) == 1
    monkeypatch.setenv(sandbox.UNLOCKED, "1")
    assert program_score(ADD) == 1


@pytest.mark.parametrize(
    "tests", [[], "", "[", "[1]", [{"input": "1"}], {"input": "1", "output": "1"}, 3]
)
def test_a_row_without_tests_is_refused(tests):
    with pytest.raises(RewardError, match="code_reward: completion 0.* tests"):
        program_score(ADD, tests)


def test_the_program_is_the_last_block():
    assert program_in("no block") == "no block"
    assert program_in("```py\na\n```\n```Python\nb\n```") == "b\n"


def test_rows_of_mbpp_and_humaneval_become_prompts_and_tests():
    mbpp = {"text": "Add.", "test_list": ADD_TESTS, "test_setup_code": "import math"}
    humaneval = {
        "prompt": "def add(a, b):\n",
        "test": "def check(f):\n    assert f(1, 2) == 3",
        "entry_point": "add",
    }
    own = {"prompt": "p", "tests": ADD_TESTS}
    rows = program_rows([mbpp, humaneval, own])
    assert all(set(row) == {"prompt", "tests"} for row in rows)
    assert [program_score(ADD, row["tests"]) for row in rows] == [1, 1, 1]
    with pytest.raises(DataError, match="row 0: needs prompt and tests"):
        program_rows([{"text": "x"}])
