"""A checkpoint says which θ it is.

A checkpoint that differs from the journal is detected, never used, and written again.
"""

import json
import logging
import random
import shutil

import pytest
import torch
from helpers import files_of, interrupted, short
from old_runs import OLD_RUNS, OLD_SETTINGS, resume_old
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from estune.cli.main import main
from estune.config import RunConfig
from estune.errors import ModelError
from estune.theta import identity
from estune.theta.checkpoint import resolve
from estune.theta.identity import Identity
from estune.theta.journal import Header, Journal
from estune.theta.theta import snapshot_identity

CHOOSES = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "reward"}


def said(folder):
    return json.loads((folder / identity.NAME).read_text())


def by_chance(completions, target, **columns):
    return [random.random() for _ in completions]


by_chance.__name__ = "short"


@pytest.fixture
def run(make_trainer):
    """The folder of a run of four steps with checkpoints after the second and the fourth."""
    trainer = make_trainer()
    trainer.train()
    return trainer.folder.path


def resumed_log(make_trainer, caplog, steps=6, **settings):
    """Resume the run, and return what was warned of."""
    with caplog.at_level(logging.WARNING):
        make_trainer(max_steps=steps, **settings).train(resume_from_checkpoint=True)
    return caplog.text


def assert_as_replayed(folder, steps, tmp_path):
    """The checkpoints are those that the journal gives."""
    for step in steps:
        output = tmp_path / f"replayed-{folder.name}-{step}"
        assert main(["replay", str(folder), "--step", str(step), "--output", str(output)]) == 0
        saved = files_of(folder / f"checkpoint-{step}")
        del saved["trainer_state.json"]
        assert files_of(output) == saved


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 64
    path.write_bytes(data)


# What it says


def test_a_checkpoint_says_run_step_and_digest_and_what_its_files_are(run):
    journal, four, two = Journal.open(run), said(run / "checkpoint-4"), said(run / "checkpoint-2")
    assert (four["step"], four["theta"]) == (4, journal.digest(4))
    assert (two["step"], two["theta"]) == (2, journal.digest(2))
    assert four["run"] == two["run"] == identity.run_digest(journal.header)
    assert list(four["files"]) == ["model.safetensors"]
    assert snapshot_identity(run / "theta" / "step-4.safetensors") == Identity(
        four["run"], 4, four["theta"]
    )


def test_two_runs_of_the_same_settings_say_the_same_and_those_of_others_do_not(
    make_trainer, run, tmp_path
):
    digests = {said(run / "checkpoint-4")["run"]}
    for name, settings in {
        "same": {"save_steps": 4},
        "seed": {"seed": 3},
        "sigma": {"sigma": 0.03},
    }.items():
        make_trainer(output_dir=str(tmp_path / name), **settings).train()
        digests.add(said(tmp_path / name / "checkpoint-4")["run"])
    assert len(digests) == 3
    assert said(tmp_path / "same" / "checkpoint-4") == said(run / "checkpoint-4")


def test_what_is_saved_by_hand_says_it_too(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save_model(str(tmp_path / "untrained"))
    assert not (tmp_path / "untrained" / identity.NAME).exists()
    trainer.train()
    trainer.save_model()
    assert said(trainer.folder.path / "final") == said(trainer.folder.path / "checkpoint-4")


def test_a_checkpoint_loads_as_before_and_is_a_base_for_another_run(make_trainer, run, tmp_path):
    model, report = AutoModelForCausalLM.from_pretrained(
        run / "checkpoint-4", output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.parameters())
    make_trainer(run / "checkpoint-4", output_dir=str(tmp_path / "next")).train()
    assert said(tmp_path / "next" / "checkpoint-4")["run"] != said(run / "checkpoint-4")["run"]


def test_a_model_of_several_files_is_covered_whole(tmp_path):
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file({name: torch.zeros(3)}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    identity.seal(tmp_path, Identity("run", 1, "theta"))
    assert identity.fault(tmp_path) is None
    for name in said(tmp_path)["files"]:
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data + b" ")
        assert identity.fault(tmp_path) == f"{name} is not the file that was written"
        (tmp_path / name).unlink()
        assert identity.fault(tmp_path) == f"{name} is not the file that was written"
        (tmp_path / name).write_bytes(data)
    shutil.copy(tmp_path / "model-1.safetensors", tmp_path / "more.safetensors")
    assert identity.fault(tmp_path) == "more.safetensors is not the file that was written"


# On resume


@pytest.mark.parametrize("at", [3, 60, -1, -400])
def test_a_flipped_bit_of_the_newest_is_found_and_mended(make_trainer, run, caplog, tmp_path, at):
    before = files_of(run / "checkpoint-4")
    flip(run / "checkpoint-4" / "model.safetensors", at)
    text = resumed_log(make_trainer, caplog)
    not_said = "differs from the journal's step 4 (model.safetensors is not the file"
    assert f"{run / 'checkpoint-4'} {not_said}" in text
    assert files_of(run / "checkpoint-4") == before | {
        "trainer_state.json": files_of(run / "checkpoint-4")["trainer_state.json"]
    }
    assert_as_replayed(run, [4, 6], tmp_path)


@pytest.mark.parametrize("at", [0, 20, -3])
def test_damage_to_what_it_says_is_mended_too(make_trainer, run, caplog, tmp_path, at):
    flip(run / "checkpoint-4" / identity.NAME, at)
    assert "(estune.json is missing or damaged)" in resumed_log(make_trainer, caplog)
    assert_as_replayed(run, [4], tmp_path)


def test_a_right_checkpoint_is_left_alone(make_trainer, run, caplog):
    before = {path.name: path.stat().st_mtime_ns for path in (run / "checkpoint-4").iterdir()}
    assert "checkpoint" not in resumed_log(make_trainer, caplog)
    assert {
        path.name: path.stat().st_mtime_ns for path in (run / "checkpoint-4").iterdir()
    } == before


def test_a_checkpoint_of_a_torn_step_is_written_again_when_the_step_turns_out_otherwise(
    make_trainer, caplog, tmp_path
):
    make_trainer(reward_funcs=by_chance).train()
    run = tmp_path / "run"
    journal = run / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])
    text = resumed_log(make_trainer, caplog, steps=4, reward_funcs=by_chance)
    assert "checkpoint-4 belongs to a step that the journal does not have" in text
    assert (
        "checkpoint-4 differs from the journal's step 4 (it says that it is θ of step 4 with digest"
    ) in text
    assert_as_replayed(run, [2, 4], tmp_path)
    assert (
        said(run / "checkpoint-4")["theta"]
        == snapshot_identity(run / "theta" / "step-4.safetensors").theta
    )


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_an_older_copy_of_the_journal_leaves_no_checkpoint_of_the_life_that_it_forgot(
    make_trainer, caplog, tmp_path, lost
):
    make_trainer(reward_funcs=by_chance).train()
    run = tmp_path / "run"
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:-lost]))
    resumed_log(make_trainer, caplog, steps=4, reward_funcs=by_chance)
    assert_as_replayed(run, [2, 4], tmp_path)


def test_old_checkpoints_beyond_the_journal_do_not_push_out_new_ones(
    make_trainer, caplog, tmp_path
):
    settings = {"reward_funcs": by_chance, "save_total_limit": 1}
    make_trainer(**settings).train()
    run = tmp_path / "run"
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:2]))
    resumed_log(make_trainer, caplog, steps=3, save_steps=1, **settings)
    assert_as_replayed(run, [3], tmp_path)
    assert [path.name for path in (run / "theta").iterdir()] == ["step-3.safetensors"]


@pytest.mark.parametrize(
    "harm", ["flipped", "that of another step", "that of another run", "unsigned"]
)
def test_the_best_is_checked_as_the_newest_is(make_trainer, caplog, tmp_path, harm):
    trainer = make_trainer(reward_funcs=falling, **CHOOSES)
    trainer.train()
    run = trainer.folder.path
    best = run / "checkpoint-2"
    assert (
        json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())["best_global_step"]
        == 2
    )
    if harm == "flipped":
        flip(best / "model.safetensors", -9)
    elif harm == "unsigned":
        (best / identity.NAME).unlink()
    else:
        make_trainer(output_dir=str(tmp_path / "other"), reward_funcs=by_chance, seed=5).train()
        shutil.rmtree(best)
        shutil.copytree(
            tmp_path / "other" / "checkpoint-2" if "run" in harm else run / "checkpoint-4", best
        )
    text = resumed_log(
        make_trainer, caplog, reward_funcs=falling, load_best_model_at_end=True, **CHOOSES
    )
    assert f"{best} differs from the journal's step 2" in text
    assert_as_replayed(run, [2, 4, 6], tmp_path)


def falling(completions, target, trainer_state, **columns):
    """The population's rewards are usual ones; evaluations get worse."""
    held_out = len(completions) == 2 and target == ["x" * 7, "x" * 8]
    return [-float(trainer_state.global_step)] * 2 if held_out else short(completions, target)


@pytest.mark.parametrize("flipped", [True, False])
def test_a_checkpoint_of_a_step_whose_digest_the_journal_lacks_is_compared_with_theta(
    make_trainer, caplog, tmp_path, flipped
):
    interrupted(make_trainer, save_steps=4)
    run = interrupted(make_trainer, member=1, save_steps=3, resume_from_checkpoint=True)
    assert Journal.open(run).digest(3) is None
    if flipped:
        flip(run / "checkpoint-3" / "model.safetensors", -9)
    assert (
        "checkpoint-3 differs from the journal's step" in resumed_log(make_trainer, caplog)
    ) == flipped
    assert_as_replayed(run, [3, 4, 6], tmp_path)


@pytest.mark.parametrize("name", OLD_SETTINGS)
def test_checkpoints_of_old_runs_which_say_nothing_are_written_again_once(name, tmp_path, caplog):
    folder = shutil.copytree(OLD_RUNS / "format_1" / name, tmp_path / name)
    old = {
        step: load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        for step in ((2, 4) if name == "decayed" else ())
    }
    with caplog.at_level(logging.WARNING):
        resume_old(folder, name)
    assert caplog.text.count("estune.json is missing") == len(old)
    for step, tensors in old.items():
        new = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.equal(new[tensor], tensors[tensor]) for tensor in tensors)
    caplog.clear()
    resume_old(folder, name)
    assert caplog.text == ""


# Whoever reads it


def test_no_command_uses_a_checkpoint_whose_weights_are_not_its_own(run, mini, refused):
    checkpoint = run / "checkpoint-4"
    flip(checkpoint / "model.safetensors", -9)
    message = (
        "it is not the checkpoint that was written there "
        "(model.safetensors is not the file that was written)"
    )
    task = ["--task", "conciseness", "--engine", "fake"]
    assert message in refused("eval", "--model", checkpoint, *task)
    assert message in refused("eval", "--model", mini, "--base", checkpoint, *task)
    assert message in refused(
        "train", "--model_name_or_path", checkpoint, *task, "--output_dir", run.parent / "next"
    )
    assert message in refused(
        "replay", run, "--output", run.parent / "again", "--model", checkpoint
    )
    with pytest.raises(ModelError, match="delete .*estune.json to use the weights as they are"):
        resolve(str(checkpoint))
    (checkpoint / identity.NAME).unlink()
    assert resolve(str(checkpoint)) == checkpoint


def test_a_checkpoint_that_the_journal_beside_it_contradicts_is_not_evaluated(
    make_trainer, run, refused, tmp_path, capsys
):
    task = ["--task", "conciseness", "--engine", "fake"]
    make_trainer(output_dir=str(tmp_path / "chance"), reward_funcs=by_chance).train()
    shutil.copy(tmp_path / "chance" / "journal.jsonl", run / "journal.jsonl")
    capsys.readouterr()
    assert "journal.jsonl has another θ for step 4" in refused(
        "eval", "--model", run / "checkpoint-4", *task
    )
    make_trainer(output_dir=str(tmp_path / "seed"), seed=5).train()
    shutil.copy(tmp_path / "seed" / "journal.jsonl", run / "journal.jsonl")
    capsys.readouterr()
    assert "journal.jsonl is of another run" in refused(
        "eval", "--model", run / "checkpoint-4", *task
    )


def test_a_checkpoint_that_changes_later_is_looked_at_again(run):
    checkpoint = run / "checkpoint-4"
    assert resolve(str(checkpoint)) == checkpoint
    flip(checkpoint / "model.safetensors", -9)
    with pytest.raises(ModelError, match="is not the checkpoint"):
        resolve(str(checkpoint))


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ({}, {"fitness": "mean", "sigma_scheduler_type": "constant"}),
        ({"pass_k": 2}, {"fitness": "pass_at_k", "sigma_scheduler_type": "constant"}),
        ({"sigma_end": 0.1}, {"fitness": "mean", "sigma_scheduler_type": "linear"}),
    ],
)
def test_runs_keep_their_digest_although_settings_were_folded(now, before):
    def digest(settings):
        return identity.run_digest(Header(1, "base", "cf46", settings))

    today = vars(RunConfig(**now)) | {"reward_functions": ["short"]}
    assert digest(today) == digest(today | before)
