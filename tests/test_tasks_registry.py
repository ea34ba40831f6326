"""What holds of every built-in task: its name, its rows, and that its rewards take what TRL passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from estune.errors import ConfigError
from estune.tasks import TASKS, Task, get_task
from estune.tasks.base import completion_text

NAMES = ["conciseness", "conciseness_correct", "countdown", "countdown_binary"]


def test_the_registry_holds_each_task_under_its_own_name() -> None:
    assert list(TASKS) == NAMES
    assert all(get_task(name) is task and task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("concisenes", "conciseness"), ("Countdown", "countdown"), ("binary", "countdown_binary"), ("", None)],
)
def test_an_unknown_task_is_answered_with_the_nearest_name_and_all_of_them(typed: str, meant: str | None) -> None:
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


def test_no_task_imports_a_deep_learning_library() -> None:
    import estune.tasks

    sources = [path.read_text() for path in Path(estune.tasks.__path__[0]).rglob("*.py")]
    assert not any(re.search(r"import (torch|transformers)|from (torch|transformers)", text) for text in sources)


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("Paris", "Paris"),
        ("", ""),
        ([{"role": "assistant", "content": "Paris"}], "Paris"),
        ([{"role": "assistant", "content": "hm"}, {"role": "assistant", "content": "Rome"}], "Rome"),
        ([{"role": "assistant", "content": None}], ""),
    ],
)
def test_the_text_of_a_completion_is_the_string_or_the_last_message(completion: Any, text: str) -> None:
    assert completion_text(completion) == text
