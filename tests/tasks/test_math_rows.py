"""The rows of the tasks in mathematics, from the hub's columns and from local files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from estune.cli.main import main
from estune.errors import DataError
from estune.tasks import TASKS, grading
from estune.tasks.math import MATH_TASKS, answer_text, math_reward, problem_rows

pytest.importorskip("math_verify")


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    """End the grading process with this module's tests."""
    yield
    grading._SAME_VALUE.close()


HUB_ROWS = {
    "gsm8k": [{"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 1,002"}],
    "math": [
        {
            "problem": "1+1?",
            "solution": r"It is \boxed{1002}.",
            "answer": "1002",
            "subject": "Algebra",
            "level": 3,
            "unique_id": "x",
        }
    ],
    "math500": [
        {"problem": "1+1?", "solution": r"It is \boxed{1002}.", "subject": "Algebra", "level": 1}
    ],
    "minerva": [{"question": "1+1?", "answer": "1002"}],
    "olympiadbench": [
        {"id": 1, "question": "1+1?", "solution": ["so"], "final_answer": ["1002"], "context": None}
    ],
    "amc": [{"id": 0, "question": "1+1?", "answer": "1002.0", "url": "https://"}],
    "aime": [
        {
            "id": 60,
            "problem": "1+1?",
            "solution": "so",
            "answer": "1002",
            "url": "https://",
            "year": "2024",
        }
    ],
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_of_the_hubs_columns_become_prompt_and_answer(name: str) -> None:
    [row] = problem_rows(HUB_ROWS[name])
    assert {"prompt", "answer"} <= set(row) <= {"prompt", "answer", "level", "subject"}
    assert (
        row["prompt"][-1] == {"role": "user", "content": "1+1?"}
        and r"\boxed{}" in row["prompt"][0]["content"]
    )
    assert math_reward([r"so it is $\boxed{1002}$."], answer=[row["answer"]]) == [1]


def test_there_is_such_a_row_for_each_task() -> None:
    assert [task.name for task in MATH_TASKS] == list(HUB_ROWS)


def test_rows_of_prompt_and_answer_are_taken_as_they_are() -> None:
    assert problem_rows([{"prompt": "1+1=", "answer": 2}]) == [{"prompt": "1+1=", "answer": "2"}]


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "1+1?"},
        {"answer": "2"},
        {"problem": "", "answer": "2"},
        {"problem": "?", "solution": "no box"},
    ],
)
def test_a_row_without_problem_or_answer_is_left_out_and_named(
    row: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert [
        made["answer"]
        for made in problem_rows([{"problem": "1+1?", "answer": "2"}, row], "rows.jsonl")
    ] == ["2"]
    [line] = caplog.messages
    assert line.startswith(
        "rows.jsonl: 1 of 2 rows left out; "
        "the first is row 1: needs a problem (prompt, problem or question) and its"
    )


def test_rows_most_of_which_have_no_answer_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"row 1: needs a problem .* \(2 of 3 rows cannot be used\)"
    ):
        problem_rows([{"problem": "1+1?", "answer": "2"}, {"problem": "a"}, {"problem": "b"}])


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"It is $\boxed{2}$.", "2"),
        (r"It is $\boxed {2}$.", "2"),
        (r"It is $\boxed 2$.", "2"),
        (r"It is $\boxed\frac{1}{3}$.", r"\frac{1}{3}"),
        (r"\[ \boxed \sqrt{2} \]", r"\sqrt{2}"),
        (r"\(\boxed{1}\), no, \(\boxed -3\)", "-3"),
        (r"So \boxed 12 is it.", "12"),
        (r"So \boxed 12. That is $x$.", "12"),
    ],
)
def test_a_solution_may_box_its_answer_without_braces(solution: str, answer: str) -> None:
    assert problem_rows([{"problem": "?", "solution": solution}])[0]["answer"] == answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [("a #### 42", "42"), (27.0, "27"), (0.5, "0.5"), (["1", "2"], "1, 2"), (" 7 ", "7")],
)
def test_an_answer_is_text(answer: Any, text: str) -> None:
    assert answer_text(answer) == text


def test_math_learns_from_levels_3_to_5_and_is_tested_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hub(name: str, split: str, config: str | None, adapt: Any) -> Any:
        levels = ["Level 1", "Level 2", "Level 3", 4, 5]
        return adapt(
            [{"problem": f"{split} {level}", "answer": "1", "level": level} for level in levels]
        )

    monkeypatch.setattr("estune.tasks.rows.load_rows", hub)
    for name in ("math", "aime"):
        assert [row["level"] for row in TASKS[name].train(None)] == ["Level 3", 4, 5]
        assert len(TASKS[name].test(None)) == 5 and len(TASKS[name].train(2)) == 2
    with pytest.raises(DataError, match="has 3 rows"):
        TASKS["math"].train(4)


@pytest.mark.parametrize("name", HUB_ROWS)
def test_without_a_network_one_line_tells_the_local_way(name: str) -> None:
    with pytest.raises(
        DataError, match=f"without a network: --task {name} --dataset_name FILE"
    ) as refusal:
        TASKS[name].test(None)
    assert TASKS[name].source in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_a_local_file_of_the_hubs_columns_trains_a_model(
    name: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in HUB_ROWS[name] * 4)
        )
    words = [
        "train",
        "--task",
        name,
        "--dataset_name",
        str(tmp_path),
        "--model_name_or_path",
        str(tiny),
        "--engine",
        "fake",
    ]
    words += [
        "--max_steps",
        "1",
        "--population_size",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
        "--eval_on_start",
        "true",
    ]
    assert (main(words), capsys.readouterr().err) == (0, "")
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").is_file()
