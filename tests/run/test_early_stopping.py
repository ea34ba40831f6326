"""A run ends where its evaluations no longer improve, at the same step whatever it went through."""

import pytest
from helpers import assert_same
from transformers import EarlyStoppingCallback

from estune.config import ESConfig
from estune.errors import ConfigError
from estune.run.milestones import plateaued

HELD_OUT = [{"prompt": "what is red", "target": "held out"}]
SETTINGS = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "metric_for_best_model": "reward",
    "max_steps": 8,
    "save_steps": 1,
}


def config(**settings):
    usual = {
        "eval_strategy": "steps",
        "metric_for_best_model": "reward",
        "early_stopping_patience": 2,
    }
    return ESConfig(**usual | settings)


def logged(*values):
    """The metrics of a run that evaluated every second step."""
    return {2 * n + 1: {"reward": 0.0} for n in range(len(values))} | {
        2 * n + 2: {"eval_reward": v} for n, v in enumerate(values)
    }


def stopping(values, **settings):
    """The step after which a run with these evaluations ends, None when it goes on."""
    metrics = logged(*values)
    return next(
        (step for step in sorted(metrics) if plateaued(config(**settings), metrics, step)), None
    )


@pytest.mark.parametrize(
    ("values", "settings", "step"),
    [
        ([1, 2, 3, 4], {}, None),
        ([3, 2, 1, 4], {}, 6),
        ([3, 3, 3], {}, 6),
        ([3, 2, 4, 1, 4, 5], {}, 10),
        ([3, 2, 2, 2], {"early_stopping_patience": 3}, 8),
        ([1, 1.05, 1.1, 1.15], {"early_stopping_threshold": 0.1}, 6),
        ([1, 2, 3], {"greater_is_better": False}, 6),
        ([3, None, None, None, 2, 1], {}, 12),
        ([3, 2, 1], {"early_stopping_patience": None}, None),
        ([], {}, None),
    ],
)
def test_it_waits_for_so_many_evaluations_without_a_better_one(values, settings, step):
    assert stopping(values, **settings) == step


def rewards(values):
    """Held-out rewards by step, and others that depend on θ."""

    def reward(completions, target, trainer_state, **columns):
        if target[0] == "held out":
            return [values[trainer_state.global_step]] * len(completions)
        return [
            -abs(len(text) - len(wanted)) for text, wanted in zip(completions, target, strict=True)
        ]

    return reward


VALUES = {1: 1.0, 2: 3.0, 3: 2.0, 4: 3.0, 5: 9.0, 6: 9.0, 7: 9.0, 8: 9.0}


def test_a_run_stops_there_with_a_checkpoint_and_resuming_it_changes_nothing(make_trainer):
    settings = SETTINGS | {"save_steps": 100, "early_stopping_patience": 2}
    trainer = make_trainer(reward_funcs=rewards(VALUES), eval_dataset=HELD_OUT, **settings)
    assert trainer.train().global_step == 4
    assert (trainer.folder.path / "checkpoint-4" / "model.safetensors").is_file()
    again = make_trainer(reward_funcs=rewards(VALUES), eval_dataset=HELD_OUT, **settings)
    assert again.train(resume_from_checkpoint=True).global_step == 4
    patient = make_trainer(
        reward_funcs=rewards(VALUES),
        eval_dataset=HELD_OUT,
        **settings | {"early_stopping_patience": 9},
    )
    assert patient.train(resume_from_checkpoint=True).global_step == 8


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_an_interrupted_run_stops_at_the_same_step_with_the_same_bytes(
    make_trainer, tmp_path, interrupted_after
):
    settings = SETTINGS | {"early_stopping_patience": 2}
    whole = make_trainer(
        reward_funcs=rewards(VALUES),
        eval_dataset=HELD_OUT,
        output_dir=str(tmp_path / "whole"),
        **settings,
    )
    whole.train()
    make_trainer(
        reward_funcs=rewards(VALUES),
        eval_dataset=HELD_OUT,
        **settings | {"max_steps": interrupted_after},
    ).train()
    trainer = make_trainer(reward_funcs=rewards(VALUES), eval_dataset=HELD_OUT, **settings)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    for step in (1, 2, 3, 4):
        saved = [
            folder / f"checkpoint-{step}" / "model.safetensors"
            for folder in (trainer.folder.path, whole.folder.path)
        ]
        assert saved[0].read_bytes() == saved[1].read_bytes()


def test_the_best_checkpoint_before_the_plateau_is_the_one_that_is_kept(make_trainer):
    settings = SETTINGS | {
        "early_stopping_patience": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
    }
    trainer = make_trainer(reward_funcs=rewards(VALUES), eval_dataset=HELD_OUT, **settings)
    trainer.train()
    assert sorted(path.name for path in trainer.folder.path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert trainer.model.theta.version == 2


def test_transformers_own_callback_stops_at_the_same_step(make_trainer, tmp_path):
    callback = EarlyStoppingCallback(early_stopping_patience=2)
    settings = SETTINGS | {"load_best_model_at_end": True}
    trainer = make_trainer(
        reward_funcs=rewards(VALUES), eval_dataset=HELD_OUT, callbacks=[callback], **settings
    )
    assert trainer.train().global_step == 4
    own = make_trainer(
        reward_funcs=rewards(VALUES),
        eval_dataset=HELD_OUT,
        output_dir=str(tmp_path / "own"),
        early_stopping_patience=2,
        **settings,
    )
    own.train()
    assert_same(trainer.folder.path, own.folder.path)


def test_patience_without_a_metric_is_refused():
    with pytest.raises(ConfigError, match="early_stopping_patience: set metric_for_best_model too"):
        ESConfig(early_stopping_patience=2)
