"""Programs that must pass tests: MBPP and HumanEval, from the hub or from local files."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from estune.common.types import Row
from estune.errors import DataError
from estune.rewards.code_reward import code_reward
from estune.tasks.base import Task, first_rows, hub_rows
from estune.tasks.usable_rows import usable

_MBPP = "google-research-datasets/mbpp"
_HUMANEVAL = "openai/openai_humaneval"


def program_rows(rows: Iterable[Mapping[str, Any]], what: str = "the data") -> list[Row]:
    """Return rows of `prompt` and `tests`.

    They are made from these columns, from MBPP's (text or prompt, test_list) or from HumanEval's.
    Rows without a problem or without tests are left out, with a warning.

    Raises:
        DataError: most rows have no problem or no tests.
    """
    return usable(rows, _program_row, what)


def _program_row(row: Mapping[str, Any]) -> Row:
    if {"prompt", "tests"} <= set(row):
        return {"prompt": row["prompt"], "tests": row["tests"]}
    if {"prompt", "test", "entry_point"} <= set(row):
        asked = (
            "Complete this function. Answer with all of it in a block of Python.\n\n"
            f"```python\n{row['prompt']}```"
        )
        return _asked(asked, [f"{row['test']}\ncheck({row['entry_point']})"])
    problem, tests = row.get("text") or row.get("prompt"), row.get("test_list")
    if not problem or not tests:
        raise DataError(
            f"needs prompt and tests, or the columns of MBPP or HumanEval; it has {', '.join(row)}"
        )
    if not _texts(tests) or not _texts(row.get("test_imports") or []):
        raise DataError("test_list and test_imports must be lists of texts")
    setup = "\n".join(row.get("test_imports") or []) or str(row.get("test_setup_code") or "")
    asked = f"{problem}\nAnswer with a block of Python that passes such tests:\n\n{tests[0]}"
    return _asked(asked, [f"{setup}\n{test}" if setup else test for test in tests])


def _texts(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(one, str) for one in value)
    )


def _asked(text: str, tests: Sequence[str]) -> Row:
    return {"prompt": [{"role": "user", "content": text}], "tests": list(tests)}


def _rows(name: str, hub: str, split: str, count: int | None) -> list[Row]:
    return first_rows(
        hub_rows(name, hub, split, None, program_rows), count, f"the {split} split of {hub}"
    )


def _task(name: str, summary: str, hub: str, train: tuple[str, str]) -> Task:
    return Task(
        name=name,
        summary=summary,
        train=partial(_rows, name, *train),
        test=partial(_rows, name, hub, "test"),
        reward_funcs=(code_reward,),
        defaults={"max_completion_length": 512},
        source=hub,
        adapt=program_rows,
    )


CODE_TASKS = (
    _task("mbpp", "short Python programs that have to pass tests", _MBPP, (_MBPP, "train")),
    _task(
        "humaneval",
        "164 Python functions that have to pass tests; learns from mbpp",
        _HUMANEVAL,
        (_MBPP, "train"),
    ),
)
