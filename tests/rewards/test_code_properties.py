"""Whatever a model writes, the reward of its program is from 0 to 1 (fuzzed)."""

import json
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import ADD, ADD_TESTS, ECHO, program_score

from estune.errors import DataError
from estune.rewards.code_reward import code_reward, program_in
from estune.rewards.programs.grade import ProgramGrade, grade
from estune.rewards.sandbox import Limits, Outcome
from estune.tasks.code import program_rows

FENCES = [
    "```",
    "```python\n",
    "```Python3 \n",
    "```py",
    "```\r\n",
    "````\n",
    "~~~\n",
    "`",
    "```json\n",
    "\n```\n",
]
PROGRAMS = [
    ADD,
    f"{ADD}\n",
    "print(8)",
    "def f(:",
    "(" * 300,
    "'''",
    "exit()",
    "raise BaseException",
    "\0",
    "\ud800",
    "\u2028",
    "\x0c",
    " " * 99,
]
WRITTEN = st.lists(
    st.one_of(st.sampled_from([*FENCES, *PROGRAMS]), st.text(max_size=12)), max_size=8
).map("".join)
PROSE = st.text(st.characters(exclude_characters="`"), max_size=40)
SLOW = settings(max_examples=15, deadline=None)  # each starts a process


@settings(max_examples=1000)
@given(text=WRITTEN)
def test_a_program_is_part_of_the_text_without_fences(text):
    program = program_in(text)
    assert program in text
    assert program == text or "```" not in program


@settings(max_examples=500)
@given(
    before=PROSE,
    after=PROSE,
    end=st.sampled_from(["\n", "\r\n"]),
    word=st.sampled_from(["", "py", "python", "Python", "python3", "python  "]),
)
def test_prose_around_a_block_does_not_matter(before, after, end, word):
    assert program_in(f"{before}```{word}{end}{ADD}\n```{after}") == f"{ADD}\n"


@SLOW
@given(text=WRITTEN, tests=st.sampled_from([ADD_TESTS, ECHO]))
def test_any_text_earns_from_0_to_1(text, tests):
    assert 0 <= program_score(text, tests, seconds=1.0) <= 1


@SLOW
@given(texts=st.lists(WRITTEN, max_size=3))
def test_any_batch_earns_one_number_per_completion(texts):
    rewards = code_reward(
        [[{"role": "assistant", "content": text}] for text in texts],
        [ADD_TESTS[:1]] * len(texts),
        seconds=1.0,
    )
    assert len(rewards) == len(texts)
    assert all(reward in (0, 1) for reward in rewards)


@pytest.mark.parametrize("text", ["", None, "```", "```python\n```", "\n"], ids=repr)
def test_empty_text_earns_nothing(text):
    assert code_reward([[{"role": "assistant", "content": text}]], [ADD_TESTS], seconds=1.0) == [0]


def test_a_huge_completion_is_read_in_time():
    started = time.monotonic()
    assert program_in("```python\n" * 300_001 + ADD) == ADD
    assert program_in("```" + " " * 3_000_000 + f"\n{ADD}") == ADD
    assert len(program_in("`" * 3_000_000)) == 3_000_000
    assert time.monotonic() - started < 5
    assert program_score(f"```python\n{ADD}\n# {'x' * 20_000_000}\n```") == 1


FORGED = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["secret", "reports"]), inner, max_size=2),
    ),
    max_leaves=6,
)


@dataclass(frozen=True)
class Prints:
    """A sandbox in which the program printed the report."""

    printed: bytes
    name: str = "prints"

    def run(self, source: str, request: bytes, limits: Limits) -> Outcome:
        return Outcome(self.printed, 0, False)


@settings(max_examples=500, deadline=None)
@given(
    printed=st.one_of(
        st.text(), FORGED.map(json.dumps), st.builds(lambda text: "[" * 100_000 + text, st.text())
    )
)
def test_a_forged_report_earns_nothing(printed):
    sandbox = Prints(printed.encode("utf-8", "replace"))
    assert grade(ADD, ADD_TESTS, 1.0, sandbox) == ProgramGrade(0.0)


def test_a_program_that_leaves_its_group_is_ended_in_time():
    started = time.monotonic()
    leaves = "import os, time\nos.setpgid(0, os.getpgid(os.getppid()))\ntime.sleep(1000)"
    assert program_score(leaves, seconds=1.0, unlocked=True) == 0
    assert time.monotonic() - started < 8


CELLS = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=2),
)
COLUMNS = st.sampled_from(
    [
        "prompt",
        "text",
        "test_list",
        "test_imports",
        "test_setup_code",
        "test",
        "entry_point",
        "tests",
    ]
)


@settings(max_examples=500)
@given(row=st.dictionaries(COLUMNS, CELLS))
def test_any_row_becomes_a_prompt_and_tests_or_is_named(row):
    try:
        (made,) = program_rows([row], "file")
        assert set(made) == {"prompt", "tests"}
    except DataError as error:
        assert str(error).startswith("file: row 0: ")  # noqa: PT017
