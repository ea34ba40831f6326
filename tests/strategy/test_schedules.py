"""Schedules: α and σ are functions of config and step, and the journal records what was used."""

import json

import numpy as np
import pytest
from helpers import assert_same, interrupted, lines_of, repeatable_steps, written

from estune import strategy
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.strategy import schedules


def alphas(**settings):
    config = ESConfig(**{"learning_rate": 1.0, "max_steps": 4} | settings)
    return [schedules.alpha(config, step) for step in range(1, config.max_steps + 1)]


def test_by_default_alpha_and_sigma_are_exactly_what_is_set_at_every_step():
    config = ESConfig(sigma=0.0123, learning_rate=0.0457)
    assert {schedules.alpha(config, step) for step in (1, 2, 499, 500)} == {0.0457}
    assert {schedules.sigma(config, step) for step in (1, 2, 499, 500)} == {0.0123}
    assert schedules.decay(config, 1) == 0.0


def test_linear_falls_by_equal_parts_and_the_last_step_still_moves():
    assert alphas(lr_scheduler_type="linear") == [1.0, 0.75, 0.5, 0.25]


def test_cosine_is_half_a_wave():
    assert alphas(lr_scheduler_type="cosine") == pytest.approx(
        [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    )


def test_warming_up_begins_above_zero_and_reaches_the_whole_after_its_steps():
    assert alphas(lr_scheduler_type="constant_with_warmup", warmup_steps=3) == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]
    assert alphas(lr_scheduler_type="linear", warmup_steps=1, max_steps=5) == [
        0.5,
        1.0,
        0.75,
        0.5,
        0.25,
    ]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_beyond_the_warm_up_the_factors_are_those_of_transformers(kind):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=2, num_training_steps=10)
    factors = []
    for _ in range(10):
        factors.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert alphas(lr_scheduler_type=kind, warmup_steps=2, max_steps=10)[2:] == pytest.approx(
        factors[2:]
    )


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_sigma_goes_from_its_first_to_its_last_value(kind):
    config = ESConfig(sigma=0.4, sigma_end=0.2, sigma_scheduler_type=kind, max_steps=3)
    assert [schedules.sigma(config, step) for step in (1, 2, 3)] == pytest.approx([0.4, 0.3, 0.2])
    assert schedules.alpha(config, 3) == 0.2, (
        "α is half of the σ that the run begins with, throughout"
    )
    assert (
        schedules.sigma(
            ESConfig(sigma=0.4, sigma_end=0.2, sigma_scheduler_type=kind, max_steps=1), 1
        )
        == 0.4
    )


def test_members_and_coefficients_are_those_of_their_step():
    settings = {
        "sigma": 0.4,
        "sigma_end": 0.2,
        "sigma_scheduler_type": "linear",
        "lr_scheduler_type": "linear",
    }
    config = ESConfig(population_size=2, max_steps=3, learning_rate=0.3, **settings)
    assert {member.sigma for member in strategy.members(config, 2, [1, 2])} == {
        schedules.sigma(config, 2)
    }
    assert strategy.tell(config, np.array([0.0, 1.0]), 3) == [
        float(np.float32(c)) for c in (-schedules.alpha(config, 3) / 2, 0.05)
    ]


SCHEDULE = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "sigma_end": 0.01,
    "sigma_scheduler_type": "linear",
}


def test_journal_and_metrics_show_what_was_in_force(make_trainer):
    trainer = make_trainer(**SCHEDULE)
    trainer.train()
    metrics = [
        json.loads(line)
        for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()
    ]
    config = trainer.args
    assert [step["sigma"] for step in repeatable_steps(trainer.folder.path)] == [
        schedules.sigma(config, step) for step in (1, 2, 3, 4)
    ]
    assert [line["es/sigma"] for line in metrics] == [
        schedules.sigma(config, step) for step in (1, 2, 3, 4)
    ]
    assert [line["learning_rate"] for line in metrics] == [
        schedules.alpha(config, step) for step in (1, 2, 3, 4)
    ]


def test_a_scheduled_run_that_died_ends_with_the_same_bytes(make_trainer, tmp_path):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **SCHEDULE)
    whole.train()
    folder = interrupted(make_trainer, **SCHEDULE)
    make_trainer(**SCHEDULE).train(resume_from_checkpoint=True)
    assert_same(folder, whole.folder.path)


@pytest.mark.parametrize(
    "schedule",
    [{"lr_scheduler_type": "linear"}, {"sigma_end": 0.01, "sigma_scheduler_type": "cosine"}],
)
def test_a_run_whose_schedule_spans_it_cannot_be_made_longer(make_trainer, schedule):
    interrupted(make_trainer, **schedule)
    with pytest.raises(
        ConfigError,
        match=r"^max_steps: cannot change from 4 to 6 .*_scheduler_type: \w+ depends on it",
    ):
        make_trainer(max_steps=6, **schedule).train(resume_from_checkpoint=True)


def test_a_warm_up_alone_does_not_keep_a_run_from_being_made_longer(make_trainer):
    warm = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    make_trainer(**warm).train()
    assert make_trainer(max_steps=6, **warm).train(resume_from_checkpoint=True).global_step == 6


def test_a_run_that_was_begun_before_a_setting_existed_had_its_default(make_trainer):
    folder = interrupted(make_trainer)
    header, *steps = lines_of(folder)
    del (
        header["config"]["weight_decay"],
        header["config"]["lr_scheduler_type"],
        header["config"]["pass_k"],
    )
    (folder / "journal.jsonl").write_text("".join(written([header, *steps])))
    assert make_trainer().train(resume_from_checkpoint=True).global_step == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"warmup_steps": 3}, "warmup_steps: the schedule constant has no warm-up"),
        (
            {"warmup_steps": 500, "lr_scheduler_type": "linear"},
            "warmup_steps: must be below max_steps, 500",
        ),
        ({"sigma_scheduler_type": "cosine"}, "sigma_scheduler_type: needs sigma_end"),
        (
            {"lr_scheduler_type": "polynomial"},
            "lr_scheduler_type: must be 'constant', 'constant_with_warmup', 'linear' or 'cosine'",
        ),
        (
            {"weight_decay": 3, "learning_rate": 0.5},
            "weight_decay: α·λ must be at most 1; it is 0.5 · 3",
        ),
        ({"weight_decay": -1}, "weight_decay: must be at least 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(settings, says):
    with pytest.raises(ConfigError) as caught:
        ESConfig(**settings)
    assert str(caught.value).startswith(says)
