"""The commands resume, replay and eval."""

import json
from pathlib import Path

import pytest
from helpers import contents, train_on

from estune.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# a folder that holds a run


def test_a_second_run_in_the_same_folder_is_refused_with_the_way_to_go_on(
    mini, data, refused, capsys
):
    assert main(train_on(mini, data)) == 0
    capsys.readouterr()
    before = contents(Path("out/checkpoint-2"))
    message = refused(*train_on(mini, data))
    assert (
        "output_dir: out holds a run already; "
        "add --resume_from_checkpoint true to continue it, or choose another" in message
    )
    assert contents(Path("out/checkpoint-2")) == before


def test_a_resume_with_another_setting_names_it(mini, data, capsys):
    assert main(train_on(mini, data)) == 0
    capsys.readouterr()
    assert main(train_on(mini, data, "--resume_from_checkpoint", "true", "--sigma", "0.5")) == 2
    assert capsys.readouterr().err.startswith(
        "estune: sigma: the run in out began with 0.02, not 0.5"
    )


# replay


@pytest.mark.parametrize("step", [1, 2, 3])
def test_replay_writes_the_same_bytes_as_the_runs_checkpoint(step, finished, capsys):
    assert main(["replay", str(finished), "--step", str(step), "--output", "again"]) == 0
    out, err = capsys.readouterr()
    assert f"step {step} of {finished} is in again" in out
    assert err == ""
    again, saved = contents(Path("again")), contents(finished / f"checkpoint-{step}")
    assert saved.pop("trainer_state.json")
    assert again == saved


def test_replay_of_step_zero_is_the_base_model_and_the_default_is_the_last_step(finished, mini):
    assert main(["replay", str(finished), "--step", "0", "--output", "base"]) == 0
    assert main(["replay", str(finished), "--output", "last"]) == 0
    assert Path("base/model.safetensors").read_bytes() == (mini / "model.safetensors").read_bytes()
    assert (
        Path("last/model.safetensors").read_bytes()
        == (finished / "checkpoint-3/model.safetensors").read_bytes()
    )


def test_replay_takes_the_base_model_from_where_it_is_now(finished, mini):
    import shutil

    shutil.copytree(mini, "moved")
    assert main(["replay", str(finished), "--output", "again", "--model", "./moved"]) == 0
    assert (
        Path("again/model.safetensors").read_bytes()
        == (finished / "checkpoint-3/model.safetensors").read_bytes()
    )


def test_replay_from_another_base_model_is_refused(finished, tiny, capsys):
    assert main(["replay", str(finished), "--output", "again", "--model", str(tiny)]) == 2
    assert "the base model is not the one that this run had" in capsys.readouterr().err
    assert not Path("again").exists()


def test_replay_of_a_folder_without_a_journal_is_refused(refused):
    Path("no-run").mkdir()
    assert "no-run/journal.jsonl: cannot be read" in refused(
        "replay", "no-run", "--output", "again"
    )
    assert "is no-run the folder of a run?" in refused("replay", "no-run", "--output", "again")
    assert "nowhere/journal.jsonl: cannot be read" in refused(
        "replay", "nowhere", "--output", "again"
    )


@pytest.mark.parametrize("step", ["4", "-1", "2.0", "last", "", "²"])
def test_replay_of_a_step_that_the_run_does_not_have_names_the_last(step, finished, refused):
    message = refused("replay", finished, "--step", step, "--output", "again")
    assert f"step: must be a number from 0 to 3, the run's last step; it is {step!r}" in message


def test_replay_overwrites_nothing_and_names_an_output_that_cannot_be_written(
    finished, data, refused
):
    Path("there").mkdir()
    assert "output: there exists already; choose another" in refused(
        "replay", finished, "--output", "there"
    )
    message = refused("replay", finished, "--output", data / "inside" / "again")
    assert f"output: {data}/inside cannot be written (Not a directory); choose another" in message


def test_replay_of_a_damaged_journal_names_the_line(finished, refused):
    text = (finished / "journal.jsonl").read_text().splitlines(keepends=True)
    Path("damaged").mkdir()
    Path("damaged/journal.jsonl").write_text(
        text[0] + text[1].replace('"step": 1', '"step": 7') + "".join(text[2:])
    )
    assert "damaged/journal.jsonl: line 2 is damaged" in refused(
        "replay", "damaged", "--output", "again"
    )


# eval


def test_eval_prints_tables_and_writes_every_answer(mini, capsys):
    command = [
        "eval",
        "--model",
        str(mini),
        "--task",
        "conciseness",
        "--engine",
        "fake",
        "--max_eval_samples",
        "3",
    ]
    assert main([*command, "--output", "answers.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert all(
        word in out
        for word in (
            "3 held-out prompts",
            "prompt",
            "completion",
            "reward",
            "metric",
            "eval_reward",
        )
    )
    assert err == ""
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 3
    assert all(
        set(answer)
        == {"model", "task", "sample", "length", "prompt", "completion", "reward", "target"}
        for answer in answers
    )
    assert all(
        answer["reward"] == -abs(len(answer["completion"]) - len(answer["target"]))
        for answer in answers
    )
    assert [path.name for path in Path().iterdir()] == ["answers.jsonl"]


def test_what_eval_wrote_can_be_scored(mini, capsys):
    flags = ["--engine", "fake", "--max_eval_samples", "4", "--output", "answers.jsonl"]
    assert main(["eval", "--model", str(mini), "--task", "conciseness", *flags]) == 0
    capsys.readouterr()
    assert main(["score", "--task", "conciseness", "--completions", "answers.jsonl"]) == 0
    scored = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert scored == [
        json.loads(line)["reward"] for line in Path("answers.jsonl").read_text().splitlines()
    ]


def test_eval_of_a_file_by_its_own_rewards(mini, data, capsys):
    flags = [
        "--dataset_name",
        str(data),
        "--dataset_test_split",
        "train",
        "--reward_funcs",
        "conciseness_reward",
    ]
    assert main(["eval", "--model", str(mini), "--engine", "fake", *flags]) == 0
    assert "4 held-out prompts" in capsys.readouterr().out


def test_eval_of_a_dataset_without_the_split_says_which_setting_to_change(mini, data, refused):
    flags = ["--engine", "fake", "--dataset_name", data, "--reward_funcs", "conciseness_reward"]
    message = refused("eval", "--model", mini, *flags)
    assert f"dataset_test_split: {data} has no split 'test'" in message
    assert "eval_dataset_name" in message


def test_eval_of_what_is_no_model_is_refused(refused):
    assert "/no/model: no such folder" in refused(
        "eval", "--model", "/no/model", "--task", "countdown"
    )


def test_eval_names_an_output_that_cannot_be_written_before_it_evaluates(mini, data, refused):
    flags = ["--task", "conciseness", "--engine", "fake", "--output", data / "answers.jsonl"]
    assert f"output: {data}/answers.jsonl cannot be written (Not a directory)" in refused(
        "eval", "--model", mini, *flags
    )
