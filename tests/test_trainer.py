"""A run from Python, as a user of TRL expects it, on an engine that takes no time."""

import asyncio
import dataclasses
import fcntl
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_tokenizer, short
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from estune import ESConfig, ESTrainer
from estune.config import build
from estune.errors import ConfigError, DataError, EstuneError, InputError, ModelError, RewardError


def folder_of(trainer):
    return trainer.folder.path


def metrics_of(trainer):
    return [json.loads(line) for line in (folder_of(trainer) / "metrics.jsonl").read_text().splitlines()]


def steps_of(trainer):
    return [json.loads(line) for line in (folder_of(trainer) / "journal.jsonl").read_text().splitlines()][1:]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same(these, those):
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


def checkpoints_of(trainer):
    return sorted(int(path.name.split("-")[1]) for path in folder_of(trainer).glob("checkpoint-*"))


# The interface of TRL's trainers


def test_train_evaluate_and_save(mini, tmp_path, rows):
    trainer = ESTrainer(
        model=str(mini),
        reward_funcs=short,
        args=ESConfig(output_dir=str(tmp_path / "out"), engine="fake", population_size=4, max_steps=2),
        train_dataset=rows[:2],
        eval_dataset=rows[2:],
    )
    result = trainer.train()
    assert result.global_step == 2
    assert result.metrics["reward"] == steps_mean(trainer, -1)
    assert math.isfinite(trainer.evaluate()["eval_reward"])
    trainer.save_model(str(tmp_path / "out" / "final"))
    assert same(weights_of(tmp_path / "out" / "final"), weights_of(tmp_path / "out" / "checkpoint-2"))


def steps_mean(trainer, step):
    return pytest.approx(np.mean(steps_of(trainer)[step]["rewards"]))


def test_the_reward_rises(make_trainer):
    trainer = make_trainer(max_steps=25, population_size=16, sigma=0.05, learning_rate=0.05, save_steps=25)
    trainer.train()
    rewards = [line["reward"] for line in metrics_of(trainer)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 2


def test_the_same_run_twice_gives_the_same_bytes(make_trainer, tmp_path):
    for name in "ab":
        make_trainer(output_dir=str(tmp_path / name)).train()
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a" / "checkpoint-4").iterdir()]
    assert files
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_save_model_has_a_place_of_its_own(make_trainer):
    trainer = make_trainer()
    trainer.save_model()
    assert same(weights_of(folder_of(trainer) / "final"), weights_of(trainer.model.checkpoint.folder))


def test_evaluate_works_before_training_and_changes_nothing(make_trainer):
    trainer = make_trainer()
    first = trainer.evaluate()
    assert trainer.evaluate()["eval_reward"] == first["eval_reward"]
    trainer.train()
    assert trainer.model.center.version == 4
    assert not (Path(trainer.args.output_dir) / "final").exists()


def test_a_dataset_and_a_list_of_rows_are_the_same(make_trainer, rows, tmp_path):
    from datasets import Dataset

    listed = make_trainer(output_dir=str(tmp_path / "list"))
    table = Dataset.from_list(rows[:2])
    given = make_trainer(train_dataset=table, eval_dataset=Dataset.from_list(rows[2:4]), output_dir=str(tmp_path / "table"))
    listed.train()
    given.train()
    assert [line["rewards"] for line in steps_of(listed)] == [line["rewards"] for line in steps_of(given)]


def test_a_model_object_is_tuned_from_its_weights(mini, make_trainer):
    model = AutoModelForCausalLM.from_pretrained(mini)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    trainer = make_trainer(model)
    trainer.train()
    base = weights_of(folder_of(trainer) / "base")
    assert torch.equal(base["model.norm.weight"], model.model.norm.weight)
    assert base.keys() == weights_of(folder_of(trainer) / "checkpoint-4").keys()
    assert AutoTokenizer.from_pretrained(folder_of(trainer) / "checkpoint-4").vocab_size == make_tokenizer().vocab_size


def test_a_model_object_made_from_a_config_comes_with_its_tokenizer(mini, make_trainer):
    config = AutoModelForCausalLM.from_pretrained(mini).config
    config.name_or_path = ""
    trainer = make_trainer(AutoModelForCausalLM.from_config(config), tokenizer=make_tokenizer())
    trainer.train()
    assert AutoTokenizer.from_pretrained(folder_of(trainer) / "checkpoint-4").vocab_size == make_tokenizer().vocab_size


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
    assert "marker" in AutoTokenizer.from_pretrained(folder_of(trainer) / "checkpoint-4").get_vocab()


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
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in line.values())


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


def test_evaluations_go_into_the_line_of_their_step(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=3)
    trainer.train()
    assert [line["step"] for line in metrics_of(trainer) if "eval_reward" in line] == [3, 4]
    line = metrics_of(trainer)[2]
    assert {"eval_rewards/short/mean", "eval_completions/mean_length", "eval_runtime"} <= line.keys()


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
    kept = [json.loads(line) for line in (folder_of(trainer) / "completions" / "step-4.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in kept] == [row["prompt"] for row in rows[2:4]]
    assert [record["target"] for record in kept] == [row["target"] for row in rows[2:4]]
    assert [record["reward"] for record in kept] == [-abs(len(r["completion"]) - len(r["target"])) for r in kept]


def test_tensorboard_shows_the_same_figures(make_trainer):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(report_to="tensorboard", eval_strategy="steps", eval_steps=2, run_name="mine")
    trainer.train()
    (event_file,) = folder_of(trainer).glob("logs/mine/events.*")
    events = EventAccumulator(str(event_file))
    events.Reload()
    shown = {name: {e.step: e.value for e in events.Scalars(name)} for name in ("reward", "eval_reward")}
    lines = metrics_of(trainer)
    assert shown["reward"] == {line["step"]: pytest.approx(line["reward"]) for line in lines}
    assert shown["eval_reward"] == {line["step"]: pytest.approx(line["eval_reward"]) for line in lines if "eval_reward" in line}


def test_an_unknown_tracker_is_refused_before_a_model_is_loaded(make_trainer):
    with pytest.raises(ConfigError, match=r"report_to: 'tensorbored' is no tracker.*tensorboard"):
        make_trainer("/nowhere", report_to=["tensorbored"])


# Checkpoints


def test_a_checkpoint_every_save_steps_and_after_the_last_step(make_trainer):
    trainer = make_trainer(max_steps=5, save_steps=2)
    trainer.train()
    assert checkpoints_of(trainer) == [2, 4, 5]


def test_a_checkpoint_holds_one_safetensors_file_and_what_the_base_had(make_trainer, mini):
    trainer = make_trainer()
    trainer.train()
    names = {path.name for path in (folder_of(trainer) / "checkpoint-4").iterdir()}
    assert names == {path.name for path in mini.iterdir()} | {"trainer_state.json"}
    assert [name for name in names if name.endswith((".safetensors", ".bin", ".pt"))] == ["model.safetensors"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_loads_with_transformers(make_trainer, step):
    trainer = make_trainer()
    trainer.train()
    folder = folder_of(trainer) / f"checkpoint-{step}"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(folder).items())
    assert AutoTokenizer.from_pretrained(folder)("sky blue")["input_ids"]


def test_the_last_checkpoint_is_theta(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert same(weights_of(folder_of(trainer) / "checkpoint-4"), trainer.model.center.theta)


def test_parameters_that_are_not_tuned_stay_as_they_were(make_trainer, mini):
    trainer = make_trainer(target_parameters=["q_proj"])
    trainer.train()
    before, after = weights_of(mini), weights_of(folder_of(trainer) / "checkpoint-4")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["model.layers.0.self_attn.q_proj.weight"]


def test_target_parameters_that_match_nothing_are_refused(make_trainer):
    with pytest.raises(ConfigError, match=r"target_parameters: no parameter matches; they are named like model\."):
        make_trainer(target_parameters=["no_such"])


def test_trainer_state_has_the_names_of_transformers(make_trainer):
    trainer = make_trainer()
    trainer.train()
    state = json.loads((folder_of(trainer) / "checkpoint-4" / "trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"], state["best_model_checkpoint"]) == (4, 4, None)
    assert state["num_input_tokens_seen"] == metrics_of(trainer)[-1]["num_tokens"]


def test_save_total_limit_keeps_the_newest(make_trainer):
    trainer = make_trainer(save_steps=1, save_total_limit=2)
    trainer.train()
    assert checkpoints_of(trainer) == [3, 4]


def scheduled(values):
    """A reward that gives the population usual rewards and the k-th evaluation the k-th of `values`."""
    left = list(values)

    def reward(completions, target, **columns):
        if target[0] == "held out":
            return [left.pop(0)] * len(completions)
        return short(completions, target)

    return reward


HELD_OUT = [{"prompt": "what is red", "target": "held out"}]


@pytest.mark.parametrize(("greater", "best"), [(True, 2), (False, 3)])
def test_the_best_checkpoint_is_kept_beside_the_newest(make_trainer, greater, best):
    settings = {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1, "max_steps": 5}
    settings |= {"metric_for_best_model": "reward", "greater_is_better": greater}
    trainer = make_trainer(reward_funcs=scheduled([1.0, 9.0, -9.0, 9.0, 2.0]), eval_dataset=HELD_OUT, **settings)
    trainer.train()
    assert checkpoints_of(trainer) == [best, 5]
    state = json.loads((folder_of(trainer) / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best
    assert state["best_metric"] == (9.0 if greater else -9.0)
    assert state["best_model_checkpoint"] == f"checkpoint-{best}"
    assert trainer.model.center.version == 5


def test_load_best_model_at_end_leaves_the_best_parameters(make_trainer):
    settings = {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_reward"}
    rewards = scheduled([1.0, 9.0, 3.0, 2.0, 9.0])
    trainer = make_trainer(reward_funcs=rewards, eval_dataset=HELD_OUT, load_best_model_at_end=True, **settings)
    trainer.train()
    assert same(weights_of(folder_of(trainer) / "checkpoint-2"), trainer.model.center.theta)
    assert trainer.evaluate()["eval_reward"] == 9.0
    trainer.save_model()
    assert same(weights_of(folder_of(trainer) / "final"), weights_of(folder_of(trainer) / "checkpoint-2"))


def test_a_metric_for_best_model_that_no_evaluation_has_names_those_there_are(make_trainer):
    trainer = make_trainer(eval_strategy="steps", metric_for_best_model="accuracy", max_steps=1)
    with pytest.raises(ConfigError, match=r"no 'eval_accuracy'; they have .*eval_reward"):
        trainer.train()


# The folder


def test_a_second_run_in_the_same_folder_is_refused(make_trainer):
    make_trainer().train()
    before = (make_trainer().folder.path / "journal.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already; add --resume_from_checkpoint true"):
        make_trainer().train()
    assert (make_trainer().folder.path / "journal.jsonl").read_bytes() == before


def test_a_run_beside_a_running_one_is_refused_with_its_process(make_trainer):
    trainer = make_trainer()

    def meddle(completions, target, **columns):
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}"):
            make_trainer().train(resume_from_checkpoint=True)
        return short(completions, target)

    trainer = make_trainer(reward_funcs=meddle, max_steps=1)
    assert trainer.train().global_step == 1


def test_the_lock_is_let_go_when_a_run_ends(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    with (folder_of(trainer) / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_checkpoints_without_a_journal_are_not_taken_for_this_run(make_trainer):
    trainer = make_trainer()
    trainer.train()
    (folder_of(trainer) / "journal.jsonl").unlink()
    before = weights_of(folder_of(trainer) / "checkpoint-4")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="checkpoint"):
            make_trainer(seed=7).train(resume_from_checkpoint=resume)
    assert same(weights_of(folder_of(trainer) / "checkpoint-4"), before)


def test_metrics_of_an_abandoned_start_do_not_stay(make_trainer):
    trainer = make_trainer()
    folder_of(trainer).mkdir()
    (folder_of(trainer) / "metrics.jsonl").write_text('{"step": 1, "reward": 77}\n')
    trainer.train()
    assert [line["step"] for line in metrics_of(trainer)] == [1, 2, 3, 4]


def test_config_yaml_gives_the_same_settings_again(make_trainer):
    trainer = make_trainer(noise="correlated", stop=["</answer>"], reward_weights=[2.0], target_parameters=["mlp"], learning_rate=1e-4)
    trainer.train()
    read = build(ESConfig, yaml.safe_load((folder_of(trainer) / "config.yaml").read_text()))
    assert read == trainer.args


def test_no_access_token_is_written_anywhere(make_trainer):
    secret = "hf_" + "q" * 34
    settings = {"model_init_kwargs": {"token": secret, "use_auth_token": secret, "attn_implementation": "eager"}}
    trainer = make_trainer(report_to="tensorboard", chat_template_kwargs={"thinking": True}, **settings)
    trainer.train()
    text = b"".join(path.read_bytes() for path in folder_of(trainer).rglob("*") if path.is_file())
    assert secret.encode() not in text
    read = yaml.safe_load((folder_of(trainer) / "config.yaml").read_text())
    assert read["model_init_kwargs"] == {"attn_implementation": "eager"}


def test_the_model_card_says_what_was_done(make_trainer, mini):
    trainer = make_trainer(eval_strategy="steps")
    trainer.train()
    _, front, body = (folder_of(trainer) / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert yaml.safe_load(front)["base_model"] == str(mini)
    assert "N = 4, σ = 0.02, α = 0.01, 4 steps, seed 42, iid noise" in body
    assert f"| eval_reward | {metrics_of(trainer)[-1]['eval_reward']:.4g} |" in body
    assert 'from_pretrained("checkpoint-4")' in body


# Callbacks


class Recorder(TrainerCallback):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def called(args, state, control, **details):
            self.events.append((name, state.global_step))

        return called


def test_callbacks_are_called_in_the_order_that_transformers_has(make_trainer):
    recorder = Recorder()
    make_trainer(callbacks=[recorder], max_steps=2, save_steps=2, eval_strategy="steps", eval_steps=2).train()
    assert recorder.events == [
        ("on_train_begin", 0),
        ("on_step_begin", 0),
        ("on_step_end", 1),
        ("on_log", 1),
        ("on_step_begin", 1),
        ("on_step_end", 2),
        ("on_log", 2),
        ("on_evaluate", 2),
        ("on_save", 2),
        ("on_train_end", 2),
    ]


def test_callbacks_get_the_settings_and_the_figures(make_trainer):
    seen = []

    class Reader(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **details):
            seen.append((args.sigma, state.max_steps, logs["reward"], state.log_history[-1]["step"]))

    trainer = make_trainer(callbacks=[Reader])
    trainer.train()
    assert seen == [(0.02, 4, line["reward"], line["step"]) for line in metrics_of(trainer)]


class StopAfter(TrainerCallback):
    def __init__(self, event, step):
        self.event, self.step = event, step

    def _maybe(self, name, state, control):
        if name == self.event and state.global_step == self.step:
            control.should_training_stop = True

    def on_train_begin(self, args, state, control, **details):
        self._maybe("on_train_begin", state, control)

    def on_step_end(self, args, state, control, **details):
        self._maybe("on_step_end", state, control)

    def on_log(self, args, state, control, **details):
        self._maybe("on_log", state, control)


@pytest.mark.parametrize("event", ["on_step_end", "on_log"])
def test_a_callback_can_end_the_training_and_the_step_is_saved(make_trainer, event, tmp_path):
    trainer = make_trainer(callbacks=[StopAfter(event, 3)], max_steps=6)
    assert trainer.train().global_step == 3
    assert checkpoints_of(trainer) == [2, 3]
    assert same(weights_of(folder_of(trainer) / "checkpoint-3"), trainer.model.center.theta)
    assert make_trainer(max_steps=6).train(resume_from_checkpoint=True).global_step == 6
    undisturbed = make_trainer(max_steps=6, output_dir=str(tmp_path / "undisturbed"))
    undisturbed.train()
    assert same(weights_of(tmp_path / "undisturbed" / "checkpoint-6"), weights_of(folder_of(trainer) / "checkpoint-6"))


def test_a_step_that_a_callback_made_the_last_carries_a_digest(make_trainer):
    trainer = make_trainer(callbacks=[StopAfter("on_step_end", 3)], max_steps=6)
    trainer.train()
    assert steps_of(trainer)[-1]["digest"] == trainer.model.center.digest()


def test_a_run_that_a_callback_ended_goes_on_in_the_same_trainer(make_trainer):
    trainer = make_trainer(callbacks=[StopAfter("on_log", 3)], max_steps=6)
    trainer.train()
    assert trainer.train(resume_from_checkpoint=True).global_step == 6


def test_a_callback_can_end_the_training_before_it_begins(make_trainer):
    trainer = make_trainer(callbacks=[StopAfter("on_train_begin", 0)])
    assert trainer.train().global_step == 0
    assert checkpoints_of(trainer) == []


# Rewards


def test_a_reward_function_gets_what_trl_gives_it(make_trainer, rows):
    seen = []

    def reward(prompts, completions, completion_ids, target, trainer_state, **rest):
        seen.append(trainer_state.global_step)
        assert prompts == [row["prompt"] for row in rows[:2]]
        assert target == [row["target"] for row in rows[:2]]
        assert [len(ids) for ids in completion_ids] == [len(text) for text in completions]
        assert {"log_extra", "log_metric"} <= rest.keys()
        return short(completions, target)

    make_trainer(reward_funcs=reward, max_steps=2).train()
    assert seen == [0] * 4 + [1] * 4


def test_async_and_plain_functions_are_weighted_together(make_trainer):
    running = []

    async def slow(completions, **columns):
        running.append("in")
        while running.count("in") % 2:  # until the other one is under way as well
            await asyncio.sleep(0)
        return [1.0] * len(completions)

    async def slower(completions, **columns):
        running.append("in")
        while running.count("in") % 2:
            await asyncio.sleep(0)
        return [2.0] * len(completions)

    def plain(completions, **columns):
        return [float(len(text)) for text in completions]

    trainer = make_trainer(reward_funcs=[slow, plain, slower], reward_weights=[10.0, -1.0, 100.0], max_steps=1)
    trainer.train()
    line = metrics_of(trainer)[0]
    assert line["rewards/slow/mean"] == 1.0
    assert line["rewards/slower/mean"] == 2.0
    assert line["reward"] == pytest.approx(210 - line["rewards/plain/mean"])


def test_none_is_left_out_of_sum_and_mean(make_trainer):
    def first_only(completions, **columns):
        return [5.0] + [None] * (len(completions) - 1)

    def never(completions, **columns):
        return [None] * len(completions)

    trainer = make_trainer(reward_funcs=[first_only, never], max_steps=1)
    trainer.train()
    assert steps_of(trainer)[0]["rewards"] == [5.0] * 4
    assert metrics_of(trainer)[0]["rewards/never/mean"] is None


def counted(change):
    """The usual reward, or for the k-th member asked what `change(k, rewards)` makes of it."""
    calls = iter(range(10**6))

    def reward(completions, target, **columns):
        return change(next(calls), short(completions, target))

    return reward


def test_a_member_without_any_number_is_left_out(make_trainer):
    rewards = [3.0, None, 1.0, 2.0]
    trainer = make_trainer(reward_funcs=counted(lambda k, usual: [rewards[k]] * len(usual)), max_steps=1)
    trainer.train()
    (step,) = steps_of(trainer)
    assert step["rewards"] == rewards
    z = (np.array([3.0, 1.0, 2.0]) - 2) / np.std([3.0, 1.0, 2.0])
    expected = (0.01 / 3 * z).astype(np.float32)
    assert step["coefficients"] == [float(expected[0]), 0.0, float(expected[1]), float(expected[2])]
    assert metrics_of(trainer)[0]["reward"] == 2.0
    assert "NaN" not in (folder_of(trainer) / "journal.jsonl").read_text()


@pytest.mark.parametrize("value", [0.1, None])
def test_equal_rewards_move_nothing(make_trainer, mini, value):
    rewards = counted(lambda k, usual: [value] * len(usual))
    trainer = make_trainer(reward_funcs=rewards, population_size=30, max_steps=2, eval_strategy="steps")
    trainer.train()
    assert [step["coefficients"] for step in steps_of(trainer)] == [[], []]
    assert [step["rewards"] for step in steps_of(trainer)] == [[value] * 30] * 2
    assert same(weights_of(folder_of(trainer) / "checkpoint-2"), weights_of(mini))
    assert [line["frac_reward_zero_std"] for line in metrics_of(trainer)] == [1.0, 1.0]
    for file in ("journal.jsonl", "metrics.jsonl"):
        assert "NaN" not in (folder_of(trainer) / file).read_text()


def test_what_functions_log_lands_in_metrics_and_completions(make_trainer):
    def reward(completions, target, log_metric, log_extra, **columns):
        log_metric("letters", sum(map(len, completions)))
        log_extra("letters", [len(text) for text in completions])
        return short(completions, target)

    trainer = make_trainer(reward_funcs=reward, eval_strategy="steps", max_steps=1)
    trainer.train()
    (line,) = metrics_of(trainer)
    assert line["letters"] == pytest.approx(line["completions/mean_length"] * 2)
    kept = [json.loads(record) for record in (folder_of(trainer) / "completions" / "step-1.jsonl").read_text().splitlines()]
    assert [record["letters"] for record in kept] == [len(record["completion"]) for record in kept]
    assert line["eval_letters"] == sum(record["letters"] for record in kept)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logged_figure_that_is_no_number_is_null_in_json(make_trainer, value):
    def reward(completions, target, log_metric, log_extra, **columns):
        log_metric("odd", value)
        log_extra("odd", [value] * len(completions))
        return short(completions, target)

    trainer = make_trainer(reward_funcs=reward, max_steps=1, report_to="tensorboard", eval_strategy="steps")
    trainer.train()
    assert metrics_of(trainer)[0]["odd"] is None
    for path in [*folder_of(trainer).glob("*.jsonl"), *folder_of(trainer).glob("completions/*")]:
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=lambda word, path=path: pytest.fail(f"{word} in {path}"))


def explode(completions, **columns):
    raise KeyError("no such column")


async def explode_later(completions, **columns):
    raise OSError("grader is away")


def too_few(completions, **columns):
    return [1.0]


def nan(completions, **columns):
    return [float("nan")] * len(completions)


def words(completions, **columns):
    return ["good"] * len(completions)


def one_number(completions, **columns):
    return 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (explode, "explode raised KeyError: 'no such column' at .*test_trainer.py"),
        (explode_later, "explode_later raised OSError: grader is away"),
        (too_few, "too_few returned 1 rewards for 2 completions"),
        (nan, "nan returned nan for completion 0"),
        (words, "words returned 'good' for completion 0"),
        (one_number, "one_number returned 1.0"),
    ],
)
def test_a_reward_function_that_fails_is_named(make_trainer, function, said):
    trainer = make_trainer(reward_funcs=[short, function], max_steps=1)
    with pytest.raises(RewardError, match=f"reward function {said}"):
        trainer.train()
    assert steps_of(trainer) == []


def test_a_reward_function_that_wants_what_there_is_not_is_refused_before_a_model_is_loaded(make_trainer):
    def reward(completions, answer):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="nothing provides its parameter 'answer'"):
        make_trainer("/nowhere", reward_funcs=reward)


@pytest.mark.parametrize("again", ["same trainer", "new trainer"])
def test_after_a_failed_reward_the_run_can_be_resumed(make_trainer, tmp_path, again):
    broken = [True]

    def fails_once(k, usual):
        if broken and k == 10:
            raise RuntimeError("mend me")
        return usual

    undisturbed = make_trainer(output_dir=str(tmp_path / "undisturbed"), reward_funcs=named(fails_once))
    broken.clear()
    undisturbed.train()
    broken.append(True)
    trainer = make_trainer(reward_funcs=named(fails_once))
    with pytest.raises(RewardError, match=r"mend me.*resume"):
        trainer.train()
    broken.clear()
    assert len(steps_of(trainer)) == 2
    if again == "new trainer":
        trainer = make_trainer(reward_funcs=named(fails_once))
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert same(weights_of(folder_of(trainer) / "checkpoint-4"), weights_of(tmp_path / "undisturbed" / "checkpoint-4"))
    assert [line["step"] for line in metrics_of(trainer)] == [1, 2, 3, 4]


def named(change):
    return counted(change)


def test_a_conversation_is_answered_with_messages(make_trainer, rows):
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}], "target": row["target"]} for row in rows]
    seen = []

    def reward(prompts, completions, target, **columns):
        seen.extend(completions)
        assert prompts == [row["prompt"] for row in chats[: len(prompts)]] or len(prompts) == 1
        return short([messages[0]["content"] for messages in completions], target)

    make_trainer(reward_funcs=reward, train_dataset=chats[:2], eval_dataset=chats[:1], eval_strategy="steps").train()
    assert seen
    assert all(len(messages) == 1 and messages[0]["role"] == "assistant" for messages in seen)


# Signals


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("member", [0, 5, 7, 14])
def test_a_signal_stops_cleanly_and_the_run_can_be_resumed(make_trainer, tmp_path, number, ended, member):
    undisturbed = make_trainer(output_dir=str(tmp_path / "undisturbed"), reward_funcs=counted(lambda k, usual: usual))
    undisturbed.train()

    def signalled(k, usual):
        if k == member:
            os.kill(os.getpid(), number)
        return usual

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = make_trainer(reward_funcs=counted(signalled))
    with pytest.raises(ended) as caught:
        trainer.train()
    if ended is SystemExit:
        assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert len(steps_of(trainer)) == (member + 1) // 4
    resumed = make_trainer(reward_funcs=counted(lambda k, usual: usual))
    resumed.train(resume_from_checkpoint=True)
    assert same(weights_of(folder_of(resumed) / "checkpoint-4"), weights_of(tmp_path / "undisturbed" / "checkpoint-4"))


def test_training_works_in_a_thread_where_no_signals_arrive(make_trainer):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(make_trainer().train).result().global_step == 4


# Batches and members


def test_every_member_of_a_step_answers_the_same_prompts(make_trainer, rows):
    seen = {}

    def reward(prompts, completions, target, trainer_state, **columns):
        seen.setdefault(trainer_state.global_step, []).append(tuple(prompts))
        return short(completions, target)

    make_trainer(reward_funcs=reward, train_dataset=rows, batch_size=2, max_steps=3).train()
    assert [len(set(prompts)) for prompts in seen.values()] == [1, 1, 1]
    assert sorted(prompt for prompts in seen.values() for prompt in prompts[0]) == sorted(row["prompt"] for row in rows)


def test_antithetic_members_share_a_seed(make_trainer):
    trainer = make_trainer(antithetic=True)
    trainer.train()
    for step in steps_of(trainer):
        assert (len(step["seeds"]), len(step["coefficients"]), len(step["rewards"])) == (2, 2, 4)


def test_settings_cannot_be_changed_under_a_trainer(make_trainer):
    trainer = make_trainer()
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainer.args.sigma = 1.0


def test_every_error_on_purpose_is_of_one_kind(make_trainer):
    with pytest.raises(EstuneError):
        make_trainer("/nowhere")
