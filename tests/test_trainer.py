"""A run from Python, as a user of TRL expects it, on an engine that takes no time."""

import json
import math
from pathlib import Path

import accelerate.tracking
import numpy as np
import pytest
import torch
from helpers import (
    folder_of,
    make_tokenizer,
    metrics_of,
    same,
    short,
    steps_of,
    weights_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from estune import ESConfig, ESTrainer
from estune.errors import ConfigError, DataError, InputError, ModelError
from estune.run.distance import travelled
from estune.theta.journal import Journal

# The interface of TRL's trainers


def test_train_evaluate_and_save(mini, tmp_path, rows):
    trainer = ESTrainer(
        model=str(mini),
        reward_funcs=short,
        args=ESConfig(
            output_dir=str(tmp_path / "out"), engine="fake", population_size=4, max_steps=2
        ),
        train_dataset=rows[:2],
        eval_dataset=rows[2:],
    )
    result = trainer.train()
    assert result.global_step == 2
    assert result.metrics["reward"] == steps_mean(trainer, -1)
    assert math.isfinite(trainer.evaluate()["eval_reward"])
    trainer.save_model(str(tmp_path / "out" / "final"))
    assert same(
        weights_of(tmp_path / "out" / "final"), weights_of(tmp_path / "out" / "checkpoint-2")
    )


def steps_mean(trainer, step):
    return pytest.approx(np.mean(steps_of(trainer)[step]["rewards"]))


def test_the_reward_rises(make_trainer):
    trainer = make_trainer(
        max_steps=25, population_size=16, sigma=0.05, learning_rate=0.05, save_steps=25
    )
    trainer.train()
    rewards = [line["reward"] for line in metrics_of(trainer)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 2


def test_the_same_run_twice_gives_the_same_bytes(make_trainer, tmp_path):
    for name in "ab":
        make_trainer(output_dir=str(tmp_path / name)).train()
    files = [
        path.relative_to(tmp_path / "a") for path in (tmp_path / "a" / "checkpoint-4").iterdir()
    ]
    assert files
    assert all(
        (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        for file in files
    )


def test_save_model_has_a_place_of_its_own(make_trainer):
    trainer = make_trainer()
    trainer.save_model()
    assert same(
        weights_of(folder_of(trainer) / "final"), weights_of(trainer.model.checkpoint.folder)
    )


def test_evaluate_works_before_training_and_changes_nothing(make_trainer):
    trainer = make_trainer()
    first = trainer.evaluate()
    assert trainer.evaluate()["eval_reward"] == first["eval_reward"]
    trainer.train()
    assert trainer.model.theta.version == 4
    assert not (Path(trainer.args.output_dir) / "final").exists()


def test_a_dataset_and_a_list_of_rows_are_the_same(make_trainer, rows, tmp_path):
    from datasets import Dataset

    listed = make_trainer(output_dir=str(tmp_path / "list"))
    table = Dataset.from_list(rows[:2])
    given = make_trainer(
        train_dataset=table,
        eval_dataset=Dataset.from_list(rows[2:4]),
        output_dir=str(tmp_path / "table"),
    )
    listed.train()
    given.train()
    assert [line["rewards"] for line in steps_of(listed)] == [
        line["rewards"] for line in steps_of(given)
    ]


def test_a_model_object_is_tuned_from_its_weights(mini, make_trainer):
    model = AutoModelForCausalLM.from_pretrained(mini)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    trainer = make_trainer(model)
    trainer.train()
    base = weights_of(folder_of(trainer) / "base")
    assert torch.equal(base["model.norm.weight"], model.model.norm.weight)
    assert base.keys() == weights_of(folder_of(trainer) / "checkpoint-4").keys()
    assert (
        AutoTokenizer.from_pretrained(folder_of(trainer) / "checkpoint-4").vocab_size
        == make_tokenizer().vocab_size
    )


def test_a_model_object_made_from_a_config_comes_with_its_tokenizer(mini, make_trainer):
    config = AutoModelForCausalLM.from_pretrained(mini).config
    config.name_or_path = ""
    trainer = make_trainer(AutoModelForCausalLM.from_config(config), tokenizer=make_tokenizer())
    trainer.train()
    assert (
        AutoTokenizer.from_pretrained(folder_of(trainer) / "checkpoint-4").vocab_size
        == make_tokenizer().vocab_size
    )


def test_a_model_object_of_unknown_origin_needs_a_tokenizer(mini, make_trainer):
    config = AutoModelForCausalLM.from_pretrained(mini).config
    config.name_or_path = ""
    with pytest.raises(ModelError, match="processing_class"):
        make_trainer(AutoModelForCausalLM.from_config(config))


def test_a_run_of_a_model_object_resumes_from_the_same_object(mini, make_trainer):
    model = AutoModelForCausalLM.from_pretrained(mini)
    make_trainer(model).train()
    assert make_trainer(model, max_steps=6).train(resume_from_checkpoint=True).global_step == 6


def test_another_model_object_leaves_the_base_of_a_run_alone(mini, make_trainer):
    model = AutoModelForCausalLM.from_pretrained(mini)
    trainer = make_trainer(model)
    trainer.train()
    before = weights_of(folder_of(trainer) / "base")
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    with pytest.raises(InputError):
        make_trainer(model, max_steps=6).train(resume_from_checkpoint=True)
    assert same(weights_of(folder_of(trainer) / "base"), before)


def test_what_is_no_model_is_refused(make_trainer):
    with pytest.raises(ModelError, match="neither a hub id, a folder"):
        make_trainer(42)


def test_a_tokenizer_given_is_the_one_that_is_saved(make_trainer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["marker"])
    trainer = make_trainer(tokenizer=tokenizer)
    trainer.train()
    assert (
        "marker" in AutoTokenizer.from_pretrained(folder_of(trainer) / "checkpoint-4").get_vocab()
    )


def test_training_needs_a_train_dataset_and_evaluating_held_out_data(make_trainer):
    with pytest.raises(DataError, match="train_dataset"):
        make_trainer(train_dataset=None).train()
    with pytest.raises(DataError, match="eval_dataset"):
        make_trainer(eval_dataset=None).evaluate()
    with pytest.raises(DataError, match="eval_strategy"):
        make_trainer(eval_dataset=None, eval_strategy="steps")
    with pytest.raises(DataError, match="eval_strategy"):
        make_trainer(eval_dataset=None, eval_on_start=True)


# metrics.jsonl


def test_one_line_of_metrics_a_step_under_the_names_of_trl(make_trainer):
    trainer = make_trainer()
    trainer.train()
    lines = metrics_of(trainer)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    names = {
        "reward",
        "reward_std",
        "rewards/short/mean",
        "rewards/short/std",
        "frac_reward_zero_std",
        "learning_rate",
        "num_tokens",
    }
    names |= {
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "step_time",
    }
    for line in lines:
        assert names <= line.keys()
        assert all(
            isinstance(value, (int, float)) and math.isfinite(value) for value in line.values()
        )


def test_the_figures_are_those_of_the_population(make_trainer):
    trainer = make_trainer()
    trainer.train()
    for line, step in zip(metrics_of(trainer), steps_of(trainer), strict=True):
        assert line["reward"] == pytest.approx(np.mean(step["rewards"]))
        assert line["reward_std"] == pytest.approx(np.std(step["rewards"]))
        assert line["es/reward_best"] == max(step["rewards"])
        assert line["learning_rate"] == 0.01
    totals = [line["num_tokens"] for line in metrics_of(trainer)]
    assert totals == sorted(set(totals))


@pytest.mark.parametrize(
    "settings", [{}, {"noise": "correlated"}, {"antithetic": True}, {"weight_decay": 30.0}], ids=str
)
def test_the_distance_from_the_base_is_told_without_measuring_it(make_trainer, settings):
    trainer = make_trainer(**settings)
    trainer.train()
    there, base = (
        weights_of(folder)
        for folder in (folder_of(trainer) / "checkpoint-4", trainer.model.checkpoint.folder)
    )
    moved = torch.cat(
        [
            (there[name].double() - base[name].double()).flatten()
            for name in trainer.model.theta.tensors
        ]
    )
    tolerance = 5 / math.sqrt(moved.numel())
    assert metrics_of(trainer)[-1]["es/distance"] == pytest.approx(
        float(moved.square().mean().sqrt()), rel=tolerance
    )


def test_the_distance_counts_steps_of_a_version_that_did_not_tell_it(make_trainer):
    trainer = make_trainer()
    trainer.train()
    steps = Journal.open(folder_of(trainer)).steps
    for step in steps[:3]:
        del step.notes["metrics"]["es/distance"]
    assert travelled(steps[:3]) == pytest.approx(
        math.sqrt(sum(c**2 for step in steps[:3] for c in step.coefficients))
    )
    assert travelled(steps) == metrics_of(trainer)[-1]["es/distance"]


def test_evaluations_go_into_the_line_of_their_step(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=3)
    trainer.train()
    assert [line["step"] for line in metrics_of(trainer) if "eval_reward" in line] == [3, 4]
    line = metrics_of(trainer)[2]
    assert {
        "eval_rewards/short/mean",
        "eval_completions/mean_length",
        "eval_runtime",
    } <= line.keys()


def test_eval_on_start_scores_the_base_model_first(make_trainer):
    trainer = make_trainer(eval_on_start=True)
    base = trainer.evaluate()["eval_reward"]
    trainer.train()
    first, *others = metrics_of(trainer)
    assert first["step"] == 0
    assert first["eval_reward"] == base
    assert "reward" not in first
    assert [line["step"] for line in others] == [1, 2, 3, 4]
    assert not any("eval_reward" in line for line in others)


def test_no_evaluation_unless_asked_for(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert not any("eval_reward" in line for line in metrics_of(trainer))
    assert not (folder_of(trainer) / "completions").exists()


def test_an_evaluation_keeps_what_was_answered(make_trainer, rows):
    trainer = make_trainer(eval_strategy="steps")
    trainer.train()
    kept = [
        json.loads(line)
        for line in (folder_of(trainer) / "completions" / "step-4.jsonl").read_text().splitlines()
    ]
    assert [record["prompt"] for record in kept] == [row["prompt"] for row in rows[2:4]]
    assert [record["target"] for record in kept] == [row["target"] for row in rows[2:4]]
    assert [record["reward"] for record in kept] == [
        -abs(len(r["completion"]) - len(r["target"])) for r in kept
    ]


def test_tensorboard_shows_the_same_figures(make_trainer):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(
        report_to="tensorboard", eval_strategy="steps", eval_steps=2, run_name="mine"
    )
    trainer.train()
    (event_file,) = folder_of(trainer).glob("logs/mine/events.*")
    events = EventAccumulator(str(event_file))
    events.Reload()
    shown = {
        name: {e.step: e.value for e in events.Scalars(name)} for name in ("reward", "eval_reward")
    }
    lines = metrics_of(trainer)
    assert shown["reward"] == {line["step"]: pytest.approx(line["reward"]) for line in lines}
    assert shown["eval_reward"] == {
        line["step"]: pytest.approx(line["eval_reward"]) for line in lines if "eval_reward" in line
    }


def test_an_unknown_tracker_is_refused_before_a_model_is_loaded(make_trainer):
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbored'; .*tensorboard"):
        make_trainer("/nowhere", report_to=["tensorbored"])


class Tracker:
    """One of accelerate's kind, that fails at `at`."""

    requires_logging_directory, at, seen = False, "", []

    def __init__(self, run_name):
        self.seen.clear()

    def do(self, what):
        self.seen.append(what)
        if what == self.at:
            raise RuntimeError("no server\nat all")

    def start(self):
        self.do("start")

    def store_init_configuration(self, values):
        self.do("store")

    def log(self, values, step):
        self.do("log")

    def finish(self):
        self.do("finish")


@pytest.fixture
def tracker(monkeypatch):
    """Make accelerate's tensorboard one that fails at a moment."""

    def failing(at):
        monkeypatch.setitem(
            accelerate.tracking.LOGGER_TYPE_TO_CLASS,
            "tensorboard",
            type("Failing", (Tracker,), {"at": at}),
        )

    return failing


@pytest.mark.parametrize(
    ("at", "seen"), [("start", ["start"]), ("store", ["start", "store", "finish"])]
)
def test_a_tracker_that_does_not_start_is_one_line_and_nobody_waits_for_the_run(
    make_trainer, tracker, monkeypatch, at, seen
):
    tracker(at)
    trainer = make_trainer(report_to="tensorboard")
    released = []
    monkeypatch.setattr(trainer.model.workers, "release", lambda: released.append(True))
    with pytest.raises(
        ConfigError, match=r"report_to: tensorboard does not start \(no server at all\)"
    ):
        trainer.train()
    assert (Tracker.seen, released) == (seen, [True])


@pytest.mark.parametrize("at", ["log", "finish"])
def test_a_tracker_that_fails_later_is_a_warning_and_costs_no_step(
    make_trainer, tracker, at, caplog
):
    tracker(at)
    trainer = make_trainer(report_to="tensorboard")
    trainer.train()
    assert [line["step"] for line in metrics_of(trainer)] == [1, 2, 3, 4]
    assert sum("no server at all" in message for message in caplog.messages) == 1
