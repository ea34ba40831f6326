"""The conciseness tasks: their questions, and rewards of short, long, right and wrong answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from estune.common.types import Row
from estune.errors import DataError
from estune.tasks import TASKS
from estune.tasks.conciseness import conciseness_correct_reward, conciseness_reward

CONCISENESS = ["conciseness", "conciseness_correct"]


def question(row: Row) -> str:
    return str(row["prompt"][0]["content"])


def all_rows() -> list[Row]:
    return TASKS["conciseness"].train(None) + TASKS["conciseness"].test(None)


class Log:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def __call__(self, name: str, value: float) -> None:
        self.metrics[name] = value


# The questions


def test_there_are_about_150_questions_each_in_one_split_only() -> None:
    questions = [question(row).casefold() for row in all_rows()]
    assert (len(TASKS["conciseness"].train(None)), len(TASKS["conciseness"].test(None))) == (
        112,
        40,
    )
    assert len(set(questions)) == len(questions)


def test_both_conciseness_tasks_ask_the_same() -> None:
    first, second = (TASKS[name] for name in CONCISENESS)
    assert first.train(None) == second.train(None) and first.test(None) == second.test(None)


@pytest.mark.parametrize("row", all_rows(), ids=question)
def test_a_question_is_one_line_with_an_answer_of_one_or_two_words_that_it_does_not_give_away(
    row: Row,
) -> None:
    assert re.fullmatch(r"[A-Z].*\?", question(row))
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["target"] == row["target"].strip() and 1 <= len(row["target"].split()) <= 2
    assert conciseness_correct_reward([question(row)], target=[row["target"]]) == [0.0]
    assert conciseness_correct_reward([row["target"]], target=[row["target"]]) == [1.0]


@pytest.mark.parametrize("name", CONCISENESS)
def test_more_questions_than_there_are_is_an_error_that_says_how_many_there_are(name: str) -> None:
    for split, size in ((TASKS[name].train, 112), (TASKS[name].test, 40)):
        assert len(split(size)) == size and split(0) == []
        with pytest.raises(DataError, match=f"has {size} rows.*{size + 1}"):
            split(size + 1)
        with pytest.raises(DataError):
            split(-1)


# rewards


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("Paris", 0),
        ("Lyons", 0),
        ("", -5),
        ("Pari", -1),
        ("Paris.", -1),
        (" Paris", -1),
        ("Paris\n", -1),
        ("Pâris", 0),
        ("The capital of France is Paris.", -26),
    ],
)
def test_the_conciseness_reward_is_minus_the_difference_in_characters(
    response: str, score: int
) -> None:
    conversation = [{"role": "assistant", "content": response}]
    assert conciseness_reward([response, conversation], target=["Paris", "Paris"]) == [score, score]


@pytest.mark.parametrize(
    ("response", "target", "score"),
    [
        ("Paris", "Paris", 1),
        ("paris", "Paris", 1),
        ("It is Paris", "Paris", 5 / 11),
        ("PARIS!", "Paris", 5 / 6),
        ("Parisian", "Paris", 0),
        ("Rome", "Paris", 0),
        ("", "Paris", 0),
        ("2", "2", 1),
        ("12", "2", 0),
        ("2.", "2", 1 / 2),
        ("blue whale", "blue whale", 1),
        ("blue", "blue whale", 0),
        ("a.b", "a.b", 1),
        ("axb", "a.b", 0),
        ("C++!", "C++", 3 / 4),
        ("-5", "-5", 1),
    ],
)
def test_the_correct_reward_pays_a_right_answer_by_its_shortness_and_a_wrong_one_nothing(
    response: str, target: str, score: float
) -> None:
    assert conciseness_correct_reward([response], target=[target]) == [score]


def test_a_longer_right_answer_always_earns_less_but_never_nothing() -> None:
    responses = ["Paris" + "!" * excess for excess in (0, 1, 2, 10, 1000, 100_000)]
    scores = conciseness_correct_reward(responses, target=["Paris"] * len(responses))
    assert scores == sorted(set(scores), reverse=True) and scores[0] == 1 and scores[-1] > 0


@pytest.mark.parametrize("reward", [conciseness_reward, conciseness_correct_reward])
def test_the_metrics_are_the_share_of_right_answers_and_their_mean_length(
    reward: Callable[..., Any],
) -> None:
    log = Log()
    reward(
        ["Paris", "it is rome", "Bern", "Cairos"],
        target=["Paris", "Rome", "Oslo", "Cairo"],
        log_metric=log,
    )
    assert log.metrics == {"correct": 0.5, "characters": 6.25}


@pytest.mark.parametrize("reward", [conciseness_reward, conciseness_correct_reward])
def test_no_completions_give_no_scores_and_no_metric(reward: Callable[..., Any]) -> None:
    log = Log()
    assert reward([], target=[], log_metric=log) == [] and log.metrics == {}
