"""Settings: types, limits, messages, and no input that ends in a traceback."""

import dataclasses
import math
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estune.common.name_hints import ADVICE, nearest
from estune.config import MAY_CHANGE_ON_RESUME, ESConfig, RunConfig, build
from estune.errors import ConfigError, EstuneError, InputError

NAMES = [field.name for field in dataclasses.fields(RunConfig)]


def refusal(kind=ESConfig, where="", **values) -> str:
    with pytest.raises(ConfigError) as caught:
        build(kind, values, where)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_importing_the_config_pulls_in_neither_torch_nor_transformers():
    code = (
        "import sys, estune.config; "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_defaults_are_the_papers():
    config = ESConfig()
    assert (config.population_size, config.sigma, config.alpha) == (30, 1e-3, 5e-4)
    assert (config.noise, config.reward_shaping, config.antithetic, config.batch_size) == (
        "iid",
        "z_score",
        False,
        None,
    )
    assert config.target_parameters is None


def test_alpha_is_half_of_sigma_unless_it_is_set():
    assert ESConfig(sigma=0.02).alpha == 0.01
    assert ESConfig(sigma=0.02, learning_rate=0.3).alpha == 0.3


def test_a_config_cannot_be_changed_behind_the_checks():
    with pytest.raises(AttributeError):
        ESConfig().sigma = -1


def test_config_errors_are_value_errors_under_estunes_root():
    assert issubclass(ConfigError, InputError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, EstuneError)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sigma", 0, "greater than 0"),
        ("sigma", -0.001, "greater than 0"),
        ("sigma", math.nan, "finite"),
        ("sigma", math.inf, "finite"),
        ("sigma", "nan", "finite"),
        ("learning_rate", 0, "greater than 0"),
        ("learning_rate", math.inf, "finite"),
        ("population_size", 1, "at least 2"),
        ("population_size", -5, "at least 2"),
        ("max_steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("max_completion_length", 0, "at least 1"),
        ("save_steps", 0, "at least 1"),
        ("save_total_limit", 0, "at least 1"),
        ("eval_steps", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**63, "below"),
        ("seed", 10**400, "below"),
        ("num_completions_to_print", -1, "at least 0"),
        ("reward_weights", [1.0, math.nan], "finite"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_the_limit_and_itself(name, value, says):
    message = refusal(**{name: value})
    assert message.startswith(f"{name}: ")
    assert says in message
    shown = math.nan if isinstance(value, list) else value
    assert str(shown) in message


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sigma", "small", "number"),
        ("sigma", [1], "number"),
        ("sigma", True, "number"),
        ("sigma", None, "number"),
        ("population_size", 2.5, "integer"),
        ("population_size", "many", "integer"),
        ("population_size", True, "number"),
        ("reward_weights", True, "number"),
        ("antithetic", "perhaps", "boolean"),
        ("noise", "white", "'iid' or 'correlated'"),
        ("reward_shaping", "rank", "'z_score', 'centered_rank' or 'none'"),
        ("engine", "vlm", "'transformers'"),
        ("dtype", "int8", "'bfloat16'"),
        ("stop", [1], "string"),
        ("stop", {"a": 1}, "list"),
        ("model_init_kwargs", "x", "dictionary"),
        ("output_dir", 5, "string"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_name_the_right_type_and_itself(
    name, value, says
):
    message = refusal(**{name: value})
    assert message.startswith(f"{name}: must be")
    assert says in message
    assert str(value).strip("[]") in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sigm", "sigma"),
        ("population", "population_size"),
        ("learning_rat", "learning_rate"),
        ("max_step", "max_steps"),
        ("output-dir", "output_dir"),
        ("--sigma", "sigma"),
    ],
)
def test_an_unknown_setting_names_the_nearest_right_one(typed, meant):
    assert refusal(**{typed: 1}) == f"unknown setting {typed!r}; did you mean {meant!r}?"


def test_an_unknown_setting_like_no_other_points_to_the_help():
    assert "--help" in refusal(**{"zzzzqqqq": 1})


def test_the_message_says_where_the_value_was():
    assert refusal(where="run.yaml: ", sigma=-1).startswith("run.yaml: sigma: ")
    assert refusal(where="run.yaml: ", sigmma=1).startswith("run.yaml: unknown setting 'sigmma'")


def test_settings_that_contradict_one_another_are_refused():
    assert "even" in refusal(antithetic=True, population_size=5)
    assert "metric_for_best_model" in refusal(load_best_model_at_end=True)
    assert "eval_strategy" in refusal(metric_for_best_model="reward")
    assert ESConfig(antithetic=True, population_size=6).antithetic


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("sigma", "1e-3", 1e-3),
        ("sigma", "0.5", 0.5),
        ("sigma", 1, 1.0),
        ("population_size", "8", 8),
        ("population_size", 8.0, 8),
        ("antithetic", "true", True),
        ("antithetic", "FALSE", False),
        ("antithetic", "no", False),
        ("antithetic", 1, True),
        ("stop", "END", ["END"]),
        ("stop", ["a", "b"], ["a", "b"]),
        ("target_parameters", "mlp", ["mlp"]),
        ("reward_weights", 2, [2.0]),
        ("reward_weights", ["1", "0.5"], [1.0, 0.5]),
        ("eval_strategy", False, "no"),
    ],
)
def test_text_and_near_types_become_the_declared_type(name, given, taken):
    value = getattr(ESConfig(**{name: given}), name)
    assert value == taken
    assert type(value) is type(taken)


def test_a_run_config_is_a_config_with_model_data_and_rewards():
    config = build(
        RunConfig,
        {
            "model_name_or_path": "m",
            "task": "countdown",
            "reward_funcs": "mine.short",
            "sigma": 0.1,
        },
    )
    assert isinstance(config, ESConfig)
    assert (config.model_name_or_path, config.reward_funcs, config.dataset_train_split) == (
        "m",
        ["mine.short"],
        "train",
    )


def test_every_setting_explains_itself():
    assert all(field.metadata["help"] for field in dataclasses.fields(RunConfig))


def test_what_affects_theta_may_not_change_on_resume():
    affect_theta = {"seed", "sigma", "learning_rate", "population_size", "noise", "pass_k"}
    assert not affect_theta & MAY_CHANGE_ON_RESUME
    assert {"max_steps", "engine", "workers", "output_dir"} < MAY_CHANGE_ON_RESUME


NAMES = sorted(RunConfig.__dataclass_fields__)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["1e-3", "nan", "none", "true", "-1", "iid"])
    | st.binary(max_size=4)
    | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
)
KEYS = st.sampled_from(NAMES) | st.text(max_size=12)
LIGHT = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))


def built_or_refused(values) -> RunConfig | str:
    try:
        return build(RunConfig, values)
    except ConfigError as error:
        return str(error)


@LIGHT
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping_gives_a_config_or_one_line_that_names_a_setting(values):
    result = built_or_refused(values)
    if isinstance(result, str):
        assert "\n" not in result
        assert any(name in result for name in [*NAMES, *map(repr, values)])
    else:
        assert set(values) <= set(NAMES)
        assert result.population_size >= 2
        assert 0 < result.sigma < math.inf


# settings that people know from TRL


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("use_vllm", "set engine: vllm"),
        ("num_train_epochs", "max_steps"),
        ("per_device_train_batch_size", "set batch_size"),
        ("num_generations", "set population_size"),
        ("beta", "no KL term"),
        ("temperature", "greedily"),
        ("bf16", "set dtype: bfloat16"),
        ("gradient_checkpointing", "no gradients"),
        ("fitness", "set pass_k"),
        ("max_prompt_length", "prompts are never cut"),
        ("save_strategy", "set save_steps"),
        ("use_peft", "target_parameters"),
        ("scale_rewards", "set prompt_shaping: standardize"),
    ],
)
def test_a_setting_of_trl_is_answered_with_estunes_own(name, said):
    for word in (name, f"--{name}", f"--{name.replace('_', '-')}"):
        assert said in nearest(word, NAMES)
    with pytest.raises(ConfigError, match=said):
        build(ESConfig, {name: 1})


def test_advice_on_names_of_trl_names_settings_that_exist():
    for name, said in ADVICE.items():
        assert name not in NAMES
        for word in re.findall(r"[a-z]+(?:_[a-z]+)+", re.sub(r"\{.*?\}|--\S+", "", said)):
            assert word in NAMES, word


@pytest.mark.parametrize("path", ["out/checkpoint-2", "checkpoint-2", "/abs/out", "..\\out"])
def test_a_path_to_resume_from_is_answered_with_how_runs_resume(path):
    with pytest.raises(
        ConfigError,
        match="is true or false, not a path: a run continues from the journal in its output_dir",
    ):
        ESConfig(resume_from_checkpoint=path)
