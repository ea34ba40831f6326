"""Runs with `learning_rate: auto`: records, screen, resume and replay, refused settings."""

import itertools

import pytest
import yaml
from helpers import folder_of, metrics_of, same, steps_of, weights_of

from estune import ESConfig
from estune.cli.main import main
from estune.errors import ConfigError


def test_a_run_finds_its_sizes_and_says_so(make_trainer):
    trainer = make_trainer(learning_rate="auto")
    trainer.train()
    for step, line in zip(steps_of(trainer), metrics_of(trainer), strict=True):
        assert line["learning_rate"] == step["control"]["alpha"]
        made = dict(zip(step["control"]["tried"], step["control"]["gains"], strict=True))
        assert line["es/gain"] == made.get(line["learning_rate"], 0.0)
        assert {"es/gain_predicted", "es/center_reward", "es/drop", "es/refused"} <= line.keys()
        assert len(step["rewards"]) == 4, "candidates are no members"
    centers = [line["es/center_reward"] for line in metrics_of(trainer)]
    assert centers[-1] > centers[0]
    gains = [line["es/gain"] for line in metrics_of(trainer)[1:]]
    assert [after - before for before, after in itertools.pairwise(centers)] == pytest.approx(gains)


def test_the_screen_shows_the_reward_of_theta(make_trainer, capsys):
    make_trainer(learning_rate="auto", max_steps=2).train()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert ", θ -" in shown[0]


def test_tokens_of_the_centre_and_of_candidates_are_counted(make_trainer, tmp_path):
    seen = []

    def counted(completions, completion_ids, target, **columns):
        seen.append(sum(map(len, completion_ids)))
        return [
            -float(abs(len(text) - len(wanted)))
            for text, wanted in zip(completions, target, strict=True)
        ]

    trainer = make_trainer(learning_rate="auto", reward_funcs=counted)
    trainer.train()
    assert metrics_of(trainer)[-1]["num_tokens"] == sum(seen)


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 1}, {"antithetic": True}, {"reward_shaping": "centered_rank"}],
    ids=str,
)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(make_trainer, tmp_path, settings):
    whole = make_trainer(learning_rate="auto", output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    make_trainer(learning_rate="auto", max_steps=2, **settings).train()
    rest = make_trainer(learning_rate="auto", **settings)
    rest.train(resume_from_checkpoint=True)
    assert same(
        weights_of(folder_of(rest) / "checkpoint-4"), weights_of(folder_of(whole) / "checkpoint-4")
    )
    assert [step["control"] for step in steps_of(rest)] == [
        step["control"] for step in steps_of(whole)
    ]


def test_a_replay_gives_the_bits_of_the_run(make_trainer, tmp_path, capsys):
    trainer = make_trainer(learning_rate="auto")
    trainer.train()
    assert (
        main(
            ["replay", str(folder_of(trainer)), "--step", "4", "--output", str(tmp_path / "again")]
        )
        == 0
    )
    assert same(weights_of(tmp_path / "again"), weights_of(folder_of(trainer) / "checkpoint-4"))


def test_the_centre_is_asked_again_only_where_the_prompts_change(make_trainer, tmp_path):
    def asked(**settings):
        calls = []

        def reward(completions, target, **columns):
            calls.append(len(completions))
            return [
                -float(abs(len(text) - len(wanted)))
                for text, wanted in zip(completions, target, strict=True)
            ]

        trainer = make_trainer(
            learning_rate="auto",
            reward_funcs=reward,
            output_dir=str(tmp_path / str(settings)),
            **settings,
        )
        trainer.train()
        return len(calls), sum(len(step["control"]["tried"]) for step in steps_of(trainer))

    calls, tried = asked()
    assert calls == 4 * 4 + 1 + tried
    calls, tried = asked(batch_size=1)
    assert calls == 4 * 4 + 4 + tried


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lr_scheduler_type", {"lr_scheduler_type": "linear"}),
        ("sigma_end", {"sigma_end": 0.1}),
        ("weight_decay", {"weight_decay": 0.1}),
        ("pass_k", {"pass_k": 2}),
        ("reward_shaping", {"reward_shaping": "none", "antithetic": True}),
    ],
)
def test_what_cannot_go_with_auto_is_refused_in_one_line(name, settings):
    with pytest.raises(
        ConfigError, match=f"^{name}: learning_rate auto .*or give learning_rate a number$"
    ):
        ESConfig(learning_rate="auto", **settings)


def test_a_word_that_is_not_auto_is_refused():
    with pytest.raises(ConfigError, match="learning_rate: must be .*'automatic'"):
        ESConfig(learning_rate="automatic")


def test_auto_is_written_down_as_it_was_given(make_trainer):
    trainer = make_trainer(learning_rate="auto")
    trainer.train()
    assert (
        yaml.safe_load((folder_of(trainer) / "config.yaml").read_text())["learning_rate"] == "auto"
    )
    assert "α and σ found step by step" in (folder_of(trainer) / "README.md").read_text()
