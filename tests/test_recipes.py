"""Every recipe runs for two steps with a small model in place of its own, and every command of the README is one."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from estune.cli.main import main
from estune.config import RunConfig, build

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = ["--engine", "fake", "--max_steps", "2", "--population_size", "2", "--max_train_samples", "4", "--max_eval_samples", "4"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_with_a_small_model_in_place_of_its_own(recipe, tiny, tmp_path, capsys):
    out = str(tmp_path / "out")
    status = main(["train", "--config", str(recipe), "--model_name_or_path", str(tiny), "--output_dir", out, *SMALL])
    assert (status, capsys.readouterr().err) == (0, "")
    assert (tmp_path / "out" / "checkpoint-2" / "model.safetensors").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_holds_known_settings_and_is_listed(recipe):
    config = build(RunConfig, yaml.safe_load(recipe.read_text()))
    assert config.model_name_or_path
    assert f"`{recipe.name}`" in (ROOT / "recipes" / "README.md").read_text()


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    return [shlex.split(line, comments=True) for line in re.findall(r"^\$ (estune .*)$", text, re.M)]


def test_the_commands_of_the_readme_run_as_they_stand(tiny, tmp_path, monkeypatch, capsys):
    """In their order and in one folder, with a small model, a data file and a reward put where they expect them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"prompt": "what is a cat", "target": "xx"}\n')
    (tmp_path / "my_rewards.py").write_text("def short(completions, target, **columns): return [-len(c) for c in completions]\n")
    (tmp_path / "answers.jsonl").write_text('{"completion": "</think>\\n<answer>1+2</answer>", "numbers": [1, 2], "target": 3}\n')
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for command in readme_commands():
        words = [str(tiny) if word == "MODEL" else word.replace("checkpoint-8", "checkpoint-2") for word in command[1:]]
        words = ["1" if word == "4" else word for word in words]
        if words[0] == "train":
            small = [*SMALL, "--eval_strategy", "no", "--eval_on_start", "false"] if "--dataset_name" in words else SMALL
            resumes = "--resume_from_checkpoint" in words
            words += [*small, "--output_dir", "runs/own" if "--dataset_name" in words else "runs/quickstart"]
            words += [] if "MODEL" in command else ["--model_name_or_path", str(tiny)]
            words += ["--sigma", "0.002"] if resumes else []
        if words[0] == "eval":
            words += ["--engine", "fake", "--max_eval_samples", "4"]
        assert main(words) == 0, (command, capsys.readouterr().err)


def test_the_readme_python_example_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    code = code.replace("HuggingFaceTB/SmolLM2-135M", str(tiny))
    code = code.replace('output_dir="out"', 'output_dir="out", max_steps=2, population_size=2, max_completion_length=4')
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()
