"""Reward functions that are refused, and the line that names them."""

import functools
import math
import sys
import types

import numpy as np
import pytest
from scored import AsyncScaled, Scaled, lengths, refusal

from estune.errors import ConfigError, RewardError
from estune.rewards.signature import check_parameters, reward_name
from estune.tasks.reward_functions import resolve_rewards

# what is refused


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, -math.inf, "1", b"1", "high", [1], {}, 1j, 10**400],
    ids=lambda v: repr(v)[:12],
)
def test_a_value_that_is_not_finite_is_refused_with_its_index(bad):
    message = refusal(lambda completions: [0, bad])
    assert "reward function <lambda> returned" in message
    assert "for completion 1" in message
    assert "one number (or None) per completion" in message


def test_a_tensor_of_several_numbers_for_a_completion_is_refused():
    import torch

    assert "for completion 0" in refusal(lambda completions: torch.ones(2, 3))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        1.5,
        "ab",
        b"ab",
        {0: 1, 1: 2},
        {1, 2},
        (x for x in (1, 2)),
        np.array(1.0),
        np.float64(1),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_value_that_is_not_a_list_is_refused(bad):
    message = refusal(lambda completions: bad)
    assert message.startswith("reward function <lambda> returned ")
    assert "one number (or None) per completion" in message


def test_a_tensor_without_dimensions_is_refused():
    import torch

    assert "returned tensor(1.)" in refusal(lambda completions: torch.tensor(1.0))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_rewards_names_both_numbers(count):
    message = refusal(lambda completions: [0] * count)
    assert f"returned {count} rewards for 2 completions" in message


def test_an_exception_is_reported_with_function_type_message_and_line():
    def judge(completions):
        return [1 / 0 for _ in completions]

    message = refusal(lengths, judge)
    assert "reward function judge raised ZeroDivisionError: division by zero" in message
    assert f"test_refused.py:{judge.__code__.co_firstlineno + 1}" in message
    assert "resume the run" in message


def test_the_reported_line_is_in_the_function_even_if_a_library_raised():
    def judge(completions, extra=None):
        import json

        return json.loads("{")

    line = judge.__code__.co_firstlineno + 3
    for function in (judge, functools.partial(judge, extra=1)):
        assert f"test_refused.py:{line};" in refusal(function)


def test_the_line_in_a_call_method_is_named_too():
    class Judge:
        def __call__(self, completions):
            raise KeyError("level")

    assert f"test_refused.py:{Judge.__call__.__code__.co_firstlineno + 1};" in refusal(Judge())


def test_a_function_that_exits_does_not_end_the_run_unexplained():
    def judge(completions):
        sys.exit(0)

    assert "judge raised SystemExit" in refusal(judge)


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, SystemExit, GeneratorExit], ids=lambda kind: kind.__name__
)
def test_no_exception_of_a_function_ends_the_run(kind):
    def judge(completions):
        raise kind

    assert f"judge raised {kind.__name__}" in refusal(judge)


def test_a_message_of_many_lines_becomes_one():
    def judge(completions):
        raise ValueError("first\nsecond\n" * 100)

    assert len(refusal(judge)) < 600


def test_missing_parameters_are_found_before_generation():
    def judge(completions, answer):
        return []

    with pytest.raises(
        RewardError,
        match=r"judge: nothing provides its parameter 'answer'.* prompts, .*level, target",
    ):
        check_parameters(judge, ["target", "level"])


def test_a_function_that_takes_no_completions_is_refused_with_the_right_form():
    def judge(prompts, target):
        return []

    with pytest.raises(
        RewardError,
        match=r"judge: takes no 'completions'; write it as def f\(completions, \*\*columns\)",
    ):
        check_parameters(judge, ["target"])


def test_positional_only_parameters_are_refused():
    def judge(completions, /):
        return []

    with pytest.raises(RewardError, match=r"judge: .*'completions'.*keywords"):
        check_parameters(judge, [])


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        Scaled(1),
        AsyncScaled(),
        functools.partial(Scaled(1), level=[1]),
        lambda completions, level=3: [],
        lambda **columns: [],
        lambda *, completions, log_metric, trainer_state: [],
    ],
)
def test_functions_in_trls_form_pass_the_check(function):
    check_parameters(function, ["level"])


# names


def test_builtin_names_are_the_tasks_reward_functions():
    from estune.tasks import get_task

    assert resolve_rewards("countdown_reward") == list(get_task("countdown").reward_funcs)


def test_one_or_a_list_of_functions_and_names_resolve():
    assert resolve_rewards(lengths) == [lengths]
    resolved = resolve_rewards([lengths, "conciseness_reward", "math.fsum"])
    assert [reward_name(one) for one in resolved] == ["lengths", "conciseness_reward", "fsum"]


@pytest.mark.parametrize("given", [None, [], [None]])
def test_no_reward_function_at_all_is_refused(given):
    with pytest.raises(ConfigError, match="give at least one reward function"):
        resolve_rewards(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("no_such_reward", "conciseness_reward"),
        ("no_such_module.reward", "No module named 'no_such_module'"),
        ("math.no_such_name", "no_such_name"),
        ("math.pi", "is a float, not a function"),
        ("math.", "cannot import math."),
        (".math", "cannot import .math"),
        (5, "neither a function nor the name of one"),
    ],
)
def test_a_name_that_names_no_function_is_refused(given, says):
    with pytest.raises(ConfigError) as caught:
        resolve_rewards(given)
    assert str(caught.value).startswith("reward_funcs: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "statement",
    ["raise ValueError('broken')", "import sys; sys.exit()", "import sys; sys.exit(0)", "def f(:"],
)
def test_a_module_that_fails_on_import_is_refused_with_its_path(statement, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"broken_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(statement)
    with pytest.raises(ConfigError, match=rf"^reward_funcs: cannot import {name}\.reward \("):
        resolve_rewards(f"{name}.reward")


def test_the_working_folder_is_importable_and_shadows_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("import colorsys\ndef short(completions): return []")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('shadowed')")
    (function,) = resolve_rewards(f"{name}.short")
    assert isinstance(function, types.FunctionType)
    assert sys.path[-1] == str(tmp_path)
