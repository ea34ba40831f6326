"""Every built-in task has a name, has rows, and has rewards that accept the arguments of TRL."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from estune.cli.main import main
from estune.errors import ConfigError
from estune.tasks import TASKS, Task, get_task
from estune.tasks.base import completion_text

MADE_HERE = ["conciseness", "conciseness_correct", "countdown", "countdown_binary"]
FROM_THE_HUB = [
    "gsm8k",
    "math",
    "math500",
    "minerva",
    "olympiadbench",
    "amc",
    "aime",
    "mbpp",
    "humaneval",
]
NAMES = MADE_HERE + FROM_THE_HUB
PROBLEMS = [
    {"problem": f"{number} + 1", "answer": str(number + 1), "level": 5, "subject": "sums"}
    for number in range(8)
]
PROGRAMS = [
    {"text": f"Add {number}.", "test_list": [f"assert add(1) == {number + 1}"]}
    for number in range(8)
]


@pytest.fixture(autouse=True)
def a_hub_of_eight_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each dataset of the hub by eight rows; test_math_rows.py reads the real columns."""
    of_code = ("google-research-datasets/mbpp", "openai/openai_humaneval")

    def load_rows(name: str, split: str, config: str | None = None, *, adapt: Any) -> Any:
        return list(adapt(PROGRAMS if name in of_code else PROBLEMS))

    monkeypatch.setattr("estune.tasks.rows.load_rows", load_rows)


def test_the_registry_holds_each_task_under_its_own_name() -> None:
    assert list(TASKS) == NAMES
    assert all(get_task(name) is task and task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("concisenes", "conciseness"),
        ("Countdown", "countdown"),
        ("binary", "countdown_binary"),
        ("", None),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest_name_and_all_of_them(
    typed: str, meant: str | None
) -> None:
    with pytest.raises(ConfigError) as refusal:
        get_task(typed)
    assert meant is None or f"did you mean {meant!r}" in str(refusal.value)
    assert all(name in str(refusal.value) for name in NAMES)


@pytest.mark.parametrize("task", TASKS.values(), ids=NAMES)
def test_each_task_introduces_itself_in_one_line(task: Task) -> None:
    assert task.summary and "\n" not in task.summary and len(task.summary) <= 90


@pytest.mark.parametrize("task", TASKS.values(), ids=NAMES)
def test_rows_are_the_same_each_time_and_safe_to_change(task: Task) -> None:
    for split in (task.train, task.test):
        rows = split(3)
        assert len(rows) == 3 and rows == split(5)[:3]
        rows[0]["prompt"] = "changed"
        assert split(3)[0]["prompt"] != "changed"


@pytest.mark.parametrize("task", TASKS.values(), ids=NAMES)
def test_each_task_scores_its_own_rows_with_the_keywords_that_trl_passes(task: Task) -> None:
    rows = task.test(4)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    for reward in task.reward_funcs:
        scores = reward(
            prompts=[row["prompt"] for row in rows],
            completions=["?"] * 4,
            completion_ids=[[1]] * 4,
            trainer_state=None,
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: None,
            **columns,
        )
        assert len(scores) == 4 and all(type(score) is float for score in scores)


def test_a_task_says_where_its_data_come_from() -> None:
    assert all("/" in TASKS[name].source for name in FROM_THE_HUB)
    assert all(TASKS[name].source for name in MADE_HERE)


def test_listing_the_tasks_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "datasets", "sympy", "math_verify", "reasoning_gym", "numpy"]
    code = (
        "import sys; from estune.cli.main import main; main(['tasks']); "
        f"sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*NAMES, "reasoning_gym:NAME", "MODULE.TASK"]
    assert all(len(line) < 140 for line in lines)


def test_the_tasks_of_reasoning_gym_are_listed_apart(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("reasoning_gym")
    assert main(["tasks", "reasoning_gym"]) == 0
    names = capsys.readouterr().out.split()
    assert {"reasoning_gym:sudoku", "reasoning_gym:arc_agi"} < set(names) and len(names) > 100
    assert main(["tasks", "gym"]) == 2 and "did you mean 'reasoning_gym'" in capsys.readouterr().err


def test_no_task_imports_a_deep_learning_library() -> None:
    import estune.tasks

    sources = [path.read_text() for path in Path(estune.tasks.__path__[0]).rglob("*.py")]
    assert not any(
        re.search(r"import (torch|transformers)|from (torch|transformers)", text)
        for text in sources
    )


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("Paris", "Paris"),
        ("", ""),
        ([{"role": "assistant", "content": "Paris"}], "Paris"),
        (
            [{"role": "assistant", "content": "hm"}, {"role": "assistant", "content": "Rome"}],
            "Rome",
        ),
        ([{"role": "assistant", "content": None}], ""),
    ],
)
def test_the_text_of_a_completion_is_the_string_or_the_last_message(
    completion: Any, text: str
) -> None:
    assert completion_text(completion) == text
