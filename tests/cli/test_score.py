"""`estune score` scores completions from a file, and refuses rows that it cannot score."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BARE, COUNTDOWN, FULL, lines, module

from estune.cli.main import main
from estune.tasks import TASKS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def scored(capsys, *rows, task="countdown") -> list[str]:
    lines(Path("answers.jsonl"), rows)
    assert main(["score", "--task", task, "--completions", "answers.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_right_answer_in_full_format_scores_1_1_and_the_answer_alone_1_05(capsys):
    assert [float(line) for line in scored(capsys, FULL, BARE)] == pytest.approx([1.1, 1.05])


def test_score_prints_one_json_number_a_line_and_nothing_else(capsys):
    rows = [FULL, BARE, COUNTDOWN | {"completion": "no idea"}, COUNTDOWN | {"completion": ""}]
    rewards = [json.loads(line) for line in scored(capsys, *rows)]
    assert len(rewards) == 4
    assert all(type(reward) is float for reward in rewards)


def test_a_completion_may_be_a_list_of_messages(capsys):
    messages = [{"role": "assistant", "content": FULL["completion"]}]
    assert [
        float(line) for line in scored(capsys, COUNTDOWN | {"completion": messages})
    ] == pytest.approx([1.1])


def test_blank_lines_between_rows_are_passed_over(capsys):
    Path("answers.jsonl").write_text(f"\n{json.dumps(FULL)}\n\n  \n{json.dumps(BARE)}")
    assert main(["score", "--task", "countdown", "--completions", "answers.jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_empty_file_scores_nothing(capsys):
    assert scored(capsys) == []


@pytest.mark.slow
def test_each_task_scores_its_own_rows(capsys, monkeypatch):
    problem = {
        "problem": "1 + 1",
        "answer": "2",
        "text": "Add.",
        "test_list": ["assert add(1) == 2"],
    }  # in place of the hub's
    monkeypatch.setattr(
        "estune.tasks.rows.load_rows", lambda *where, adapt: list(adapt([problem] * 3))
    )
    for name, task in TASKS.items():
        assert (
            len(scored(capsys, *({**row, "completion": "hm"} for row in task.test(3)), task=name))
            == 3
        )


def test_completions_through_a_real_pipe():
    rows = f"{json.dumps(FULL)}\n{json.dumps(BARE)}\n"
    command = [
        Path(sys.executable).parent / "estune",
        "score",
        "--task",
        "countdown",
        "--completions",
        "-",
    ]
    shown = subprocess.run(command, input=rows, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [float(line) for line in shown.stdout.splitlines()] == pytest.approx([1.1, 1.05])


def test_score_with_functions_of_ones_own(capsys, tmp_path):
    name = module(
        "print('loading')\ndef f(completions, level):\n    print('hello')\n    return level\n",
        tmp_path,
    )
    lines(
        Path("answers.jsonl"), [{"completion": "x", "level": 3}, {"completion": "y", "level": None}]
    )
    assert main(["score", "--reward_funcs", f"{name}.f", "--completions", "answers.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert out == "3.0\nnull\n"
    assert "hello" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"completion": "x", ', "answers.jsonl: line 1 is not JSON"),
        (
            '{"completion": "x", "numbers": [1], "target": 1}\nnot json',
            "answers.jsonl: line 2 is not JSON",
        ),
        ("[" * 100_000, "answers.jsonl: line 1 is not JSON"),
        ('{"completion": ' + "9" * 5000 + "}", "answers.jsonl: line 1 is not JSON"),
        (
            '{"numbers": [1], "target": 1}',
            "line 1 must be a JSON object with 'completion' and the task's columns",
        ),
        ('["completion"]', "line 1 must be a JSON object with 'completion'"),
        (
            '{"completion": "x"}',
            "reward function countdown_reward: nothing provides its parameter 'numbers'",
        ),
        ('{"completion": "x", "numbers": [1]}', "nothing provides its parameter 'target'"),
        (
            '{"completion": 3, "numbers": [1], "target": 1}',
            "answers.jsonl: row 1: the completion is neither text nor a list",
        ),
        (
            '{"completion": [], "numbers": [1], "target": 1}',
            "answers.jsonl: row 1: the completion is neither text nor a list",
        ),
        (
            '{"completion": "x", "numbers": "1", "target": 1}',
            "numbers is '1', not a list of integers",
        ),
        (
            '{"completion": "x", "numbers": [1], "target": "many"}',
            "the target 'many' is not a number",
        ),
        ('{"completion": "x", "numbers": [1], "target": NaN}', "not a finite number"),
        (
            '{"completion": "x", "numbers": [1], "target": 1}\n{"completion": "x", "numbers": [1]}',
            "row 2 has the columns completion, numbers, row 1 has completion, numbers, target",
        ),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_with_their_place(text, says, refused):
    Path("answers.jsonl").write_text(text)
    assert says in refused("score", "--task", "countdown", "--completions", "answers.jsonl")


def test_a_completions_file_that_cannot_be_read_is_named(refused):
    assert "missing.jsonl: cannot be read (No such file or directory)" in refused(
        "score", "--task", "countdown", "--completions", "missing.jsonl"
    )
    Path("binary.jsonl").write_bytes(b"\x80\xff")
    assert "binary.jsonl: cannot be read" in refused(
        "score", "--task", "countdown", "--completions", "binary.jsonl"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_completions(encoding, capsys):
    Path("answers.jsonl").write_text(json.dumps(BARE), encoding=encoding)
    assert main(["score", "--task", "countdown", "--completions", "answers.jsonl"]) == 0
    assert capsys.readouterr().out == "1.05\n"


def test_score_of_an_unknown_task_names_the_nearest(refused):
    assert "did you mean 'countdown'?" in refused(
        "score", "--task", "countdow", "--completions", "x"
    )
