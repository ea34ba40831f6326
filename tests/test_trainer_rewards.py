"""What a run calls, and what it survives: callbacks, rewards, signals."""

import asyncio
import dataclasses
import json
import threading

import numpy as np
import pytest
from helpers import checkpoints_of, folder_of, metrics_of, same, short, steps_of, weights_of
from transformers import TrainerCallback

from estune.errors import EstuneError, RewardError

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
    make_trainer(
        callbacks=[recorder], max_steps=2, save_steps=2, eval_strategy="steps", eval_steps=2
    ).train()
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
            seen.append(
                (args.sigma, state.max_steps, logs["reward"], state.log_history[-1]["step"])
            )

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
    assert same(weights_of(folder_of(trainer) / "checkpoint-3"), trainer.model.theta.tensors)
    assert make_trainer(max_steps=6).train(resume_from_checkpoint=True).global_step == 6
    undisturbed = make_trainer(max_steps=6, output_dir=str(tmp_path / "undisturbed"))
    undisturbed.train()
    assert same(
        weights_of(tmp_path / "undisturbed" / "checkpoint-6"),
        weights_of(folder_of(trainer) / "checkpoint-6"),
    )


@pytest.mark.parametrize("event", ["on_step_end", "on_log"])
def test_a_step_that_a_callback_made_the_last_carries_a_digest(make_trainer, event):
    trainer = make_trainer(callbacks=[StopAfter(event, 3)], max_steps=6)
    trainer.train()
    assert steps_of(trainer)[-1]["digest"] == trainer.model.theta.digest()


def test_a_run_that_a_callback_ended_goes_on_in_the_same_trainer(make_trainer):
    trainer = make_trainer(callbacks=[StopAfter("on_log", 3)], max_steps=6)
    trainer.train()
    assert trainer.train(resume_from_checkpoint=True).global_step == 6


def test_a_callback_can_end_the_training_before_it_begins(make_trainer):
    trainer = make_trainer(callbacks=[StopAfter("on_train_begin", 0)])
    assert trainer.train().global_step == 0
    assert checkpoints_of(trainer) == []


# rewards


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
    both_run = threading.Barrier(2, timeout=60)

    async def slow(completions, **columns):
        await asyncio.to_thread(both_run.wait)
        return [1.0] * len(completions)

    async def slower(completions, **columns):
        await asyncio.to_thread(both_run.wait)
        return [2.0] * len(completions)

    def plain(completions, **columns):
        return [float(len(text)) for text in completions]

    trainer = make_trainer(
        reward_funcs=[slow, plain, slower], reward_weights=[10.0, -1.0, 100.0], max_steps=1
    )
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
    trainer = make_trainer(
        reward_funcs=counted(lambda k, usual: [rewards[k]] * len(usual)), max_steps=1
    )
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
    trainer = make_trainer(
        reward_funcs=rewards, population_size=30, max_steps=2, eval_strategy="steps"
    )
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
    kept = [
        json.loads(record)
        for record in (folder_of(trainer) / "completions" / "step-1.jsonl").read_text().splitlines()
    ]
    assert [record["letters"] for record in kept] == [len(record["completion"]) for record in kept]
    assert line["eval_letters"] == sum(record["letters"] for record in kept)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logged_figure_that_is_no_number_is_null_in_json(make_trainer, value):
    def reward(completions, target, log_metric, log_extra, **columns):
        log_metric("odd", value)
        log_extra("odd", [value] * len(completions))
        return short(completions, target)

    trainer = make_trainer(
        reward_funcs=reward, max_steps=1, report_to="tensorboard", eval_strategy="steps"
    )
    trainer.train()
    assert metrics_of(trainer)[0]["odd"] is None
    for path in [*folder_of(trainer).glob("*.jsonl"), *folder_of(trainer).glob("completions/*")]:
        for line in path.read_text().splitlines():
            json.loads(
                line, parse_constant=lambda word, path=path: pytest.fail(f"{word} in {path}")
            )


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
        (explode, "explode raised KeyError: 'no such column' at .*test_trainer_rewards.py"),
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


def test_a_reward_function_that_wants_what_there_is_not_is_refused_before_a_model_is_loaded(
    make_trainer,
):
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

    undisturbed = make_trainer(
        output_dir=str(tmp_path / "undisturbed"), reward_funcs=named(fails_once)
    )
    broken.clear()
    undisturbed.train()
    broken.append(True)
    trainer = make_trainer(reward_funcs=named(fails_once), on_reward_error="raise")
    with pytest.raises(RewardError, match=r"mend me.*resume"):
        trainer.train()
    broken.clear()
    assert len(steps_of(trainer)) == 2
    if again == "new trainer":
        trainer = make_trainer(reward_funcs=named(fails_once), on_reward_error="raise")
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert same(
        weights_of(folder_of(trainer) / "checkpoint-4"),
        weights_of(tmp_path / "undisturbed" / "checkpoint-4"),
    )
    assert [line["step"] for line in metrics_of(trainer)] == [1, 2, 3, 4]


def named(change):
    return counted(change)


def test_a_conversation_is_answered_with_messages(make_trainer, rows):
    chats = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "target": row["target"]}
        for row in rows
    ]
    seen = []

    def reward(prompts, completions, target, **columns):
        seen.extend(completions)
        assert prompts == [row["prompt"] for row in chats[: len(prompts)]] or len(prompts) == 1
        return short([messages[0]["content"] for messages in completions], target)

    make_trainer(
        reward_funcs=reward, train_dataset=chats[:2], eval_dataset=chats[:1], eval_strategy="steps"
    ).train()
    assert seen
    assert all(len(messages) == 1 and messages[0]["role"] == "assistant" for messages in seen)


# Batches and members


def test_every_member_of_a_step_answers_the_same_prompts(make_trainer, rows):
    seen = {}

    def reward(prompts, completions, target, trainer_state, **columns):
        seen.setdefault(trainer_state.global_step, []).append(tuple(prompts))
        return short(completions, target)

    make_trainer(reward_funcs=reward, train_dataset=rows, batch_size=2, max_steps=3).train()
    assert [len(set(prompts)) for prompts in seen.values()] == [1, 1, 1]
    assert sorted(prompt for prompts in seen.values() for prompt in prompts[0]) == sorted(
        row["prompt"] for row in rows
    )


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
