"""`datasets` in a config: its entries become one mixture."""

import json

import pytest
import yaml
from helpers import FLAGS, repeatable_steps

from estune.cli.main import main
from estune.config import RunConfig
from estune.errors import ConfigError


@pytest.fixture
def train(mini, tmp_path, monkeypatch):
    """Run `estune train` on the fake engine with these datasets; returns its status."""
    monkeypatch.chdir(tmp_path)

    def run(datasets, *more):
        settings = {"model_name_or_path": str(mini), "datasets": datasets, "output_dir": "out"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        return main(["train", "--config", "run.yaml", *FLAGS, *map(str, more)])

    return run


def test_datasets_in_yaml_mix_tasks_and_files(train, data, tmp_path):
    entries = [
        {"task": "conciseness", "weight": 3},
        {"path": str(data), "label": "mine", "reward_funcs": ["conciseness_reward"]},
    ]
    assert (
        train(entries, "--batch_size", "4", "--eval_strategy", "steps", "--max_eval_samples", "2")
        == 0
    )
    metrics = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert metrics[-1]["rewards/mine/conciseness_reward/mean"] <= 0
    assert metrics[-1]["eval_rewards/conciseness/conciseness_reward/mean"] <= 0
    config = json.loads((tmp_path / "out" / "journal.jsonl").read_text().splitlines()[0])["config"]
    assert config["datasets"] == entries
    assert main(["train", "--config", "out/config.yaml", "--output_dir", "again"]) == 0
    assert repeatable_steps(tmp_path / "again") == repeatable_steps(tmp_path / "out")


def test_other_datasets_are_refused_on_resume(train, data, capsys):
    entries = [{"task": "conciseness"}, {"path": str(data), "reward_funcs": ["conciseness_reward"]}]
    assert train(entries) == 0
    capsys.readouterr()
    changed = [entries[0] | {"weight": 2}, entries[1]]
    assert train(changed, "--resume_from_checkpoint", "true") == 2
    assert capsys.readouterr().err.startswith("estune: datasets: the run in out began with ")


def test_a_mixture_can_be_given_as_a_flag(mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--datasets", "[{task: conciseness, weight: 2}, {task: countdown}]", *FLAGS]
    assert (
        main(
            [
                "train",
                "--model_name_or_path",
                str(mini),
                "--output_dir",
                "out",
                "--max_train_samples",
                "3",
                *flags,
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("datasets", "says"),
    [
        (
            [{"task": "conciseness", "wieght": 2}],
            "datasets: entry 1: unknown setting 'wieght'; did you mean 'weight'?",
        ),
        ([{"task": "conciseness"}, {"task": "countdwon"}], "did you mean 'countdown'?"),
        (
            [{"task": "conciseness", "weight": 0}],
            "datasets: entry 1: weight: must be greater than 0; it is 0",
        ),
        (
            [{"task": "conciseness", "weight": "much"}],
            "datasets: entry 1: weight: must be a valid number",
        ),
        (
            [{"task": "conciseness", "from_step": 0}],
            "datasets: entry 1: from_step: must be at least 1",
        ),
        ([{}], "datasets: entry 1: give either a task or the path of a dataset"),
        (
            [{"task": "conciseness", "path": "x"}],
            "datasets: entry 1: give either a task or the path of a dataset",
        ),
        (
            [{"path": "x.jsonl"}],
            "datasets: entry 1: reward_funcs: give at least one reward function, or a task",
        ),
        (
            [{"task": "conciseness"}, {"path": "no.jsonl", "reward_funcs": ["conciseness_reward"]}],
            "datasets: entry 2: no.jsonl: no such file",
        ),
        (
            [{"task": "conciseness", "from_step": 3, "until_step": 2}],
            "from_step must be at least 1 and not after until_step",
        ),
        (
            [{"task": "conciseness"}, {"task": "conciseness"}],
            "each with its own name (label); they are conciseness, conciseness",
        ),
        ("conciseness", "datasets: must be"),
        ([], "task: give one"),
    ],
)
def test_a_wrong_entry_is_named_in_one_line(train, capsys, datasets, says):
    assert train(datasets) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_evaluating_where_no_dataset_has_held_out_rows_is_refused(train, data, capsys):
    entries = [{"path": str(data), "reward_funcs": ["conciseness_reward"]}]
    assert train(entries, "--eval_strategy", "steps") == 2
    assert "datasets: no entry has held-out rows" in capsys.readouterr().err


def test_datasets_take_the_place_of_task_and_dataset_name():
    for other in ({"task": "countdown"}, {"dataset_name": "x"}):
        with pytest.raises(ConfigError, match="datasets: replaces task and dataset_name"):
            RunConfig(datasets=[{"task": "conciseness"}], **other)
