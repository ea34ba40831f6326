"""A killed run resumes and ends with the bytes of an undisturbed run, whenever it was killed."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import EVALUATING, TESTS, assert_same, files_of, interrupted, repeatable_steps, short

from estune.errors import ConfigError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Journal
from estune.theta.theta import Theta


@pytest.fixture
def undisturbed(make_trainer, tmp_path):
    """The folder of a run that nobody disturbed."""
    trainer = make_trainer(output_dir=str(tmp_path / "undisturbed"), **EVALUATING)
    trainer.train()
    return trainer.folder.path


# Death at every operation on the disk


class Died(BaseException):
    """The process is gone: nothing after it runs, not even what tidies up."""


class Disk:
    """A counter of lasting changes to the disk that dies at the operation numbered `at`.

    It dies before the operation, or after it for a sync.
    """

    OPERATIONS = ("fsync", "rename", "replace", "truncate", "unlink", "mkdir", "rmdir")

    def __init__(self, monkeypatch):
        self.done, self.at = 0, None
        for name in self.OPERATIONS:
            monkeypatch.setattr(os, name, self.counting(getattr(os, name)))
        monkeypatch.setattr(shutil, "rmtree", self.counting(shutil.rmtree))

    def counting(self, operation):
        def counted(*args, **kwargs):
            self.done += 1
            if self.at is not None and self.done >= self.at:
                raise Died
            return operation(*args, **kwargs)

        return counted

    def dies_at(self, number):
        self.done, self.at = 0, number


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.slow
def test_death_at_every_operation_on_the_disk_changes_nothing_in_the_end(
    make_trainer, undisturbed, disk, tmp_path
):
    number, died = 0, True
    while died:
        number += 1
        folder = tmp_path / "run"
        disk.dies_at(number)
        try:
            make_trainer(**EVALUATING).train()
            died = False
        except Died:
            pass
        disk.dies_at(None)
        make_trainer(**EVALUATING).train(resume_from_checkpoint=True)
        assert_same(folder, undisturbed)
        shutil.rmtree(folder)
    assert number > 50


def test_dying_again_and_again_changes_nothing_in_the_end(
    make_trainer, undisturbed, disk, tmp_path
):
    for number in range(1, 1000):
        disk.dies_at(number)
        try:
            make_trainer(**EVALUATING).train(resume_from_checkpoint=True)
            break
        except Died:
            continue
    disk.dies_at(None)
    assert number > 5
    assert_same(tmp_path / "run", undisturbed)


def test_a_step_counts_once_its_line_is_whole(make_trainer, undisturbed, tmp_path):
    trainer = make_trainer(**EVALUATING)
    trainer.train()
    journal = trainer.folder.path / "journal.jsonl"
    data = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    torn = [
        cut
        for end in ends
        for cut in (end - 1, end, end + 1, end + 40)
        if ends[0] <= cut <= len(data)
    ]
    for cut in torn:
        folder = tmp_path / "torn"
        shutil.copytree(trainer.folder.path, folder)
        (folder / "journal.jsonl").write_bytes(data[:cut])
        make_trainer(output_dir=str(folder), **EVALUATING).train(resume_from_checkpoint=True)
        assert repeatable_steps(folder) == repeatable_steps(undisturbed), cut
        assert files_of(folder / "checkpoint-4") == files_of(undisturbed / "checkpoint-4"), cut
        shutil.rmtree(folder)


# Where there is nothing to resume, and where there is nothing left to do


def test_resuming_where_nothing_was_saved_starts_afresh(make_trainer, tmp_path):
    fresh = make_trainer(output_dir=str(tmp_path / "fresh"))
    fresh.train()
    trainer = make_trainer()
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert_same(trainer.folder.path, fresh.folder.path)


@pytest.mark.parametrize("torn", [b"", b'{"format": 1, "mo', b'{"format": 1}'])
def test_a_torn_first_line_starts_afresh(make_trainer, torn):
    trainer = make_trainer()
    trainer.folder.path.mkdir()
    (trainer.folder.path / "journal.jsonl").write_bytes(torn)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert Journal.open(trainer.folder.path).last == 4


def test_the_setting_resumes_as_the_argument_does(make_trainer):
    folder = interrupted(make_trainer)
    make_trainer(resume_from_checkpoint=True).train()
    assert len(repeatable_steps(folder)) == 4


@pytest.mark.parametrize("wrong", ["checkpoint-2", 1])
def test_resuming_from_a_chosen_checkpoint_is_refused_since_the_journal_says_where(
    make_trainer, wrong
):
    with pytest.raises(ConfigError, match="resume_from_checkpoint: must be true or false"):
        make_trainer().train(resume_from_checkpoint=wrong)


def test_resuming_a_finished_run_changes_nothing(make_trainer):
    trainer = make_trainer(**EVALUATING)
    done = trainer.train()
    before = files_of(trainer.folder.path)

    def unused(completions, target, **columns):
        pytest.fail("nothing is left to be scored")

    unused.__name__ = "short"
    again = make_trainer(reward_funcs=unused, **EVALUATING).train(resume_from_checkpoint=True)
    assert again == done
    after = files_of(trainer.folder.path)
    assert {name: data for name, data in after.items() if name != ".lock"} == {
        n: d for n, d in before.items() if n != ".lock"
    }


def test_a_resumed_run_knows_its_best_checkpoint(make_trainer):
    def scheduled(values):
        def reward(completions, target, trainer_state, **columns):
            if target[0] == "held out":
                return [values[trainer_state.global_step]] * len(completions)
            return short(completions, target)

        return reward

    settings = {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1}
    settings |= {"metric_for_best_model": "reward", "load_best_model_at_end": True}
    held_out = [{"prompt": "what is red", "target": "held out"}]
    rewards = scheduled({1: 9.0, 2: 1.0, 3: 8.0, 4: 2.0})
    make_trainer(reward_funcs=rewards, eval_dataset=held_out, max_steps=2, **settings).train()
    trainer = make_trainer(reward_funcs=rewards, eval_dataset=held_out, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in trainer.folder.path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-4",
    ]
    assert trainer.model.theta.version == 1


# Replay


@pytest.mark.parametrize(
    "kind", [{}, {"noise": "correlated", "antithetic": True}, {"target_parameters": ["q_proj"]}]
)
def test_replay_of_each_step_equals_its_checkpoint(make_trainer, mini, kind):
    trainer = make_trainer(save_steps=1, **kind)
    trainer.train()
    journal = Journal.open(trainer.folder.path)
    theta = Theta.load(open_checkpoint(mini), trainer.model.tuned)
    for step in journal.replay(theta, 4):
        saved = open_checkpoint(trainer.folder.path / f"checkpoint-{step}")
        assert all(saved.read(name).equal(values) for name, values in theta.tensors.items())


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_the_command_writes_the_checkpoint_of_a_step(make_trainer, tmp_path, capsys, step):
    from estune.cli.main import main

    trainer = make_trainer(save_steps=1)
    trainer.train()
    assert (
        main(
            [
                "replay",
                str(trainer.folder.path),
                "--step",
                str(step),
                "--output",
                str(tmp_path / "replayed"),
            ]
        )
        == 0
    )
    saved = trainer.folder.path / f"checkpoint-{step}" if step else trainer.model.checkpoint.folder
    assert (tmp_path / "replayed" / "model.safetensors").read_bytes() == (
        saved / "model.safetensors"
    ).read_bytes()


# Real deaths

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from helpers import WORDS, short
from estune import ESConfig, ESTrainer
from estune.run import folder
from estune.theta import journal

def die():
    os.kill(os.getpid(), signal.SIGKILL)

rows = [
    {{"prompt": f"what is {{word}}", "target": "x" * (5 + i)}} for i, word in enumerate(WORDS[:6])
]
calls = iter(range(10**6))

def mortal(completions, target, **columns):
    if {where!r} == "scoring" and next(calls) == 10:
        die()
    return short(completions, target)

mortal.__name__ = "short"
if {where!r} == "saving":
    from estune.theta import checkpoint
    checkpoint.sync_tree = lambda path: die()
if {where!r} == "journal":
    whole = journal.step_line
    def torn(step, header, before):
        line = whole(step, header, before)
        if step.step == 3:
            with open(os.path.join({run!r}, "journal.jsonl"), "a") as file:
                file.write(line[:100])
            die()
        return line
    journal.step_line = torn

settings = dict(
    output_dir={run!r}, engine="fake", population_size=4, max_steps=4, save_steps=2, sigma=0.02
)
ESTrainer({model!r}, mortal, ESConfig(**settings), rows[:2], rows[2:4]).train()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "steps"), [("scoring", 2), ("saving", 2), ("journal", 2)])
def test_kill_9(make_trainer, mini, tmp_path, undisturbed_plain, where, steps):
    run = tmp_path / "run"
    script = SCRIPT.format(tests=str(TESTS), where=where, run=str(run), model=str(mini))
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert Journal.open(run).last == steps
    make_trainer().train(resume_from_checkpoint=True)
    assert_same(run, undisturbed_plain)
