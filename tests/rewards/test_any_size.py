"""With any finite rewards and any logged figures a run continues and can be resumed."""

import itertools
import json
import math
import zlib
from pathlib import Path

import pytest
from helpers import metrics_of, module, steps_of

from estune.cli.main import main

SIZES = {"huge": 1e200, "the largest": 1.7e308, "tiny": 1e-200, "subnormal": 5e-324 * 2000}
WAYS = {
    "z-scores": {},
    "ranks": {"reward_shaping": "centered_rank"},
    "pairs": {"antithetic": True},
    "centred": {"prompt_shaping": "center"},
    "standardised": {"prompt_shaping": "standardize"},
    "pass at k": {"pass_k": 2, "pass_reward": 0.0},
    "auto": {"learning_rate": "auto"},
}


def reward_of(size):
    """Return a reward function of ± `size` times a fraction that depends on text and step."""

    def judge(completions, trainer_state):
        step = trainer_state.global_step
        return [
            size * ((zlib.crc32(f"{step}{text}".encode()) % 1024 - 512) / 512)
            for text in completions
        ]

    return judge


def not_json(token):
    raise AssertionError(token)


def strictly(folder: Path) -> None:
    """Read all that a run wrote as JSON, which has no NaN and no infinity."""
    for path in [
        folder / "journal.jsonl",
        folder / "metrics.jsonl",
        *folder.glob("completions/*.jsonl"),
    ]:
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=not_json)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_a_run_with_rewards_of_any_size_goes_on_resumes_and_stays_json(make_trainer, size, way):
    settings = WAYS[way] | {"eval_strategy": "steps", "eval_steps": 1}
    for steps in (2, 3):
        trainer = make_trainer(reward_funcs=reward_of(SIZES[size]), max_steps=steps, **settings)
        trainer.train(resume_from_checkpoint=steps > 2)
    strictly(trainer.folder.path)
    assert [
        math.isfinite(line["reward"]) and math.isfinite(line["reward_std"])
        for line in metrics_of(trainer)
    ] == [True] * 3
    if way != "auto":  # which may try sizes and make none
        assert any(step["coefficients"] for step in steps_of(trainer))


@pytest.mark.parametrize("way", ["z-scores", "centred", "standardised", "auto"])
def test_the_size_of_the_rewards_does_not_change_the_weights(make_trainer, tmp_path, way):
    """Powers of two, so that no digit differs."""
    weights = []
    for power in (0, 1010, -900):
        reward = reward_of(math.ldexp(1.0, power))
        trainer = make_trainer(
            reward_funcs=reward, max_steps=2, output_dir=str(tmp_path / str(power)), **WAYS[way]
        )
        trainer.train()
        weights.append((trainer.folder.checkpoint(2) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


def test_an_update_that_fp32_cannot_hold_leaves_theta_and_says_why(make_trainer, caplog):
    settings = {"antithetic": True, "reward_shaping": "none", "learning_rate": 1.0, "max_steps": 2}
    trainer = make_trainer(reward_funcs=reward_of(1e200), **settings)
    trainer.train()
    assert [step["coefficients"] for step in steps_of(trainer)] == [[], []]
    assert any(
        "step 1: the update would overflow fp32, so θ stays as it is" in r.getMessage()
        for r in caplog.records
    )
    trainer = make_trainer(reward_funcs=reward_of(1.0), **settings | {"max_steps": 3})
    trainer.train(resume_from_checkpoint=True)
    assert steps_of(trainer)[2]["coefficients"]


def test_a_sum_that_overflows_in_a_later_step_costs_that_completion_alone(make_trainer):
    def one(completions, trainer_state):
        return [
            1.5e308 if trainer_state.global_step and i == 0 else 1.0 * len(text)
            for i, text in enumerate(completions)
        ]

    def two(completions):
        return [1e308 if i == 0 else 0.0 for i, _ in enumerate(completions)]

    trainer = make_trainer(reward_funcs=[one, two], max_steps=2)
    trainer.train()
    assert [line["es/reward_errors"] for line in metrics_of(trainer)] == [0, 4]
    assert (
        "reward function one returned 1.5e+308, which makes the weighted sum"
        in (trainer.folder.path / "reward_error.txt").read_text()
    )
    strictly(trainer.folder.path)


OWN = [
    "step",
    "reward",
    "reward_std",
    "es/reward_best",
    "num_tokens",
    "step_time",
    "es/tokens_per_second",
    "learning_rate",
    "es/distance",
]


def test_what_a_function_logs_under_a_name_of_the_runs_own_changes_nothing(make_trainer):
    def judge(completions, log_metric, log_extra):
        for name, value in zip(OWN, itertools.cycle([math.nan, math.inf, -1e308])):
            log_metric(name, value)
        log_extra("reward", ["text"] * len(completions))
        log_extra("odd", [{(1, 2): 10**5000}] * len(completions))
        return [float(len(text)) for text in completions]

    for steps in (1, 2):
        trainer = make_trainer(
            reward_funcs=judge,
            max_steps=steps,
            eval_strategy="steps",
            eval_steps=1,
            num_completions_to_print=1,
        )
        trainer.train(resume_from_checkpoint=steps > 1)
    strictly(trainer.folder.path)
    lines = metrics_of(trainer)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line[name]) for line in lines for name in OWN)
    assert all(isinstance(row["reward"], float) for row in trainer.folder.completions(2))


FUNCTIONS = """
def huge(completions): return [1e308 * (-1) ** len(c) for c in completions]
def tiny(completions): return [1e-300 * len(c) for c in completions]
def frame(completions):
    import pandas as pd
    index = [7 + i for i in range(len(completions))]
    return pd.Series([float(len(c)) for c in completions], index=index)
def whole(completions): return [10**400] * len(completions)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_eval_and_score_take_the_same_rewards(mini, data, tmp_path, capsys):
    name = module(FUNCTIONS, tmp_path)
    Path("answers.jsonl").write_text(
        "".join(json.dumps({"prompt": "p", "completion": "x" * n}) + "\n" for n in range(3))
    )
    for function, wanted in {
        "huge": [1e308, -1e308, 1e308],
        "tiny": [0.0, 1e-300, 2e-300],
        "frame": [0.0, 1.0, 2.0],
    }.items():
        assert (
            main(
                ["score", "--reward_funcs", f"{name}.{function}", "--completions", "answers.jsonl"]
            )
            == 0
        )
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == pytest.approx(
            wanted, rel=1e-12
        )
        where = [
            "--model",
            str(mini),
            "--base",
            str(mini),
            "--eval_dataset_name",
            str(data),
            "--dataset_name",
            str(data),
        ]
        files = [
            "--figures",
            "figures.json",
            "--output",
            "rows.jsonl",
            "--num_generations",
            "2",
            "--engine",
            "fake",
        ]
        assert (
            main(
                [
                    "eval",
                    *where,
                    *files,
                    "--reward_funcs",
                    f"{name}.{function}",
                    "--reward_workers",
                    "0",
                ]
            )
            == 0
        ), function
        json.loads(Path("figures.json").read_text(), parse_constant=not_json)
        capsys.readouterr()
    assert main(["score", "--reward_funcs", f"{name}.whole", "--completions", "answers.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "whole returned 1000" in err
