"""Reward functions are called as TRL calls them; an error is one line that names the function."""

import asyncio
import functools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import AsyncScaled, Scaled, lengths, refusal, score

from estune.common.types import Completion
from estune.errors import ConfigError
from estune.rewards.scoring import RewardFunctions

# the call


def test_a_function_with_keyword_columns_gets_all_that_trl_passes():
    seen = {}

    def reward(**keywords):
        seen.update(keywords)
        return [0, 0]

    state = object()
    score(reward, state=state)
    assert sorted(seen) == sorted(
        [
            "prompts",
            "completions",
            "completion_ids",
            "trainer_state",
            "log_extra",
            "log_metric",
            "target",
            "level",
        ]
    )
    assert seen["prompts"] == ["p0", "p1"]
    assert seen["completions"] == ["one", "three"]
    assert seen["completion_ids"] == [[5], [6, 7]]
    assert seen["trainer_state"] is state


def test_every_column_arrives_as_a_list_in_the_order_of_the_rows():
    seen = {}

    def reward(completions, target, level):
        seen.update(target=target, level=level)
        return [0, 0]

    score(reward)
    assert seen == {"target": ["a", "bb"], "level": [1, 2]}


def test_a_function_without_keyword_columns_gets_only_what_it_names():
    assert score(lengths).total.tolist() == [3, 5]


def test_parameters_with_a_default_keep_it_when_no_column_has_their_name():
    def reward(completions, scale=10, level=None):
        return [scale * one for one in level]

    assert score(reward).total.tolist() == [10, 20]


def test_keyword_only_parameters_are_filled():
    def reward(*, completions, level):
        return level

    assert score(reward).total.tolist() == [1, 2]


def test_a_conversation_is_answered_by_a_list_with_the_assistants_message():
    seen = []

    def reward(completions, prompts):
        seen.extend([completions, prompts])
        return [1]

    prompt = [{"role": "user", "content": "hi"}]
    score(reward, rows=[{"prompt": prompt}])
    assert seen == [[[{"role": "assistant", "content": "one"}]], [prompt]]


def test_a_function_is_called_once_with_all_completions():
    calls = []

    def reward(completions):
        calls.append(len(completions))
        return [0] * len(completions)

    score(reward)
    assert calls == [2]


def test_instances_with_a_call_method_are_functions_too():
    scores = score(Scaled(3))
    assert scores.by_function["Scaled"].tolist() == [3, 6]


def test_partials_bound_methods_and_lambdas_are_functions_too():
    def reward(factor, completions, level):
        return [factor * one for one in level]

    class Judge:
        def grade(self, completions):
            return [4, 4]

    assert score(functools.partial(reward, factor=5)).total.tolist() == [5, 10]
    assert score(functools.partial(reward, 7)).total.tolist() == [7, 14]
    assert list(score(Judge().grade).by_function) == ["grade"]
    assert score(lambda completions: [1, 2]).total.tolist() == [1, 2]


def test_a_class_may_name_its_reward():
    judge = Scaled(1)
    judge.__name__ = "judge"
    assert list(score(judge).by_function) == ["judge"]


@pytest.mark.parametrize(
    "values",
    [[1, 2], (1, 2), np.array([1, 2]), np.float32([1, 2]), [np.float64(1), 2], [True, 2]],
    ids=lambda v: type(v).__name__,
)
def test_any_sequence_of_numbers_is_accepted(values):
    assert score(lambda completions: values).total.tolist() == [1, 2]


@pytest.mark.slow
def test_a_tensor_is_accepted():
    import torch

    assert score(lambda completions: torch.tensor([1.0, 2.0])).total.tolist() == [1, 2]
    assert score(lambda completions: [torch.tensor(1.0), 2]).total.tolist() == [1, 2]


# async


def waiting_for_each_other(count):
    """Async functions that only return once all have started."""
    begun = []

    def one(number):
        async def reward(completions, **columns):
            begun.append(number)
            while len(begun) < count:
                await asyncio.sleep(0)
            return [number, number]

        reward.__name__ = f"reward{number}"
        return reward

    return [one(number) for number in range(count)]


def test_async_functions_run_concurrently_and_keep_their_order():
    scores = score(*waiting_for_each_other(3))
    assert {name: values.tolist() for name, values in scores.by_function.items()} == {
        "reward0": [0, 0],
        "reward1": [1, 1],
        "reward2": [2, 2],
    }


def test_async_and_plain_functions_mix():
    first, second = waiting_for_each_other(2)
    assert list(score(first, lengths, second).by_function) == ["reward0", "lengths", "reward1"]
    assert score(AsyncScaled(), lengths).total.tolist() == [4, 7]


def test_async_functions_also_work_inside_a_running_event_loop_as_in_a_notebook():
    async def notebook():
        return score(*waiting_for_each_other(2)).total.tolist()

    assert asyncio.run(notebook()) == [1, 1]


def test_an_async_function_that_raises_is_named_with_its_line():
    async def slow_judge(completions):
        await asyncio.sleep(0)
        raise TimeoutError("no answer")

    line = slow_judge.__code__.co_firstlineno + 2
    message = refusal(lengths, slow_judge)
    assert "slow_judge raised TimeoutError: no answer" in message
    assert f"test_scoring.py:{line}" in message


def test_an_async_function_is_not_left_hanging_when_a_plain_one_raises():
    async def fine(completions):
        return [1, 1]

    def broken(completions):
        raise ValueError("x")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "broken" in refusal(fine, broken)


# weights, None, names, logs


def test_the_mean_reward_is_that_of_the_weighted_sums():
    scores = score(lengths, Scaled(1), weights=[0.5, -1])
    assert scores.total.tolist() == [0.5, 0.5]
    assert scores.mean_reward == 0.5


def test_weights_default_to_one_each():
    assert score(lengths, Scaled(1)).total.tolist() == [4, 7]


@pytest.mark.parametrize("weights", [[], [1], [1, 2, 3]])
def test_a_wrong_number_of_weights_names_both_numbers(weights):
    with pytest.raises(
        ConfigError, match=rf"reward_weights: {len(weights)} weights for 2 reward functions"
    ):
        RewardFunctions([lengths, Scaled(1)], weights)


def test_none_leaves_the_other_functions_rewards():
    scores = score(lambda completions: [None, 1], Scaled(10))
    assert scores.total.tolist() == [10, 21]
    assert math.isnan(scores.by_function["<lambda>"][0])


def test_a_completion_without_any_number_is_left_out_of_the_mean_reward():
    scores = score(lambda completions: [None, 6])
    assert math.isnan(scores.total[0])
    assert scores.mean_reward == 6


def test_a_member_without_any_number_has_no_mean_reward():
    assert math.isnan(score(lambda completions: [None, None]).mean_reward)


def test_two_functions_of_one_name_are_both_kept():
    scores = score(Scaled(1), Scaled(100))
    assert {name: values.tolist() for name, values in scores.by_function.items()} == {
        "Scaled": [1, 2],
        "Scaled_2": [100, 200],
    }
    assert scores.total.tolist() == [101, 202]


def test_a_numbered_name_never_equals_another_functions_name():
    def named(name, value):
        def reward(completions):
            return [value, value]

        reward.__name__ = name
        return reward

    scores = score(named("a", 1), named("a", 2), named("a_2", 4))
    assert len(scores.by_function) == 3
    assert scores.total.tolist() == [7, 7]


def test_log_metric_and_log_extra_arrive_with_the_scores():
    def reward(completions, log_metric, log_extra, **columns):
        log_metric("right", np.float32(0.5))
        log_extra("parsed", [text.upper() for text in completions])
        return [0, 0]

    scores = score(reward)
    assert scores.metrics == {"right": 0.5}
    assert type(scores.metrics["right"]) is float
    assert scores.extra == {"parsed": ["ONE", "THREE"]}


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=6))
def test_the_mean_reward_is_that_of_the_numbers_among_the_rewards(values):
    rows = [{"prompt": "p"} for _ in values]
    answers = [Completion("", [], False) for _ in values]
    numbers = [value for value in values if value is not None]
    average = RewardFunctions([lambda completions: values]).score(rows, answers).mean_reward
    assert (
        math.isnan(average)
        if not numbers
        else average == pytest.approx(math.fsum(numbers) / len(numbers))
    )
