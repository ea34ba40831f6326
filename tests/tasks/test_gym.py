"""The tasks of reasoning-gym: their rows never change and never repeat across splits.

The tests also check the rewards of right, wrong and hostile answers.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from estune.cli.main import main
from estune.errors import ConfigError, DataError
from estune.rewards.marks import Grades
from estune.rewards.processes.limited import Limited
from estune.tasks import get_task, gym_scoring
from estune.tasks.gym import gym_names
from estune.tasks.gym_entries import decode, encode
from estune.tasks.gym_rows import gym_rows
from estune.tasks.gym_scoring import datasets, gym_reward

pytest.importorskip("reasoning_gym")


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    """The process that grades ends with this module's tests."""
    yield
    gym_scoring._VERIFIED.close()


DOCS = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
BRICKS = [*"[](),{}0123456789 +-*/x\n'\"", "<answer>", "</answer>"]
SOME = [
    "sudoku",
    "mini_sudoku",
    "arc_1d",
    "arc_agi",
    "countdown",
    "binary_matrix",
    "polynomial_multiplication",
    "graph_color",
    "basic_arithmetic",
]
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
EMPTY_AT_TIMES = {"string_manipulation"}


def score(row: dict[str, Any], answer: object) -> float:
    [value] = gym_reward(
        [f"so <answer>{answer}</answer>"], entry=[row["entry"]], dataset=[row["dataset"]]
    )
    return value


def right(row: dict[str, Any]) -> str:
    return str(decode(row["entry"])["answer"])


def questions(rows: list[dict[str, Any]]) -> set[str]:
    return {row["prompt"][-1]["content"] for row in rows}


@cache
def first(name: str) -> dict[str, Any]:
    return gym_rows(name, "train", 1)[0]


@pytest.mark.parametrize("name", SOME)
def test_the_datasets_own_answer_earns_the_full_reward_and_no_answer_none(name: str) -> None:
    for row in gym_rows(name, "train", 2) + gym_rows(name, "test", 2):
        if name not in WITHOUT_ANSWER:
            assert score(row, right(row)) == 1 and score(row, f"\n {right(row)} \n") == 1
        assert gym_reward([right(row)], entry=[row["entry"]], dataset=[name]) == [0]


SKIPPING = [  # datasets whose verifiers read a part of an answer, and skip the rest
    *(
        "advanced_geometry",
        "figlet_font",
        "fraction_simplification",
        "gsm_symbolic",
        "kakurasu",
        "knights_knaves",
        "letter_jumble",
    ),
    *(
        "polynomial_equations",
        "quantum_lock",
        "sokoban",
        "spell_backward",
        "survo",
        "time_intervals",
        "tower_of_hanoi",
        "word_sorting",
    ),
]


def verified(name: str, answer: str, entry: dict[str, Any]) -> float:
    [value] = gym_reward([f"<answer>{answer}</answer>"], entry=[encode(entry)], dataset=[name])
    return value


@cache
def made(name: str) -> list[dict[str, Any]]:
    """The first entries of a dataset that have an answer, made here."""
    kind, config = datasets()[name]
    dataset = kind(config=config(seed=3, size=4))
    return [entry for entry in (dataset[i] for i in range(4)) if entry["answer"]]


@pytest.mark.parametrize("name", SKIPPING)
def test_what_stands_behind_a_right_answer_is_not_paid_for(name: str) -> None:
    more = "and anything else that comes to mind, " * 20
    for entry in made(name):
        answer = str(entry["answer"])
        assert verified(name, answer, entry) == 1
        assert (
            max(
                verified(name, text, entry)
                for text in (f"{answer} {more}", f"{answer}\n{more}", f"{answer}, {more}")
            )
            < 0.25
        )


@pytest.mark.slow
def test_no_verifier_pays_for_a_long_text_behind_the_right_answer() -> None:
    more = " and anything else" * 200
    paid = {
        name: max(
            (verified(name, f"{entry['answer']}{more}", entry) for entry in made(name)), default=0
        )
        for name in gym_names()
    }
    assert {name: value for name, value in paid.items() if value > 0.25} == {}


@pytest.mark.parametrize(
    ("text", "earned"),
    [("1150", 1), ("1,150", 1), ("$1150.00", 1), ("-1150", 0), ("1150 or 1151", 0), ("1151", 0)],
)
def test_an_answer_of_gsm_symbolic_is_one_number_with_its_sign(text: str, earned: float) -> None:
    entry = made("gsm_symbolic")[0] | {"answer": "1150"}
    assert verified("gsm_symbolic", text, entry) == earned


@pytest.mark.slow
@pytest.mark.parametrize("name", gym_names())
def test_every_dataset_rewards_its_own_answer_repeats_its_rows_and_keeps_its_splits_apart(
    name: str,
) -> None:
    train, test = gym_rows(name, "train", 6), gym_rows(name, "test", 6)
    assert gym_rows(name, "train", 4) == train[:4]
    assert not questions(train) & questions(test)
    json.dumps(train)
    for row in train + test:
        if name in WITHOUT_ANSWER | EMPTY_AT_TIMES and right(row) in ("", "None"):
            assert f"`{name}`" in DOCS and score(row, right(row)) < 1
        else:
            assert score(row, right(row)) == 1
        assert score(row, "no such thing") < 1


@pytest.mark.parametrize(
    ("name", "answer", "least", "most"),
    [
        ("binary_matrix", "__import__('os')._exit(3)", 0, 0),
        ("n_queens", "exec('raise SystemExit')", 0, 0),
        ("spiral_matrix", "[1 for _ in iter(int, 1)]", 0, 0),
        ("string_insertion", "open('/etc/passwd').read()", 0, 0),
        ("countdown", "__import__('os')._exit(3)", 0, 0),
        ("countdown", "9**9**9**9", 0, 0),
        ("puzzle24", "24 if True else 0", 0, 0),
        ("polynomial_multiplication", "().__class__.__bases__", 0, 0),
        ("polynomial_multiplication", "9**9**9**9", 0, 0),
        ("simple_integration", "Integral(x, x) + C", 0, 0),
        ("intermediate_integration", "exp(exp(x)).__class__", 0, 0),
        ("bitwise_arithmetic", "__import__('os')._exit(3)", 0, 0),
        ("number_sorting", "[1, 2", 0, 0),
    ],
)
def test_an_answer_is_never_run_as_a_program(
    name: str, answer: str, least: float, most: float
) -> None:
    assert least <= score(first(name), answer) <= most


def test_a_literal_still_earns_the_part_that_its_dataset_gives_for_it() -> None:
    row = first("binary_matrix")
    matrix = [[int(cell) for cell in line.split()] for line in right(row).splitlines()]
    assert score(row, matrix) == 0.1


def test_an_entry_of_ones_own_is_not_run_either() -> None:
    entry = encode(
        {"question": "?", "answer": "0", "metadata": {"problem": "__import__('os')._exit(3)"}}
    )
    assert score({"entry": entry, "dataset": "bitwise_arithmetic"}, "0x1") == 0


ABSURD = [
    "",
    " ",
    "\0",
    "9" * 15_000,
    "1" * 1999 + "!",
    "(" * 1999,
    "[" * 5000,
    "{" * 10_000,
    "x" * 100_000,
    "1e999999999",
    "٤٢",
    "1.234,5",
    "\ud800",
    "-1",
    "nan",
    "None",
    "[[]]",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", [*SOME, "simple_integration", "puzzle24", "knights_knaves", "jugs"]
)
def test_an_absurd_answer_is_wrong_and_soon(name: str) -> None:
    row = first(name)
    assert all(score(row, answer) < 1 for answer in ABSURD)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SOME), st.one_of(st.text(), st.lists(st.sampled_from(BRICKS)).map("".join)))
def test_no_text_makes_a_verifier_raise(name: str, text: str) -> None:
    row = first(name)
    assert 0 <= score(row, text) <= 1
    assert gym_reward([text], entry=[row["entry"]], dataset=[name]) == [0] or "<answer>" in text


def test_only_the_last_answer_block_counts() -> None:
    row = first("basic_arithmetic")
    good, bad = f"<answer>{right(row)}</answer>", "<answer>x</answer>"
    both = gym_reward(
        [good + bad, bad + good, good + "<answer>"],
        entry=[row["entry"]] * 3,
        dataset=[row["dataset"]] * 3,
    )
    assert both == [0, 1, 1]


def test_the_metric_correct_counts_full_scores_only() -> None:
    row, logged = first("binary_matrix"), dict[str, float]()
    partly = [[int(cell) for cell in line.split()] for line in right(row).splitlines()]
    texts = [f"<answer>{answer}</answer>" for answer in (right(row), partly)]
    gym_reward(
        texts, entry=[row["entry"]] * 2, dataset=[row["dataset"]] * 2, log_metric=logged.__setitem__
    )
    assert logged == {"correct": 0.5}


@pytest.mark.slow
def test_the_task_is_found_by_its_prefix_and_its_rows_do_not_depend_on_the_process() -> None:
    task = get_task("reasoning_gym:ransom_note")
    assert task.name == "reasoning_gym:ransom_note" and task.reward_funcs == (gym_reward,)
    rows = task.train(5)
    assert task.train(3) == rows[:3] and not questions(rows) & questions(task.test(5))
    assert set(rows[0]) == {"prompt", "dataset", "entry"} and rows[0]["dataset"] == "ransom_note"
    assert task.train(0) == []
    for count in (-1, 10**20):
        with pytest.raises(DataError, match="ask for at most 1000000"):
            task.train(count)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("suduko", "sudoku"),
        ("arc1d", "arc_1d"),
        ("Countdown", "countdown"),
        ("composite", None),
        ("", None),
    ],
)
def test_an_unknown_dataset_is_answered_with_the_nearest(typed: str, meant: str | None) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant!r}" if meant else "did you mean"):
        get_task(f"reasoning_gym:{typed}")


def test_a_dataset_that_is_unknown_in_a_row_is_named() -> None:
    with pytest.raises(DataError, match="row 0: reasoning_gym has no dataset 'nope'"):
        gym_reward(
            ["<answer>1</answer>"], entry=[first("basic_arithmetic")["entry"]], dataset=["nope"]
        )


def test_the_reward_travels_to_other_processes_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(gym_reward)) is gym_reward


NOT_FINITE = [
    "nan",
    "NaN",
    "-nan",
    "nan+nanj",
    "nani",
    "inf",
    "-Infinity",
    "infi",
    "1e999",
    "1e9_99",
    "9" * 400,
    "sNaN",
    "NaN123",
]


@pytest.mark.parametrize(
    "name",
    [
        "complex_arithmetic",
        "decimal_arithmetic",
        "rectangle_count",
        "coin_flip",
        "number_format",
        "simple_equations",
        "countdown",
    ],
)
def test_what_is_no_finite_number_earns_nothing(name: str) -> None:
    row = first(name)
    assert [score(row, answer) for answer in NOT_FINITE] == [0] * len(NOT_FINITE)
    assert [score(row, f"[{answer}, 1]") for answer in NOT_FINITE] == [0] * len(NOT_FINITE)


def test_a_word_of_the_right_answer_is_a_word() -> None:
    assert gym_scoring._is_finite("Nan 3", "Nan 3")
    assert gym_scoring._is_finite("banana info", "apple")
    assert not gym_scoring._is_finite("Nan 3", "Anna 3")


def test_what_keeps_a_verifier_busy_is_wrong_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    row = first("countdown")
    limited = Limited("limited_child:spins_over_answers", 1.0)
    monkeypatch.setattr(gym_scoring, "_VERIFIED", limited)
    answer = "<answer>1 + 1</answer>"
    grades = gym_reward([answer, "no answer"], entry=[row["entry"]] * 2, dataset=["countdown"] * 2)
    limited.close()
    assert grades == [0, 0]
    assert isinstance(grades, Grades) and grades.overran == 1


def test_without_reasoning_gym_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gym_scoring.datasets.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ConfigError, match=r'pip install "estune\[gym\]"'):
        get_task("reasoning_gym:sudoku")
    gym_scoring.datasets.cache_clear()


def test_the_working_folder_shadows_nothing_where_rows_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    assert len(get_task("reasoning_gym:basic_arithmetic").train(1)) == 1


@pytest.mark.slow
def test_a_model_trains_on_a_task_of_reasoning_gym(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--task",
        "reasoning_gym:mini_sudoku",
        "--model_name_or_path",
        str(tiny),
        "--engine",
        "fake",
        "--max_steps",
        "1",
    ]
    words += ["--population_size", "2", "--max_train_samples", "4"]
    words += ["--output_dir", str(tmp_path / "out")]
    assert (main(words), capsys.readouterr().err) == (0, "")
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").is_file()
