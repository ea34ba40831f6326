"""Mixtures: shares of a batch, tasks that join and leave, rewards per task, and resumed runs."""

import asyncio
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from helpers import assert_same, repeatable_steps, short
from hypothesis import given
from hypothesis import strategies as st

from estune.config import ESConfig
from estune.errors import ConfigError, DataError, RewardError
from estune.run.mixture import Mixture, Part, shares
from estune.run.task_reward import TaskReward


def rows(name, count, **columns):
    return [{"prompt": f"what is {name} {i}"} | columns for i in range(count)]


def longest(completions, **columns):
    return [float(len(text)) for text in completions]


def two(easy=None, hard=None):
    """A mixture of six and four rows, with unlike columns and rewards."""
    first = Part("easy", rows("easy", 6, target="x" * 9), [short], **easy or {})
    return Mixture([first, Part("hard", rows("hard", 4, level=3), [longest], **hard or {})])


def asked(mixture, step, history=(), **settings):
    """How many rows of each task a step asks."""
    everything = list(mixture)
    return Counter(
        everything[i]["task"] for i in mixture.batch(ESConfig(**settings), step, history)
    )


# Rows


def test_each_row_names_its_task_and_has_none_in_the_columns_of_other_tasks():
    everything = list(two())
    assert [row["task"] for row in everything] == ["easy"] * 6 + ["hard"] * 4
    assert everything[0] == {
        "prompt": "what is easy 0",
        "target": "xxxxxxxxx",
        "level": None,
        "task": "easy",
    }
    assert everything[6] == {"prompt": "what is hard 0", "target": None, "level": 3, "task": "hard"}


# Shares


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    st.integers(1, 300),
    st.floats(0, 1, exclude_max=True),
)
def test_shares_add_up_and_each_is_its_weight_rounded_down_or_up(weights, size, start):
    dealt = shares(weights, size, start)
    assert sum(dealt) == size
    assert all(
        abs(count - size * weight / sum(weights)) < 1 + 1e-9
        for count, weight in zip(dealt, weights, strict=True)
    )


def test_over_many_steps_each_task_gets_its_weight():
    mixture = two(easy={"weight": 3.0})
    total = sum((asked(mixture, step, batch_size=3) for step in range(1, 401)), Counter())
    assert total["easy"] / 1200 == pytest.approx(0.75, abs=0.01)
    assert {asked(mixture, step, batch_size=3)["easy"] for step in range(1, 50)} == {2, 3}


def test_a_batch_is_a_function_of_seed_and_step_alone():
    first, second = two(), two()
    batches = [first.batch(ESConfig(batch_size=5), step, []) for step in range(1, 20)]
    assert batches == [
        second.batch(ESConfig(batch_size=5, sigma=0.5), step, []) for step in range(1, 20)
    ]
    assert len({tuple(batch) for batch in batches}) > 15
    assert batches != [
        first.batch(ESConfig(batch_size=5, seed=1), step, []) for step in range(1, 20)
    ]


def test_no_row_comes_twice_before_all_of_its_task_have_come():
    mixture = two()
    for step in range(1, 100):
        drawn = Counter(mixture.batch(ESConfig(batch_size=14), step, []))
        assert sorted(drawn[i] for i in range(6)) == [1] * 5 + [2]
        assert sorted(drawn[i] for i in range(6, 10)) == [1, 2, 2, 2]


def test_every_row_is_drawn_as_often_as_every_other_of_its_task():
    mixture = two()
    drawn = Counter(
        i for step in range(1, 3001) for i in mixture.batch(ESConfig(batch_size=4), step, [])
    )
    assert [drawn[i] / 1000 for i in range(6)] == pytest.approx([1.0] * 6, rel=0.1)
    assert [drawn[i] / 1500 for i in range(6, 10)] == pytest.approx([1.0] * 4, rel=0.1)


def test_without_a_batch_size_all_rows_of_the_tasks_that_are_in_are_asked():
    assert two().batch(ESConfig(), 1, []) == list(range(10))
    assert two(hard={"from_step": 2}).batch(ESConfig(), 1, []) == list(range(6))


# Curricula


def test_tasks_join_and_leave_at_their_steps():
    mixture = two(easy={"until_step": 4}, hard={"from_step": 3})
    seen = [sorted(asked(mixture, step, batch_size=4)) for step in range(1, 7)]
    assert seen == [["easy"]] * 2 + [["easy", "hard"]] * 2 + [["hard"]] * 2


def test_a_task_joins_after_the_one_before_it_has_earned_enough_and_stays():
    mixture = two(hard={"from_reward": 0.5})
    assert sorted(asked(mixture, 3, [{"easy": 0.4}, {"easy": None}])) == ["easy"]
    assert sorted(asked(mixture, 4, [{"easy": 0.4}, {"easy": 0.5}, {"easy": 0.1}])) == [
        "easy",
        "hard",
    ]
    assert sorted(asked(mixture, 2, [{"hard": 9.0}])) == ["easy"]


def test_what_a_task_earned_is_the_mean_over_its_rewards_that_are_there():
    mixture = two(hard={"from_reward": 0.5})
    everything = list(mixture)
    totals = np.array([[1.0, np.nan, 5.0], [0.0, np.nan, np.nan]])
    assert mixture.earned([everything[0], everything[1], everything[7]], totals) == {
        "easy": 0.5,
        "hard": 5.0,
    }
    assert two().earned([everything[0]], totals[:, :1]) is None, "nothing waits for it"


# rewards


def call(function, **more):
    columns = {
        "task": ["a", "b", "a"],
        "completions": ["one", "three", "seventeen"],
        "prompts": ["p", "q", "r"],
        "target": ["xx", None, "y"],
    }
    return function(**columns | more)


def test_a_tasks_reward_sees_its_rows_alone_and_the_others_get_none():
    assert call(TaskReward(short, "a")) == [-1, None, -8]
    assert call(TaskReward(longest, "b")) == [None, 5.0, None]
    assert call(TaskReward(longest, "c")) == [None, None, None]


def test_a_wrapped_reward_is_named_after_its_task_and_can_be_sent_to_another_process():
    sent = pickle.loads(pickle.dumps(TaskReward(short, "a")))
    assert sent.__name__ == "a/short"
    assert call(sent) == [-1, None, -8]


def test_an_async_reward_is_awaited():
    async def judged(completions, **columns):
        return [1.0] * len(completions)

    returned = call(TaskReward(judged, "a"))
    assert asyncio.run(returned) == [1.0, None, 1.0]


def test_what_a_tasks_reward_logs_has_its_name_and_its_place():
    def logging(completions, log_extra, log_metric, trainer_state):
        log_extra("length", [len(text) for text in completions])
        log_metric("correct", trainer_state)
        return [0.0] * len(completions)

    logged = {}
    call(
        TaskReward(logging, "a"),
        log_extra=logged.__setitem__,
        log_metric=logged.__setitem__,
        trainer_state=0.5,
    )
    assert logged == {"a/length": [3, None, 9], "a/correct": 0.5}


def test_a_wrong_number_of_rewards_names_the_task(make_trainer):
    def one(completions, **columns):
        return [1.0]

    mixture = Mixture([Part("a", rows("a", 2), [one]), Part("b", rows("b", 1), [longest])])
    with pytest.raises(
        RewardError,
        match="a/one raised ValueError: returned 1 rewards for the 2 completions of a",
    ):
        make_trainer(
            train_dataset=mixture, eval_dataset=None, reward_funcs=mixture.reward_funcs
        ).train()


# What cannot be


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Mixture([]), ConfigError, "datasets: give at least one"),
        (
            lambda: Mixture([Part("a", rows("a", 1)), Part("a", rows("a", 1))]),
            ConfigError,
            "each with its own name .*; they are a, a",
        ),
        (
            lambda: two(easy={"from_reward": 0.5}),
            ConfigError,
            "easy: from_reward waits for the dataset before it",
        ),
        (lambda: two(easy={"weight": 0.0}), ConfigError, "easy: weight must be greater than 0"),
        (
            lambda: two(easy={"weight": float("nan")}),
            ConfigError,
            "easy: weight must be greater than 0",
        ),
        (
            lambda: two(easy={"from_step": 3, "until_step": 2}),
            ConfigError,
            "easy: from_step must be",
        ),
        (lambda: Mixture([Part("a", [])]), DataError, "datasets: a: has no rows"),
        (lambda: Mixture([Part("a", rows("a", 1, task="x"))]), DataError, "has a column 'task'"),
        (
            lambda: Mixture(
                [Part("a", rows("a", 1), [short]), Part("b", rows("b", 1, target="x"))]
            ),
            RewardError,
            "parameter 'target'",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_in_one_line(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("parts", "settings", "says"),
    [
        ({"easy": {"weight": 2.0}}, {}, "batch_size: weights are shares of a batch"),
        (
            {"easy": {"until_step": 2}, "hard": {"from_step": 4}},
            {},
            "datasets: no dataset covers step 3",
        ),
        (
            {"easy": {"from_step": 2}, "hard": {"from_step": 2}},
            {},
            "datasets: no dataset covers step 1",
        ),
        (
            {"easy": {"until_step": 2}, "hard": {"from_reward": 0.5}},
            {},
            "datasets: no dataset covers step 3",
        ),
    ],
)
def test_a_run_that_would_have_nothing_to_ask_is_refused_before_a_model_is_loaded(
    make_trainer, parts, settings, says
):
    mixture = two(**parts)
    with pytest.raises(ConfigError, match=f"^{says}"):
        make_trainer(
            "no/such/model",
            train_dataset=mixture,
            eval_dataset=None,
            reward_funcs=mixture.reward_funcs,
            **settings,
        )


# A run


def trained(make_trainer, folder, mixture, dies_at=None, **settings):
    """A run on `mixture` that, when told so, dies while it scores; returns its trainer."""
    calls = iter(range(10**6))

    def mortal(completions, target, **columns):
        if next(calls) == dies_at:
            raise OSError("the judge is gone")
        return short(completions, target)

    mortal.__name__ = "short"
    mixture.parts[0] = Part(**vars(mixture.parts[0]) | {"reward_funcs": [mortal]})
    trainer = make_trainer(
        train_dataset=mixture,
        eval_dataset=None,
        reward_funcs=mixture.reward_funcs,
        output_dir=str(folder),
        batch_size=4,
        on_reward_error="raise",
        **settings,
    )
    if dies_at is None:
        trainer.train(resume_from_checkpoint=True)
    else:
        with pytest.raises(RewardError):
            trainer.train()
    return trainer


CURRICULA = {
    "by step": {"hard": {"from_step": 3}},
    "by reward": {"hard": {"from_reward": -1e9}},
    "weights": {"easy": {"weight": 3.0}},
}


@pytest.mark.parametrize("kind", CURRICULA)
def test_a_run_on_a_mixture_that_died_ends_with_the_same_bytes(make_trainer, tmp_path, kind):
    whole = trained(make_trainer, tmp_path / "whole", two(**CURRICULA[kind]))
    trained(make_trainer, tmp_path / "died", two(**CURRICULA[kind]), dies_at=13)
    trained(make_trainer, tmp_path / "died", two(**CURRICULA[kind]))
    assert_same(tmp_path / "died", whole.folder.path)


def test_the_journal_holds_what_a_curriculum_by_reward_goes_by(make_trainer, tmp_path):
    trainer = trained(make_trainer, tmp_path / "run", two(hard={"from_reward": -1e9}))
    earned = [step["task_rewards"] for step in repeatable_steps(trainer.folder.path)]
    assert [sorted(one) for one in earned] == [["easy"], *[["easy", "hard"]] * 3]
    metrics = [
        json.loads(line)
        for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["rewards/easy/short/mean"] for line in metrics] == pytest.approx(
        [one["easy"] for one in earned]
    )
    assert metrics[0]["rewards/hard/longest/mean"] is None


@pytest.mark.parametrize(
    "other", [{"easy": {"weight": 2.0}}, {"hard": {"from_step": 2}}, {"hard": {"from_reward": 0.5}}]
)
def test_another_plan_is_refused_on_resume(make_trainer, tmp_path, other):
    trained(make_trainer, tmp_path / "run", two(), dies_at=13)
    with pytest.raises(ConfigError, match="^train_data: "):
        trained(make_trainer, tmp_path / "run", two(**other))
