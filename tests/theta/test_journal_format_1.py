"""Runs that the first version wrote are read, replayed and resumed as they were then.

`data/runs_of_format_1` holds three runs that were stopped after step 4 of 6: one with usual settings, one with `learning_rate:
auto`, antithetic pairs and correlated noise, one with weight decay, a schedule and several checkpoints. `digests.json` has θ's
digest after each of the six steps, as that version computed them.
"""

import json
import shutil

import pytest
from old_runs import OLD_RUNS, OLD_SETTINGS, resume_old

from estune.cli.main import main
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Journal
from estune.theta.theta import Theta

DIGESTS = json.loads((OLD_RUNS / "digests.json").read_text())


@pytest.fixture(params=OLD_SETTINGS)
def name(request):
    return request.param


@pytest.fixture
def old(name, tmp_path):
    """A copy of an old run's folder."""
    return shutil.copytree(OLD_RUNS / name, tmp_path / name)


def test_an_old_journal_is_read(old):
    journal = Journal.open(old)
    assert journal.header.format == 1
    assert [step.step for step in journal.steps] == [1, 2, 3, 4]


def test_an_old_journal_is_replayed_to_the_digests_of_its_time(old, name):
    journal, base = Journal.open(old), open_checkpoint(OLD_RUNS / "base")
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
        str(OLD_RUNS / "base"),
    ]
    assert main(command) == 0
    assert f"θ's digest is {DIGESTS[name][step]}" in capsys.readouterr().out


def test_an_old_run_is_resumed_from_its_snapshot_and_ends_as_it_would_have_then(old, name, capsys):
    trainer = resume_old(old, name)
    assert f"from θ of step {4 if name == 'decayed' else 3}" in capsys.readouterr().out
    assert trainer.model.theta.digest() == DIGESTS[name][6]
    assert Journal.open(old).last == 6


def test_an_old_run_without_snapshots_is_resumed_from_its_base(old, name):
    shutil.rmtree(old / "theta")
    assert resume_old(old, name).model.theta.digest() == DIGESTS[name][6]
