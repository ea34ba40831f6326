"""The countdown puzzles: solvable, varied, never repeated, and the same in every release."""

from __future__ import annotations

from itertools import islice

import pytest

from estune.errors import DataError
from estune.tasks import TASKS
from estune.tasks.countdown import countdown_answer_reward
from estune.tasks.puzzles import puzzles


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_puzzle_has_a_solution_that_the_grader_accepts(split: str) -> None:
    for puzzle in islice(puzzles(split), 2000):
        answer = f"<answer>{puzzle.solution}</answer>"
        assert countdown_answer_reward(
            [answer], numbers=[puzzle.numbers], target=[puzzle.target]
        ) == [1]


def test_puzzles_have_3_or_4_numbers_of_at_most_two_digits_and_a_target_from_1_to_100() -> None:
    rows = TASKS["countdown"].test(None)
    assert {len(row["numbers"]) for row in rows} == {3, 4}
    assert all(1 <= number <= 99 for row in rows for number in row["numbers"])
    assert all(1 <= row["target"] <= 100 for row in rows)


def test_no_puzzle_is_posed_twice_and_none_in_both_splits() -> None:
    task = TASKS["countdown"]
    train, test = (
        [(*sorted(row["numbers"]), row["target"]) for row in split(6000)]
        for split in (task.train, task.test)
    )
    assert len(set(train)) == len(set(test)) == 6000
    assert not set(train) & set(test)


def test_both_countdown_tasks_pose_the_same_200_and_2000_puzzles_by_default() -> None:
    first, second = TASKS["countdown"], TASKS["countdown_binary"]
    assert first.train(None) == second.train(None) and len(first.train(None)) == 200
    assert first.test(None) == second.test(None) and len(first.test(None)) == 2000


def test_a_smaller_set_is_the_start_of_a_larger_one() -> None:
    for split in (TASKS["countdown"].train, TASKS["countdown"].test):
        assert split(0) == [] and split(7) == split(300)[:7]


@pytest.mark.parametrize("count", [-1, 1_000_001, 10**20])
def test_a_count_that_no_machine_can_make_is_refused_at_once(count) -> None:
    with pytest.raises(DataError, match=f"cannot give {count} rows; ask for at most 1000000"):
        TASKS["countdown"].train(count)


def test_the_puzzles_stay_the_same_from_release_to_release() -> None:
    first = {split: next(puzzles(split)) for split in ("train", "test")}
    assert (first["train"].numbers, first["train"].target) == ((80, 80, 67), 67)
    assert (first["test"].numbers, first["test"].target) == ((91, 59, 55), 95)


def test_a_prompt_names_the_numbers_and_the_target_and_ends_in_an_open_thought() -> None:
    for row in TASKS["countdown"].train(20):
        assert set(row) == {"prompt", "numbers", "target"}
        assert row["prompt"].endswith("<think>")
        assert (
            ", ".join(map(str, row["numbers"])) in row["prompt"]
            and str(row["target"]) in row["prompt"]
        )
        assert all(tag in row["prompt"] for tag in ("</think>", "<answer>", "</answer>"))
