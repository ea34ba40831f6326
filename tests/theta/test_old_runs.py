"""Runs of every journal format are read, replayed and resumed to the digests of their time."""

import shutil

import pytest
from old_runs import BASE, DIGESTS, FORMATS, OLD_RUNS, OLD_SETTINGS, resume_old

from estune.cli.main import main
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Journal
from estune.theta.theta import Theta


@pytest.fixture(params=OLD_SETTINGS)
def name(request):
    return request.param


@pytest.fixture(params=FORMATS)
def journal_format(request):
    return request.param


@pytest.fixture
def old(journal_format, name, tmp_path):
    """Return a copy of an old run's folder."""
    return shutil.copytree(OLD_RUNS / f"format_{journal_format}" / name, tmp_path / name)


def test_an_old_journal_is_read(old, journal_format):
    journal = Journal.open(old)
    assert journal.header.format == journal_format
    assert [step.step for step in journal.steps] == [1, 2, 3, 4]


def test_an_old_journal_is_replayed_to_the_digests_of_its_time(old, name):
    journal, base = Journal.open(old), open_checkpoint(BASE)
    patterns = journal.header.config["target_parameters"] or [""]
    tuned = [tensor for tensor in base.tensors if any(part in tensor for part in patterns)]
    theta = Theta.load(base, tuned)
    digests = [theta.digest(), *(theta.digest() for _ in journal.replay(theta, 4))]
    assert digests == DIGESTS[name][:5]


@pytest.mark.parametrize("step", [0, 3, 4])
def test_the_command_replays_an_old_run(old, name, step, tmp_path, capsys):
    output = str(tmp_path / "again")
    command = ["replay", str(old), "--step", str(step), "--output", output, "--model", str(BASE)]
    assert main(command) == 0
    assert f"θ's digest is {DIGESTS[name][step]}" in capsys.readouterr().out


def test_an_old_run_resumes_from_its_snapshot_and_ends_with_the_same_theta(old, name, capsys):
    trainer = resume_old(old, name)
    assert f"from θ of step {4 if name == 'decayed' else 3}" in capsys.readouterr().out
    assert trainer.model.theta.digest() == DIGESTS[name][6]
    assert Journal.open(old).last == 6


def test_an_old_run_without_snapshots_resumes_from_its_base(old, name):
    shutil.rmtree(old / "theta")
    assert resume_old(old, name).model.theta.digest() == DIGESTS[name][6]
