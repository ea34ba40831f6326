"""What may change when a run is resumed, what may not, and which snapshot of θ it starts from."""

import json
import logging
import shutil

import pytest
from helpers import (
    EVALUATING,
    assert_same,
    files_of,
    interrupted,
    make_model,
    repeatable_steps,
    short,
)
from safetensors.torch import load_file, save_file

from estune.config import MAY_CHANGE_ON_RESUME
from estune.errors import ConfigError, InputError, JournalError


@pytest.fixture
def undisturbed(make_trainer, tmp_path):
    """The folder of a run that nobody disturbed."""
    trainer = make_trainer(output_dir=str(tmp_path / "undisturbed"), **EVALUATING)
    trainer.train()
    return trainer.folder.path


# What may change, and what may not


def test_a_run_can_be_made_longer(make_trainer, tmp_path):
    long = make_trainer(max_steps=7, output_dir=str(tmp_path / "long"))
    long.train()
    make_trainer().train()
    trainer = make_trainer(max_steps=7)
    assert trainer.train(resume_from_checkpoint=True).global_step == 7
    assert files_of(trainer.folder.path / "checkpoint-7") == files_of(
        tmp_path / "long" / "checkpoint-7"
    )
    assert [step["coefficients"] for step in repeatable_steps(trainer.folder.path)] == [
        step["coefficients"] for step in repeatable_steps(tmp_path / "long")
    ]


def test_a_run_cannot_be_made_shorter_than_it_is(make_trainer):
    make_trainer().train()
    with pytest.raises(ConfigError, match="max_steps: .* has 4 steps already"):
        make_trainer(max_steps=3).train(resume_from_checkpoint=True)


ALLOWED = {
    "save_steps": 1,
    "save_total_limit": 1,
    "logging_steps": 3,
    "report_to": ["none"],
    "log_level": "warning",
    "run_name": "other",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_on_start": True,
    "log_completions": True,
    "disable_tqdm": True,
    "dtype": "float32",
    "generation_batch_size": 2,
    "device": "cpu",
    "num_completions_to_print": 3,
}
REFUSED = {
    "sigma": 0.03,
    "learning_rate": 0.5,
    "population_size": 6,
    "noise": "correlated",
    "antithetic": True,
    "reward_shaping": "centered_rank",
    "prompt_shaping": "center",
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "seed": 1,
    "batch_size": 1,
    "max_completion_length": 5,
    "stop": ["x"],
    "target_parameters": ["mlp"],
    "reward_weights": [2.0],
    "chat_template_kwargs": {"thinking": False},
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_alters_no_step_may_change_on_resume(make_trainer, name):
    folder = interrupted(make_trainer)
    assert name in MAY_CHANGE_ON_RESUME
    trainer = make_trainer(**{name: ALLOWED[name]})
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert len(repeatable_steps(folder)) == 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_theta_is_refused_by_name(make_trainer, name):
    folder = interrupted(make_trainer)
    before = files_of(folder)
    with pytest.raises(
        InputError, match=f"^{name}: the run in .*give the same again, or choose another output_dir"
    ):
        make_trainer(**{name: REFUSED[name]}).train(resume_from_checkpoint=True)
    assert files_of(folder).keys() == before.keys()
    assert (folder / "journal.jsonl").read_bytes() == before["journal.jsonl"]


def test_other_training_data_are_refused(make_trainer, rows):
    interrupted(make_trainer)
    with pytest.raises(ConfigError, match="^train_data"):
        make_trainer(train_dataset=rows[:3]).train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="^train_data"):
        make_trainer(train_dataset=rows[1::-1]).train(resume_from_checkpoint=True)


def test_another_reward_function_is_refused(make_trainer):
    interrupted(make_trainer)

    def other(completions, target, **columns):
        return short(completions, target)

    with pytest.raises(ConfigError, match=r"^reward_functions: .*\['short'\], not \['other'\]"):
        make_trainer(reward_funcs=other).train(resume_from_checkpoint=True)


def test_another_base_model_is_refused(make_trainer, mini, tmp_path):
    interrupted(make_trainer)
    sizes = json.loads((mini / "config.json").read_text())
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    other = make_model(tmp_path / "other", seed=1, **{name: sizes[name] for name in names})
    with pytest.raises(ConfigError, match="^model: .*other does not have the weights"):
        make_trainer(other).train(resume_from_checkpoint=True)


def test_the_base_model_may_have_moved(make_trainer, mini, tmp_path):
    interrupted(make_trainer)
    moved = shutil.copytree(mini, tmp_path / "moved")
    assert make_trainer(moved).train(resume_from_checkpoint=True).global_step == 4


def test_the_folder_may_have_moved(make_trainer, tmp_path):
    folder = interrupted(make_trainer)
    folder.rename(tmp_path / "moved")
    assert (
        make_trainer(output_dir=str(tmp_path / "moved"))
        .train(resume_from_checkpoint=True)
        .global_step
        == 4
    )


# The snapshots of θ


def damage(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


def test_a_resume_starts_from_the_snapshot(make_trainer, capsys, undisturbed_plain):
    folder = interrupted(make_trainer)
    assert [path.name for path in (folder / "theta").iterdir()] == ["step-2.safetensors"]
    capsys.readouterr()
    make_trainer().train(resume_from_checkpoint=True)
    said = capsys.readouterr().out
    assert "after step 3, from θ of step 2" in said
    assert "replayed step 3 of 3" in said
    assert_same(folder, undisturbed_plain)


def test_without_snapshots_a_resume_starts_from_the_base(make_trainer, capsys, undisturbed_plain):
    folder = interrupted(make_trainer)
    shutil.rmtree(folder / "theta")
    make_trainer().train(resume_from_checkpoint=True)
    assert "after step 3, from θ of step 0" in capsys.readouterr().out
    assert_same(folder, undisturbed_plain)


@pytest.mark.parametrize("harm", ["values", "header", "empty", "cut", "not safetensors"])
def test_a_damaged_snapshot_is_passed_over_with_a_warning(
    make_trainer, capsys, caplog, undisturbed_plain, harm
):
    folder = interrupted(make_trainer)
    snapshot = folder / "theta" / "step-2.safetensors"
    if harm in ("values", "header"):
        damage(snapshot, {"values": -5, "header": 20}[harm])
    else:
        snapshot.write_bytes(
            {"empty": b"", "cut": snapshot.read_bytes()[:-100], "not safetensors": b"x" * 500}[harm]
        )
    with caplog.at_level(logging.WARNING):
        make_trainer().train(resume_from_checkpoint=True)
    assert "going back to an earlier state" in caplog.text
    assert "from θ of step 0" in capsys.readouterr().out
    assert_same(folder, undisturbed_plain)


def test_of_two_snapshots_the_older_serves_when_the_newer_is_damaged(
    make_trainer, capsys, undisturbed_plain
):
    folder = interrupted(make_trainer, member=7, save_steps=1)
    older = (folder / "theta" / "step-1.safetensors").read_bytes()
    make_trainer(save_steps=1, max_steps=3).train(resume_from_checkpoint=True)
    (folder / "theta" / "step-1.safetensors").write_bytes(older)
    damage(folder / "theta" / "step-3.safetensors")
    capsys.readouterr()
    make_trainer(save_steps=1).train(resume_from_checkpoint=True)
    assert "after step 3, from θ of step 1" in capsys.readouterr().out
    assert files_of(folder / "checkpoint-4") == files_of(undisturbed_plain / "checkpoint-4")


def test_a_snapshot_of_a_step_that_the_journal_lost_is_not_used(
    make_trainer, capsys, undisturbed_plain
):
    folder = interrupted(make_trainer)
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:-30])
    make_trainer().train(resume_from_checkpoint=True)
    assert "after step 1, from θ of step 0" in capsys.readouterr().out
    assert_same(folder, undisturbed_plain)


def test_a_damaged_line_of_the_journal_stops_the_resume(make_trainer):
    folder = interrupted(make_trainer)
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"sigma": 0.02', b'"sigma": 0.03')
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="line 2 is damaged"):
        make_trainer().train(resume_from_checkpoint=True)
    assert (folder / "journal.jsonl").read_bytes() == b"".join(lines)


def test_a_torn_line_of_metrics_is_written_again(make_trainer, undisturbed_plain):
    folder = interrupted(make_trainer)
    metrics = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(metrics[:-20])
    make_trainer().train(resume_from_checkpoint=True)
    assert_same(folder, undisturbed_plain)


def test_a_snapshot_that_claims_a_step_beyond_the_journal_is_passed_over(
    make_trainer, undisturbed_plain
):
    folder = interrupted(make_trainer)
    snapshot = folder / "theta" / "step-2.safetensors"
    save_file(load_file(snapshot), snapshot, metadata={"version": "99"})
    make_trainer().train(resume_from_checkpoint=True)
    assert_same(folder, undisturbed_plain)
