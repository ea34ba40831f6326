"""Comparing ES with RL: the runs of a comparison, its table, and the inputs it refuses."""

import json
import math
from pathlib import Path

import pytest

from estune.cli.main import main
from estune.config import RunConfig
from estune.errors import ConfigError, EstuneError, InputError
from estune.evaluation.compare import plots
from estune.evaluation.compare.execute import _raise_failure
from estune.evaluation.compare.methods import METHODS, grids
from estune.evaluation.compare.runs import Budget, load, most_steps, runs
from estune.evaluation.compare.table import best, markdown, reached, results_table, reward_at

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

BUDGET = Budget(1000, 100, 8)
ES = ("es-paper", "mezo")


def planned(*names, rates=None, seeds=1, rl=(), rows=32, **settings):
    config = RunConfig(
        **{"model_name_or_path": "model", "task": "conciseness", "batch_size": 16, "sigma": 0.004}
        | settings
    )
    methods = [METHODS[name] for name in names]
    return runs(config, methods, grids(methods, rates), seeds, BUDGET, rows, dict(rl))


def point(tokens, reward, seconds=1.0, **figures):
    about = {
        "reward": reward,
        "correct": 0.5,
        "completions/mean_length": 7.0,
        "rewards/f/mean": reward,
    }
    return {"step": tokens, "tokens": tokens, "seconds": seconds, "train": about | figures}


def result(method, rate, seed, *points):
    about = {
        "engine": "transformers",
        "dtype": "float32",
        "temperature": 0.0,
        "samples": 8,
        "prompts": 4,
        "peak_bytes": 2**30,
    }
    return {"method": method, "learning_rate": rate, "seed": seed, "points": list(points)} | about


def comparison(*results, tokens=100):
    methods = list(dict.fromkeys(one["method"] for one in results))
    return {
        "model": "m",
        "tokens": tokens,
        "eval_tokens": 50,
        "eval_prompts": 8,
        "methods": methods,
        "runs": list(results),
    }


def straight(method, rate, seed, end, tokens=100):
    return result(method, rate, seed, point(0, 0.0, 0.0), point(tokens, end))


# which runs


def test_every_rate_of_a_method_is_run_with_every_seed():
    made = planned("es-paper", "dr_grpo", seeds=3)
    assert [(run.method, run.learning_rate, run.seed) for run in made if run.seed == 43] == [
        ("es-paper", None, 43),
        *(("dr_grpo", rate, 43) for rate in (1e-5, 2e-5, 5e-5)),
    ]
    assert len({run.name for run in made}) == len(made) == 12


def test_rates_are_for_all_rl_methods_or_for_one_that_is_named():
    methods = [METHODS[name] for name in ("es-paper", "mezo", "grpo", "dapo")]
    found = grids(methods, ["3e-5", "mezo=1e-6,2e-6", "dapo=1e-5"])
    assert found == {"es-paper": (None,), "mezo": (1e-6, 2e-6), "grpo": (3e-5,), "dapo": (1e-5,)}


def test_es_paper_is_the_configs_own_run_with_half_of_sigma():
    (run,) = planned("es-paper", learning_rate=0.3, population_size=6)
    assert (run.config().alpha, run.config().population_size) == (0.002, 6)


def test_es_finds_its_step_size_by_itself():
    assert planned("es", learning_rate=0.3)[0].config().learning_rate == "auto"


def test_mezo_is_one_raw_pair_a_step_whose_rate_is_over_sigma():
    config = planned("mezo", rates=["mezo=2e-6"], pass_k=1)[0].config()
    assert config.population_size == 2
    assert config.antithetic
    assert config.reward_shaping == "none"
    assert config.pass_k is None
    assert config.alpha == pytest.approx(2e-6 / 0.004)


@pytest.mark.parametrize(
    ("name", "settings"), [(m.name, m.settings) for m in METHODS.values() if m.kind == "rl"]
)
def test_an_rl_step_sees_as_many_prompts_as_one_of_es(name, settings):
    rl = planned(name)[0].rl
    assert rl["per_device_train_batch_size"] * rl["gradient_accumulation_steps"] == 16 * 8
    assert rl["max_completion_length"] == 256
    assert settings.items() <= rl.items()


def test_a_method_that_does_not_go_with_the_config_is_named():
    with pytest.raises(
        ConfigError,
        match="^methods: es does not fit this config; change it or leave es out: weight_decay: ",
    ):
        planned("es-paper", "es", weight_decay=0.1)


def test_more_settings_of_trl_win_and_their_samples_count():
    rl = planned("dapo", rl={"num_generations": 4, "mask_truncated_completions": False})[0].rl
    assert rl["per_device_train_batch_size"] * rl["gradient_accumulation_steps"] == 16 * 4
    assert rl["mask_truncated_completions"] is False


def test_a_model_that_says_nothing_does_not_run_for_ever():
    assert most_steps(1000, 16, 8) == 8
    assert planned("dr_grpo")[0].rl["max_steps"] == 8
    assert planned("mezo")[0].config().max_steps == 32


def test_a_run_can_be_read_again_from_its_file():
    for run in planned("mezo", "dapo"):
        assert load(json.loads(json.dumps(vars(run)))) == run


# what came out


def test_a_method_is_shown_at_the_rate_that_is_best_in_the_median():
    runs = [
        straight("grpo", rate, seed, end)
        for rate, ends in {1e-5: (1, 2, 30), 2e-5: (5, 6, 7)}.items()
        for seed, end in enumerate(ends)
    ]
    assert {one["learning_rate"] for one in best(comparison(*runs), "grpo")} == {2e-5}


def test_a_rate_of_which_seeds_are_missing_does_not_win():
    runs = [
        straight("grpo", 1e-5, 1, 2),
        straight("grpo", 1e-5, 2, 2),
        straight("grpo", 5e-5, 1, 9),
    ]
    assert len(best(comparison(*runs), "grpo")) == 2


@pytest.mark.parametrize("first", [1e-5, 5e-5])
def test_a_rate_at_which_seeds_came_to_no_number_does_not_win(first):
    runs = {1e-5: (0.5, 0.5, 0.5), 5e-5: (math.nan, math.nan, 0.6)}
    rates = [first, *(rate for rate in runs if rate != first)]
    shown = comparison(
        *(
            straight("grpo", rate, seed, end)
            for rate in rates
            for seed, end in enumerate(runs[rate])
        )
    )
    assert {one["learning_rate"] for one in best(shown, "grpo")} == {1e-5}


def test_seeds_that_came_to_no_number_are_told_of():
    lost = comparison(
        *(straight("grpo", 1e-5, seed, end) for seed, end in enumerate((0.5, math.nan, 0.7)))
    )
    assert "0.6 (0.5 to 0.7, 1 without)" in markdown(lost)


def test_a_run_that_was_killed_is_said_to_be_and_an_earlier_attempts_words_are_not_its_own(
    tmp_path,
):
    log, (run,) = tmp_path / "log.txt", planned("es-paper")
    log.write_text("estune: an old complaint\n")
    with pytest.raises(
        EstuneError, match="killed by SIGKILL, as the system does when memory runs out"
    ):
        _raise_failure(run, log, -9, old_bytes=0)
    with pytest.raises(InputError, match="no message"):
        _raise_failure(run, log, 2, old_bytes=log.stat().st_size)


def test_rewards_are_read_off_at_equal_tokens():
    long_step = result("es-paper", None, 1, point(0, 0.0), point(80, 8.0), point(120, 12.0))
    assert reward_at(long_step, 100) == 10
    assert reward_at(straight("es-paper", None, 1, 3.0, tokens=60), 100) == 3  # ended by its steps


def test_tokens_to_a_reward_are_those_of_the_first_crossing():
    up_and_down = result("grpo", 1e-5, 1, point(0, 0.0), point(50, 10.0), point(100, 4.0))
    assert reached(up_and_down, 5.0) == 25
    assert reached(up_and_down, 0.0) == 0
    assert reached(up_and_down, 11.0) != reached(up_and_down, 11.0)


def test_the_table_tells_the_median_the_spread_and_who_reached_es_paper():
    runs = [straight("es-paper", None, seed, end) for seed, end in enumerate((9, 10, 12))]
    runs += [straight("dapo", 1e-5, seed, end) for seed, end in enumerate((4, 20, 30))]
    head, (paper, dapo) = results_table(comparison(*runs))
    assert paper[head.index("reward")] == "10 (9 to 12)"
    assert dapo[head.index("to es-paper")] == "41.7 (2/3)"
    assert dapo[head.index("memory")] == "1.0 GiB"


def test_markdown_tells_what_rewards_logged_and_what_differs():
    text = markdown(comparison(straight("dr_grpo", 2e-5, 1, 3.0)))
    assert "| dr_grpo | 2e-05 | 1 | 3 |" in text
    assert "| correct |" in text
    assert "rewards/f/mean" not in text  # one function: it is the reward
    assert "- dr_grpo: transformers in float32, greedy, 8 completions of 4 prompts per step" in text


def test_a_reward_that_nothing_earned_is_a_dash():
    none = result("dapo", 1e-5, 1, point(0, None), point(100, None))
    head, (row,) = results_table(comparison(none))
    assert row[head.index("reward")] == "–"


def test_a_curve_has_the_spread_of_the_seeds():
    runs = [straight("dapo", 1e-5, seed, end) for seed, end in enumerate((4, 20, 30))]
    middle = plots.curve(comparison(*runs), runs, "train")[1]
    assert (middle["tokens"], middle["low"], middle["reward"], middle["high"]) == (50, 2, 10, 15)


def test_a_comparison_is_drawn_again_from_its_file(capsys):
    Path("old").mkdir()
    Path("old/compare.json").write_text(
        json.dumps(comparison(straight("es-paper", None, 1, 3.0), straight("dapo", 1e-5, 1, 4.0)))
    )
    assert main(["compare", "--redraw", "old"]) == 0
    assert "es-paper" in capsys.readouterr().out
    assert {path.name for path in Path("old").iterdir()} == {
        "compare.json",
        "compare.md",
        "compare.svg",
        "compare.png",
    }


def test_without_matplotlib_there_is_a_table_and_a_line_on_how_to_have_plots(monkeypatch, capsys):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    Path("old").mkdir()
    Path("old/compare.json").write_text(json.dumps(comparison(straight("es-paper", None, 1, 3.0))))
    assert main(["compare", "--redraw", "old"]) == 0
    assert "pip install 'estune[rl]'" in capsys.readouterr().out
    assert not list(Path("old").glob("compare.svg"))
