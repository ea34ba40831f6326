"""What a reward function returns is read by position, or refused in one line that shows it."""

import collections
import decimal
import fractions
import json

import numpy as np
import pandas as pd
import pytest
import torch

from estune.common.types import Completion
from estune.errors import RewardError
from estune.monitor.metrics import logged_metrics
from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions

ROWS = [{"prompt": p} for p in "abc"]
ANSWERS = [Completion(text, [1], False) for text in ("one", "three", "fifteen")]


def result_of(value, *, workers=0, **settings):
    """Return the rewards and failures of a function that returns `value` for three completions."""
    rewards = RewardFunctions(
        [lambda completions: value], None, RewardLimits(workers=workers, timeout=20), **settings
    )
    try:
        return rewards.score(ROWS, ANSWERS)
    finally:
        rewards.close()


class Raises:
    """A value whose own code raises."""

    def __init__(self, error, *methods):
        self._error, self._methods = error, methods

    def __len__(self):
        return self._or("__len__", 3)

    def __getitem__(self, index):
        return self._or("__getitem__", 1.0)

    def __float__(self):
        return self._or("__float__", 1.0)

    def __repr__(self):
        return self._or("__repr__", "<value>")

    def _or(self, method, value):
        if method in self._methods:
            raise self._error
        return value


class Liar(list):
    def __len__(self):
        return 3


GOOD = {
    "a list": [1, 2.0, 3],
    "a tuple": (1, 2, 3),
    "a deque": collections.deque([1, 2, 3]),
    "an array": np.array([1, 2, 3]),
    "half precision": np.array([1, 2, 3], np.float16),
    "extended precision": np.array([1, 2, 3], np.longdouble),
    "numpy's scalars": [np.int8(1), np.float32(2), np.uint64(3)],
    "a column": np.array([[1], [2], [3]]),
    "one array each": [np.array([1.0]), np.array([[2.0]]), np.array(3)],
    "a tensor": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True),
    "a tensor's column": torch.tensor([[1], [2], [3]]),
    "tensors": [torch.tensor(1), torch.tensor([2.0]), torch.tensor(3.0)],
    "a series": pd.Series([1, 2, 3]),
    "a series with another index": pd.Series([1, 2, 3], index=[10, 11, 12]),
    "a series with a shuffled index": pd.Series([1, 2, 3], index=[2, 0, 1]),
    "a series with words for an index": pd.Series([1, 2, 3], index=list("xyz")),
    "a series of nullable numbers": pd.Series([1, 2, 3], dtype="Int64"),
    "an index": pd.Index([1, 2, 3]),
    "a table of one column": pd.DataFrame({"n": [1, 2, 3]}),
    "decimals": [decimal.Decimal(1), decimal.Decimal("2.0"), decimal.Decimal(3)],
    "fractions": [fractions.Fraction(1), fractions.Fraction(4, 2), 3],
    "more than three items behind a false length": Liar([1, 2, 3, 4]),
}


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("value", GOOD.values(), ids=GOOD)
def test_numbers_are_taken_by_position(value):
    assert result_of(value).total.tolist() == [1, 2, 3]


def test_true_counts_as_one_and_none_as_no_reward():
    assert result_of(np.array([True, False, True])).total.tolist() == [1, 0, 1]
    assert result_of([None, True, np.bool_(False)]).total.tolist()[1:] == [1, 0]


BAD = {
    "a number": 1.0,
    "a text": "123",
    "bytes": b"123",
    "nothing": None,
    "a set": {1, 2, 3},
    "a dictionary": {0: 1, 1: 2, 2: 3},
    "another mapping": collections.UserDict({0: 1, 1: 2, 2: 3}),
    "a scalar array": np.array(1.0),
    "a scalar tensor": torch.tensor(1.0),
    "a square table": pd.DataFrame(np.ones((3, 3))),
    "nested lists": [[1], [2], [3]],
    "words": ["1", "2", "3"],
    "too few": [1, 2],
    "a huge int": [10**400, 1, 1],
    "an int without a text": [10**5000, 1, 1],
    "a huge decimal": [decimal.Decimal("1e400"), 1, 1],
    "a complex number": [1j, 1, 1],
    "a missing value": pd.Series([1, None, 3], dtype="Int64"),
    "nan": pd.Series([1.0, None, 3.0]),
    "a masked element": np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False]),
    "dates": np.array(["2020-01-01"] * 3, "datetime64[D]"),
    "fewer than it says": Liar([1, 2]),
    "a length that fails": Raises(RuntimeError("x"), "__len__"),
    "items that fail": Raises(KeyError("x"), "__getitem__"),
    "items that exit": Raises(SystemExit(3), "__getitem__"),
    "items that interrupt": Raises(KeyboardInterrupt(), "__getitem__"),
    "numbers that fail": [Raises(ValueError("x"), "__float__"), 1, 1],
    "numbers that exit": [Raises(SystemExit(3), "__float__"), 1, 1],
    "no text at all": [Raises(SystemExit(3), "__float__", "__repr__"), 1, 1],
    "a generator": (x for x in (1, 2, 3)),
    "a map": map(float, (1, 2, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_value_that_is_not_a_reward_ends_the_first_batch_with_one_line(value):
    with pytest.raises(
        RewardError,
        match=r"^reward function <lambda> returned .*it must return one number.*fix it",
    ) as caught:
        result_of(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_value_that_is_not_a_reward_counts_as_failed_after_the_first_batch(value):
    def judge(completions):
        return value if len(completions) == 3 or completions == ["three"] else [1.0]

    rewards = RewardFunctions([judge], None, RewardLimits(workers=0, timeout=20), "zero")
    found = rewards.score(ROWS, ANSWERS)
    rewards.close()
    assert found.total.tolist() == [1, 0, 1]
    assert list(found.failures["judge"]) == [1]


def test_a_reward_process_refuses_values_and_continues():
    def judge(completions):
        from fractions import Fraction

        class Exits:
            def __float__(self):
                raise SystemExit(3)

        return (
            [Exits()] * len(completions)
            if "three" in completions
            else [Fraction(1, 2)] * len(completions)
        )

    rewards = RewardFunctions([judge], None, RewardLimits(workers=1, timeout=20), "zero")
    found = rewards.score(ROWS, ANSWERS)
    rewards.close()
    assert found.total.tolist() == [0.5, 0, 0.5]
    assert "SystemExit: 3" in found.failures["judge"][1].reason


def test_an_async_function_that_exits_in_the_trainer_is_a_failure():
    async def judge(completions):
        raise SystemExit(3)

    with pytest.raises(RewardError, match="raised SystemExit: 3"):
        RewardFunctions([judge], None, RewardLimits(workers=0, timeout=20)).score(ROWS, ANSWERS)


def test_an_error_without_a_text_is_named():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    def judge(completions):
        raise Silent

    with pytest.raises(RewardError, match="raised Silent: Silent without a text"):
        RewardFunctions([judge], None, RewardLimits(workers=0, timeout=20)).score(ROWS, ANSWERS)


def test_a_weighted_sum_too_large_for_a_double_names_the_function():
    def large(completions):
        return [1e308] * 3

    def larger(completions):
        return [1.0, 1.7e308, 1.0]

    with pytest.raises(
        RewardError,
        match=r"reward function larger returned 1\.7e\+308, which makes the .*lower its weight",
    ):
        RewardFunctions([large, larger], None, RewardLimits(workers=0)).score(ROWS, ANSWERS)
    with pytest.raises(RewardError, match=r"reward function large returned 1e\+308"):
        RewardFunctions([large], [10.0], RewardLimits(workers=0)).score(ROWS, ANSWERS)
    lost = RewardFunctions([large, larger], None, RewardLimits(workers=0), "drop").score(
        ROWS, ANSWERS
    )
    assert np.isnan(lost.total).tolist() == [False, True, False]
    assert list(lost.failures) == ["larger"]


def test_opposite_sums_too_large_for_a_double_fail_too():
    def plus(completions):
        return [1.7e308] * 3

    def minus(completions):
        return [-1.7e308] * 3

    scores = RewardFunctions([plus, minus], [2.0, 2.0], RewardLimits(workers=0), "drop").score(
        ROWS, ANSWERS, first=False
    )
    assert np.isnan(scores.total).all()
    assert RewardFunctions([plus, minus], None, RewardLimits(workers=0)).score(
        ROWS, ANSWERS
    ).total.tolist() == [
        0,
        0,
        0,
    ]


def test_any_logged_figure_is_valid_json():
    def judge(completions, log_metric):
        for name, value in {"inf": np.inf, "nan": np.nan, "large": 1.7e308, "fine": 2}.items():
            log_metric(name, value)
        log_metric(7, 1)
        return [1.0] * len(completions)

    scores = RewardFunctions([judge], None, RewardLimits(workers=0)).score(ROWS, ANSWERS)
    figures = logged_metrics([scores, scores])
    assert figures == {"inf": None, "nan": None, "large": 1.7e308, "fine": 2.0, "7": 1.0}
    json.dumps(figures, allow_nan=False)


def test_a_logged_value_that_the_trainer_cannot_read_is_the_functions_failure():
    def judge(completions, log_extra):
        class Unreadable:
            def __reduce__(self):
                return int, ("no number",)

        log_extra("x", [Unreadable()] * len(completions))
        return [1.0] * len(completions)

    rewards = RewardFunctions([judge], None, RewardLimits(workers=1, timeout=20))
    with pytest.raises(
        RewardError,
        match="judge logged something that cannot be received .ValueError: invalid literal",
    ):
        rewards.score(ROWS, ANSWERS)
    rewards.close()
