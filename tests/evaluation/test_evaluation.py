"""`estune eval`: several models and tasks, sampled completions, a paired test, and the frontier.

The tests also check what the figures mean.
"""

import csv
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import FLAGS, lines

from estune.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
FAKE = ["--engine", "fake", "--max_eval_samples", "4"]


def evaluate(*arguments) -> int:
    return main(["eval", *map(str, arguments)])


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_several_tasks_are_a_row_each_and_the_model_is_built_once(mini, capsys, monkeypatch):
    from estune import engines

    built, build = [], engines.build
    monkeypatch.setattr(engines, "build", lambda *given: built.append(1) or build(*given))
    assert (
        evaluate(
            "--model", mini, "--tasks", "conciseness", "countdown", *FAKE, "--figures", "f.json"
        )
        == 0
    )
    assert len(built) == 1
    assert [row["task"] for row in json.loads(Path("f.json").read_text())] == [
        "conciseness",
        "countdown",
    ]
    assert capsys.readouterr().err == ""


def test_a_kl_to_a_base_that_is_the_model_itself_is_no_error(mini, capsys):
    assert evaluate("--model", mini, "--base", mini, "--kl", "--task", "conciseness", *FAKE) == 0
    assert "estune:" not in capsys.readouterr().err


def test_each_task_keeps_its_own_defaults(mini):
    assert (
        evaluate(
            "--model", mini, "--tasks", "conciseness", "countdown", *FAKE, "--output", "a.jsonl"
        )
        == 0
    )
    alone = ["--task", "countdown", *FAKE, "--output", "b.jsonl"]
    assert evaluate("--model", mini, *alone) == 0
    assert [row for row in read("a.jsonl") if row["task"] == "countdown"] == read("b.jsonl")


def test_greedy_answers_are_the_same_whether_others_are_drawn_or_not(mini):
    assert evaluate("--model", mini, "--task", "conciseness", *FAKE, "--output", "a.jsonl") == 0
    assert (
        evaluate(
            "--model",
            mini,
            "--task",
            "conciseness",
            *FAKE,
            "--num_generations",
            3,
            "--output",
            "b.jsonl",
        )
        == 0
    )
    with_drawn = read("b.jsonl")
    assert [row for row in with_drawn if row["sample"] is None] == read("a.jsonl")
    assert [row["sample"] for row in with_drawn if row["sample"] is not None] == [0, 1, 2] * 4
    assert all(
        row["length"] == len(row["completion"]) for row in with_drawn
    )  # the fake engine writes a token a letter


def test_pass_at_k_and_mean_at_k_are_those_of_the_answers_in_the_file(mini, data):
    flags = [
        "--dataset_name",
        data,
        "--dataset_test_split",
        "train",
        "--reward_funcs",
        "conciseness_reward",
        "--threshold",
        -12,
    ]
    drawn = ["--num_generations", 4, "--k", 1, 2, 4, "--output", "a.jsonl", "--figures", "f.csv"]
    assert evaluate("--model", mini, "--engine", "fake", *flags, *drawn) == 0
    rewards = np.array(
        [row["reward"] for row in read("a.jsonl") if row["sample"] is not None]
    ).reshape(-1, 4)
    with open("f.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    right = rewards >= -12
    assert float(row["mean@4"]) == pytest.approx(rewards.mean())
    assert float(row["pass@1"]) == pytest.approx(right.mean())
    assert float(row["pass@4"]) == pytest.approx(right.any(axis=1).mean())
    assert float(row["pass@1"]) <= float(row["pass@2"]) <= float(row["pass@4"])


def test_a_model_does_not_differ_from_its_own_copy(mini, capsys):
    shutil.copytree(mini, "copy")
    assert (
        evaluate(
            "--model", "copy", "--base", mini, "--task", "conciseness", *FAKE, "--figures", "f.json"
        )
        == 0
    )
    _, tuned = json.loads(Path("f.json").read_text())
    assert (tuned["reward difference"], tuned["reward p"]) == (0.0, 1.0)
    assert "paired sign-flip test over prompts, all signs" in capsys.readouterr().out


def test_the_difference_to_the_base_is_that_of_the_rewards_prompt_by_prompt(mini, finished):
    checkpoints = sorted(finished.glob("checkpoint-*"))
    assert (
        evaluate(
            "--model",
            *checkpoints,
            "--base",
            mini,
            "--task",
            "conciseness",
            *FAKE,
            "--output",
            "a",
            "--figures",
            "f.json",
        )
        == 0
    )
    rows, answers = json.loads(Path("f.json").read_text()), read("a")
    rewards = {
        name: [r["reward"] for r in answers if r["model"] == str(name)]
        for name in (mini, *checkpoints)
    }
    for row, name in zip(rows[1:], checkpoints, strict=True):
        wanted = np.mean(np.subtract(rewards[name], rewards[mini]))
        assert row["reward difference"] == pytest.approx(wanted)
        assert row["reward difference low"] <= wanted <= row["reward difference high"]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_on_ray_draw_the_same_answers_as_one_engine_here(mini):
    flags = [
        "--model",
        mini,
        "--task",
        "conciseness",
        "--engine",
        "fake",
        "--max_eval_samples",
        20,
        "--num_generations",
        3,
    ]
    assert evaluate(*flags, "--output", "a.jsonl") == 0
    more = [*flags, "--workers", "ray", "--num_workers", 2, "--output", "b.jsonl"]
    command = [
        sys.executable,
        "-m",
        "estune",
        "eval",
        *map(str, more),
    ]  # Ray reads its settings once a process
    subprocess.run(command, check=True, capture_output=True)
    assert read("b.jsonl") == read("a.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_generations", 0], "num_generations: must be at least 1; it is 0"),
        (["--num_generations", "x"], "argument --num_generations: invalid int value: 'x'"),
        (["--temperature", 1], "temperature: nothing is drawn; add --num_generations N"),
        (["--num_generations", 2, "--temperature", 0], "temperature: must be a number above 0"),
        (["--num_generations", 2, "--temperature", "nan"], "temperature: must be a number above 0"),
        (
            ["--num_generations", 2, "--top_p", 1.5],
            "top_p: must be above 0 and at most 1; it is 1.5",
        ),
        (
            ["--num_generations", 2, "--k", 1, 4],
            "k: must be from 1 to num_generations, 2; it is [1, 4]",
        ),
        (["--kl"], "kl: give the model to measure from with --base"),
        (
            ["--kl", "--base", "b", "--num_generations", 2, "--top_p", 0.9],
            "kl: needs temperature and top_p of 1",
        ),
        (["--threshold", "nan"], "threshold: must be a number; it is nan"),
        (["--figures", "f.xlsx"], "figures: f.xlsx must end in .csv or .json"),
        (["--tasks", "cowntdown"], "did you mean 'countdown'?"),
        (
            ["--tasks", "countdown", "--dataset_name", "d.jsonl"],
            "tasks: dataset_name replaces a task's data",
        ),
        (
            ["--tasks", "countdown", "--eval_dataset_name", "d.jsonl"],
            "tasks: eval_dataset_name replaces a task's data",
        ),
    ],
)
def test_what_cannot_work_is_one_line(flags, message, mini, refused):
    assert message in refused("eval", "--model", mini, "--task", "conciseness", *FAKE, *flags)


# reward functions that fail, and data in a place of their own


@pytest.fixture
def judged(mini, tmp_path, data):
    """Evaluates four answers with a reward function whose body is given; returns the status."""
    numbers = itertools.count()

    def run(body, *flags) -> int:
        name = f"judging_{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        Path(f"{name}.py").write_text(f"def judge(completions, target, **columns):\n    {body}\n")
        held_out = [
            "--dataset_name",
            data,
            "--dataset_test_split",
            "train",
            "--reward_funcs",
            f"{name}.judge",
        ]
        return evaluate(
            "--model",
            mini,
            "--engine",
            "fake",
            *held_out,
            "--output",
            "a.jsonl",
            "--figures",
            "f.json",
            *flags,
        )

    return run


FAILS_AT_ONE = "return [1 / (len(text) - 5) for text in target]"  # the first of four
FAILS_AT_THREE = "return [1.0 for text in target if len(text) == 5 or 1 / 0]"


@pytest.mark.parametrize(
    "flags",
    [[], ["--on_reward_error", "zero"], ["--on_reward_error", "drop"]],
    ids=["lowest", "zero", "drop"],
)
def test_a_reward_that_fails_is_counted_and_told_and_the_evaluation_goes_on(judged, capsys, flags):
    assert judged(FAILS_AT_ONE, *flags) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "data.jsonl: 1 rewards were lost; first: judge raised ZeroDivisionError" in out
    counted = {"drop": None, "zero": 0.0}.get(flags[-1] if flags else "", 1 / 3)
    assert [row["reward"] for row in read("a.jsonl")] == [counted, 1.0, 1 / 2, 1 / 3]


def test_rewards_of_drawn_answers_that_are_lost_are_counted_too(judged, capsys):
    assert judged(FAILS_AT_ONE, "--num_generations", 3) == 0
    assert "data.jsonl: 4 rewards were lost" in capsys.readouterr().out


def test_completions_over_the_graders_time_limit_are_reported(judged, capsys):
    graded = (
        "from estune.rewards.marks import Grades; "
        "return Grades([0.0] * len(target), overran=len(target))"
    )
    assert judged(graded, "--num_generations", 3) == 0
    assert "data.jsonl: 16 completions exceeded the grader's time limit" in " ".join(
        capsys.readouterr().out.split()
    )
    assert all(row["reward"] == 0 for row in read("a.jsonl"))


def test_where_most_rewards_are_lost_there_is_no_figure_of_the_rest(judged, capsys):
    assert judged(FAILS_AT_THREE) == 0
    assert "3 rewards were lost" in capsys.readouterr().out
    (row,) = json.loads(Path("f.json").read_text())
    assert row["reward"] is None
    assert [row["reward"] for row in read("a.jsonl")] == [None] * 4


@pytest.mark.parametrize(
    ("body", "flags", "says"),
    [
        (
            "raise KeyError('level')",
            [],
            "failed at all 4 completions of {model} for data.jsonl; "
            "first: it raised KeyError: 'level'",
        ),
        ("raise KeyError('level')", ["--on_reward_error", "zero"], "failed at all 4 completions"),
        (FAILS_AT_ONE, ["--on_reward_error", "raise"], "raised ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_at_everything_or_may_not_fail_is_one_line(
    judged, mini, capsys, body, flags, says
):
    assert judged(body, *flags) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("estune: reward function judge ")
    assert says.format(model=mini) in err


def test_held_out_data_in_a_place_of_their_own_stand_in_for_the_tasks(mini):
    own = lines(
        Path("own.jsonl"),
        [{"prompt": "what is cat", "target": "y"}, {"prompt": "what is dog", "target": "yy"}],
    )
    assert (
        evaluate(
            "--model",
            mini,
            "--task",
            "conciseness",
            *FAKE,
            "--eval_dataset_name",
            own,
            "--output",
            "a.jsonl",
        )
        == 0
    )
    assert [row["prompt"] for row in read("a.jsonl")] == ["what is cat", "what is dog"]


def test_a_task_learns_its_own_data_and_is_held_to_those_of_another_place(mini, data):
    run = [
        "train",
        "--model_name_or_path",
        str(mini),
        "--task",
        "conciseness",
        "--eval_strategy",
        "steps",
        *FLAGS,
        "--max_steps",
        "1",
    ]
    assert main([*run, "--eval_dataset_name", str(data), "--output_dir", "out"]) == 0
    assert [row["prompt"] for row in read("out/completions/step-1.jsonl")] == [
        row["prompt"] for row in read(data)
    ]


def test_help_teaches_by_examples(capsys):
    assert main(["eval", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(
        flag in shown
        for flag in (
            "--num_generations 8 --k 1 4 8",
            "--kl --figures frontier.csv",
            "--lm-eval hellaswag gsm8k",
        )
    )
