"""A run stops before its next write when its folder is moved, replaced or deleted.

It leaves the files of other runs alone.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import FLAGS, files_of, short

from estune.cli.main import main
from estune.errors import LostFolderError
from estune.theta.journal import Journal


def meddling(deed, at=9):
    """A reward function that does `deed` once, in the middle of the third step."""
    calls = iter(range(10**6))

    def reward(completions, target, **columns):
        if next(calls) == at:
            deed()
        return short(completions, target)

    reward.__name__ = "short"
    return reward


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def stopped(make_trainer, deed, **settings):
    """What the run says when it stops after `deed`."""
    with pytest.raises(LostFolderError) as caught:
        make_trainer(reward_funcs=meddling(deed), **settings).train()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_was_moved_is_named_where_it_is_and_resumed_there(
    make_trainer, run, tmp_path, undisturbed_plain
):
    said = stopped(make_trainer, lambda: run.rename(tmp_path / "away"))
    assert said.startswith(
        f"{run}: was moved to {tmp_path / 'away'} during the run, which can be resumed from there"
    )
    assert not run.exists()
    make_trainer(output_dir=str(tmp_path / "away")).train(resume_from_checkpoint=True)
    assert files_of(tmp_path / "away" / "checkpoint-4") == files_of(
        undisturbed_plain / "checkpoint-4"
    )


def test_a_new_run_at_the_old_path_keeps_its_files_to_itself(make_trainer, run, tmp_path):
    def replace():
        run.rename(tmp_path / "away")
        make_trainer(seed=5).train()
        new.update(files_of(run))

    new = {}
    assert "was moved to" in stopped(make_trainer, replace)
    assert files_of(run) == new
    assert Journal.open(run).last == 4
    assert Journal.open(tmp_path / "away").last == 2


def test_a_deleted_folder_is_not_made_again(make_trainer, run):
    assert stopped(make_trainer, lambda: shutil.rmtree(run)).startswith(
        f"{run}: was deleted during the run"
    )
    assert not run.exists()


def test_a_folder_that_was_deleted_and_made_again_is_left_as_it_is(make_trainer, run):
    def replace():
        shutil.rmtree(run)
        run.mkdir()

    assert f"{run}: was replaced during" in stopped(make_trainer, replace)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("deed", ["deleted", "replaced", "moved"])
def test_the_journal_alone_is_watched_too(make_trainer, run, deed):
    def meddle():
        path, copy = run / "journal.jsonl", run / "copy.jsonl"
        if deed == "replaced":
            shutil.copy(path, copy)
            copy.rename(path)
        elif deed == "deleted":
            path.unlink()
        else:
            path.rename(copy)

    assert f"{run / 'journal.jsonl'}: was {deed}" in stopped(make_trainer, meddle)


@pytest.mark.parametrize("deed", ["added to", "cut"])
def test_a_journal_that_somebody_else_changes_is_not_written_to(make_trainer, run, deed):
    def meddle():
        path = run / "journal.jsonl"
        if deed == "cut":
            os.truncate(path, 100)
        else:
            path.write_bytes(path.read_bytes() + b"more\n")
        new.append(path.read_bytes())

    new = []
    assert "another program changed it" in stopped(make_trainer, meddle)
    assert (run / "journal.jsonl").read_bytes() == new[0]


@pytest.mark.parametrize("where", ["journal", "checkpoint", "snapshot", "metrics"])
def test_a_folder_that_goes_while_something_is_written_is_named_all_the_same(
    make_trainer, run, tmp_path, monkeypatch, where
):
    from estune.run.metrics_file import MetricsFile
    from estune.theta import checkpoint, theta

    places = {
        "journal": (Journal, "append"),
        "checkpoint": (checkpoint, "save_file"),
        "snapshot": (theta, "save_file"),
        "metrics": (MetricsFile, "append"),
    }
    whole = getattr(*places[where])

    def interrupted(*args, **kwargs):
        if run.exists():
            run.rename(tmp_path / "away")
        return whole(*args, **kwargs)

    monkeypatch.setattr(*places[where], interrupted)
    with pytest.raises(LostFolderError, match="was moved to .*away"):
        make_trainer().train()
    assert not run.exists()


def test_what_follows_the_last_step_is_watched_too(make_trainer, run, tmp_path):
    trainer = make_trainer()
    trainer.train()
    run.rename(tmp_path / "away")
    for write in (
        trainer.save_model,
        lambda: trainer.folder.write_completions(4, []),
        lambda: trainer.folder.keep_reward_error("lost"),
    ):
        with pytest.raises(LostFolderError, match="was moved to"):
            write()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "config.json").is_file()
    assert not run.exists()


def test_the_command_ends_with_status_1_and_one_line(
    mini, data, tmp_path, capsys, in_a_folder_of_its_own
):
    Path("meddler.py").write_text(
        "import os\n"
        "def meddle(completions, trainer_state, **columns):\n"
        "    if trainer_state.global_step == 1 and os.path.exists('out'):\n"
        "        os.rename('out', 'away')\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    where = [
        "--model_name_or_path",
        str(mini),
        "--dataset_name",
        str(data),
        "--reward_funcs",
        "meddler.meddle",
        "--output_dir",
        "out",
    ]
    assert main(["train", *where, *FLAGS]) == 1
    err = capsys.readouterr().err
    assert err == (
        f"estune: out: was moved to {tmp_path / 'away'} during the run, "
        "which can be resumed from there; the run stops before it writes to this path again\n"
    )
    assert [
        json.loads(line).get("step") for line in Path("away/journal.jsonl").read_text().splitlines()
    ] == [None, 1]
