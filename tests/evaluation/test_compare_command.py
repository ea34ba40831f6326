"""`estune compare` runs what it planned, resumes, and refuses bad input in one line."""

import json
import os
from pathlib import Path

import pytest
from helpers import config_file, lines

from estune.cli.main import main
from estune.common.durable import locked
from estune.evaluation.compare.methods import chosen
from estune.evaluation.compare.runs import Budget

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

BUDGET = Budget(1000, 100, 8)


# what is refused

ES = ("es-paper", "mezo")
BASE = [
    "compare",
    "--model_name_or_path",
    "model",
    "--task",
    "conciseness",
    "--methods",
    "es-paper",
]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--methods", "es-papr"], "did you mean 'es-paper'"),
        (["--methods", "ppo"], "ppo: TRL's PPOTrainer scored with a reward model"),
        (["--methods", ","], "methods: name at least one"),
        (["--learning_rates", "fast"], "learning_rates: must be numbers"),
        (["--learning_rates", "0"], "learning_rates: must be numbers"),
        (["--learning_rates", "mezo=1e-6"], "'mezo' is not one of the methods"),
        (["--seeds", "0"], "seeds: must be at least 1"),
        (["--tokens", "0"], "tokens: must be at least 1"),
        (["--tokens", "10", "--eval_tokens", "11"], "eval_tokens: must be at most"),
        (["--rl_kwargs", "3"], "rl_kwargs: must be a mapping"),
        (
            ["--methods", "grpo", "--rl_kwargs", "{max_steps: 3}"],
            "rl_kwargs: max_steps is set by the comparison",
        ),
        (
            ["--methods", "grpo", "--rl_kwargs", "{num_generations: 0}"],
            "rl_kwargs: num_generations must be a whole number of at least 2",
        ),
        (
            ["--methods", "grpo", "--rl_kwargs", "{num_generations: many}"],
            "rl_kwargs: num_generations must be a whole number of at least 2",
        ),
        (["--lr_scheduler_type", "linear"], "a run ends by its tokens"),
        (["--workers", "accelerate"], "workers: accelerate"),
        (["--redraw", "nowhere"], "compare.json: cannot be read"),
        (["--task", "countdwn"], "did you mean 'countdown'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(refused, more, says):
    assert says in refused(*BASE, *more)


def test_prompts_of_token_ids_are_not_for_trl(refused):
    data = lines(Path("ids.jsonl"), [{"prompt": [5, 6], "target": "x"}])
    told = refused(
        *BASE[:3],
        "--dataset_name",
        data,
        "--reward_funcs",
        "conciseness_reward",
        "--methods",
        "grpo",
    )
    assert "TRL does not accept prompts of token ids" in told


def test_without_trl_a_line_says_how_to_have_it(refused, monkeypatch):
    monkeypatch.setattr("estune.evaluation.compare.methods.find_spec", lambda name: None)
    assert "pip install 'estune[rl]'" in refused(*BASE, "--methods", "grpo")
    assert [method.name for method in chosen(ES)] == list(ES)  # ES needs none


# the command


def small(model, data, *more):
    where = [
        "--model_name_or_path",
        model,
        "--dataset_name",
        data,
        "--reward_funcs",
        "conciseness_reward",
        "--sigma",
        "0.02",
    ]
    size = [
        "--population_size",
        "4",
        "--max_completion_length",
        "6",
        "--batch_size",
        "2",
        "--seeds",
        "2",
        "--eval_prompts",
        "2",
    ]
    return list(
        map(str, ["compare", *where, *size, "--reward_workers", "0", "--output", "all", *more])
    )


def test_a_dry_run_lists_the_runs_and_does_nothing(data, capsys):
    assert main(small("model", data, "--methods", *ES, "--dry_run")) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        *(
            f"{run} seed {seed}"
            for seed in (42, 43)
            for run in ("es-paper", "mezo 1e-07", "mezo 1e-06", "mezo 1e-05")
        )
    ]
    assert "reward_shaping: none" in out
    assert not Path("all").exists()


@pytest.mark.slow
def test_what_is_finished_is_not_done_again_and_another_comparison_is_refused(mini, data, capfd):
    command = small(
        mini, data, "--engine", "fake", "--methods", "es-paper", "--seeds", "1", "--tokens", "150"
    )
    assert main(command) == 0
    first = Path("all/compare.json").read_text()
    results = json.loads(first)["runs"]
    assert results[0]["points"][-1]["tokens"] >= 150 > results[0]["points"][-2]["tokens"]
    assert not list(Path("all").glob("*/checkpoint-*"))
    capfd.readouterr()
    assert main(command) == 0
    assert "es-paper seed 42 | finished already" in capfd.readouterr().out
    assert Path("all/compare.json").read_text() == first
    assert main([*command, "--sigma", "0.03"]) == 2
    assert "holds a run with another sigma" in capfd.readouterr().err


def test_a_comparison_beside_a_running_one_in_the_same_folder_is_refused(mini, data, capfd):
    command = small(
        mini, data, "--engine", "fake", "--methods", "es-paper", "--seeds", "1", "--tokens", "150"
    )
    with locked(Path("all"), "output"):
        assert main(command) == 2
    in_use = f"all is in use by process {os.getpid()}; wait for it or choose another"
    assert capfd.readouterr().err == f"estune: output: {in_use}\n"
    assert not list(Path("all").glob("es-*"))


@pytest.mark.slow
def test_a_run_under_way_goes_on_and_ends_as_if_undisturbed(mini, data, capfd):
    command = small(
        mini, data, "--engine", "fake", "--methods", "es-paper", "--seeds", "1", "--tokens", "150"
    )
    assert main(command) == 0
    folder = Path("all/es-paper-seed-42")
    whole = json.loads((folder / "result.json").read_text())["points"]
    (folder / "result.json").unlink()
    for name, kept in (
        ("journal.jsonl", 3),
        ("metrics.jsonl", 2),
        ("points.jsonl", 2),
    ):  # as after a kill in step 3
        (folder / name).write_text(
            "".join((folder / name).read_text().splitlines(keepends=True)[:kept])
        )
    capfd.readouterr()
    assert main(command) == 0
    assert "resuming" in capfd.readouterr().out
    torn = json.loads((folder / "result.json").read_text())["points"]
    assert len(torn) > 3
    assert [(one["tokens"], one["train"]["reward"]) for one in torn] == [
        (one["tokens"], one["train"]["reward"]) for one in whole
    ]


@pytest.mark.slow
def test_a_run_that_fails_says_which_and_why(mini, data, capfd):
    Path("breaking.py").write_text("def breaks(completions, **columns): raise KeyError('gone')\n")
    command = small(
        mini,
        data,
        "--engine",
        "fake",
        "--methods",
        "es-paper",
        "--tokens",
        "100",
        "--reward_funcs",
        "breaking.breaks",
    )
    assert main(command) == 2
    told = capfd.readouterr().err
    assert told.startswith("estune: es-paper seed 42: ")
    assert "breaks raised KeyError" in told


@pytest.mark.slow
def test_es_and_dr_grpo_are_compared_on_a_tiny_model(tiny, data, capfd):
    config_file(stop=["zzz"], eval_dataset_name=str(data))
    command = small(
        tiny,
        data,
        "--config",
        "run.yaml",
        "--methods",
        "es-paper,dr_grpo",
        "--learning_rates",
        "1e-3",
        "--tokens",
        "300",
    )
    assert main(command) == 0
    out = capfd.readouterr().out
    assert "dr_grpo 0.001 seed 43 | step 1/" in out
    found = json.loads(Path("all/compare.json").read_text())
    assert len(found["runs"]) == 4
    for one in found["runs"]:
        tokens = [point["tokens"] for point in one["points"]]
        assert tokens[0] == 0
        assert tokens[-1] >= 300 > tokens[-2]
        assert one["points"][-1]["held_out"]["reward"] <= 0
        assert one["peak_bytes"] > 2**27
    starts = {(one["points"][0]["train"]["reward"]) for one in found["runs"]}
    assert len(starts) == 1  # the same model, prompts and evaluator
    assert Path("all/compare.svg").is_file()
