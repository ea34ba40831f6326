"""Ctrl-C and SIGTERM end a run after its step, and the run resumes with the same bytes."""

import os
import signal

import pytest
from helpers import folder_of, same, short, steps_of, weights_of


def counted(change):
    """The usual reward, or for the k-th member asked what `change(k, rewards)` makes of it."""
    calls = iter(range(10**6))

    def reward(completions, target, **columns):
        return change(next(calls), short(completions, target))

    return reward


# Signals


@pytest.mark.parametrize(
    ("number", "ended"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.parametrize("member", [0, 5, 7, 14, 15])
def test_a_signal_stops_cleanly_and_the_run_can_be_resumed(
    make_trainer, tmp_path, number, ended, member
):
    undisturbed = make_trainer(
        output_dir=str(tmp_path / "undisturbed"), reward_funcs=counted(lambda k, usual: usual)
    )
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
    assert len(steps_of(trainer)) == member // 4, (
        "the step under way is dropped, however near its end"
    )
    resumed = make_trainer(reward_funcs=counted(lambda k, usual: usual))
    resumed.train(resume_from_checkpoint=True)
    assert same(
        weights_of(folder_of(resumed) / "checkpoint-4"),
        weights_of(tmp_path / "undisturbed" / "checkpoint-4"),
    )


def test_training_works_in_a_thread_where_no_signals_arrive(make_trainer):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(make_trainer().train).result().global_step == 4
