"""Runs that the first version wrote are read, replayed and resumed as they were then.

`data/runs_of_format_1` holds three runs that were stopped after step 4 of 6: one with usual settings, one with `learning_rate:
auto`, antithetic pairs and correlated noise, one with weight decay, a schedule and several checkpoints. `digests.json` has θ's
digest after each of the six steps, as that version computed them.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import WORDS, short

from estune import ESConfig, ESTrainer
from estune.cli.main import main
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Journal
from estune.theta.theta import Theta

DATA = Path(__file__).parent / "data" / "runs_of_format_1"
DIGESTS = json.loads((DATA / "digests.json").read_text())
ROWS = [{"prompt": f"what is {word}", "target": "x" * (5 + i)} for i, word in enumerate(WORDS[:6])]
SETTINGS = {
    "plain": {"save_steps": 3},
    "found": {"learning_rate": "auto", "antithetic": True, "noise": "correlated", "save_steps": 3},
    "decayed": {
        "weight_decay": 0.5,
        "save_steps": 2,
        "lr_scheduler_type": "cosine",
        "target_parameters": ["mlp", "embed"],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "reward",
    },
}


@pytest.fixture(params=SETTINGS)
def name(request):
    return request.param


@pytest.fixture
def old(name, tmp_path):
    """A copy of an old run's folder."""
    return shutil.copytree(DATA / name, tmp_path / name)


def resumed(folder, name):
    usual = {
        "engine": "fake",
        "population_size": 4,
        "max_steps": 6,
        "sigma": 0.1,
        "num_completions_to_print": 0,
        "reward_workers": 0,
    }
    config = ESConfig(output_dir=str(folder), **usual | SETTINGS[name])
    trainer = ESTrainer(str(DATA / "base"), short, config, ROWS[:2], ROWS[2:4])
    trainer.train(resume_from_checkpoint=True)
    return trainer


def test_an_old_journal_is_read(old):
    journal = Journal.open(old)
    assert journal.header.format == 1
    assert [step.step for step in journal.steps] == [1, 2, 3, 4]


def test_an_old_journal_is_replayed_to_the_digests_of_its_time(old, name):
    journal, base = Journal.open(old), open_checkpoint(DATA / "base")
    patterns = journal.header.config["target_parameters"] or [""]
    theta = Theta.load(
        base, [tensor for tensor in base.tensors if any(pattern in tensor for pattern in patterns)]
    )
    assert [theta.digest(), *(theta.digest() for _ in journal.replay(theta, 4))] == DIGESTS[name][
        :5
    ]


@pytest.mark.parametrize("step", [0, 3, 4])
def test_the_command_replays_an_old_run(old, name, step, tmp_path, capsys):
    command = [
        "replay",
        str(old),
        "--step",
        str(step),
        "--output",
        str(tmp_path / "again"),
        "--model",
        str(DATA / "base"),
    ]
    assert main(command) == 0
    assert f"θ's digest is {DIGESTS[name][step]}" in capsys.readouterr().out


def test_an_old_run_is_resumed_from_its_snapshot_and_ends_as_it_would_have_then(old, name, capsys):
    trainer = resumed(old, name)
    assert f"from θ of step {4 if name == 'decayed' else 3}" in capsys.readouterr().out
    assert trainer.model.theta.digest() == DIGESTS[name][6]
    assert Journal.open(old).last == 6


def test_an_old_run_without_snapshots_is_resumed_from_its_base(old, name):
    shutil.rmtree(old / "theta")
    assert resumed(old, name).model.theta.digest() == DIGESTS[name][6]
