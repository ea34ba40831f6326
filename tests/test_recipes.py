"""Every recipe runs for two steps with a small model, and every command of the READMEs parses."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from seeing import make

from estune.cli.main import main
from estune.cli.settings import add_flags, read
from estune.config import RunConfig

FOLDER = ROOT / "recipes"
YAMLS = sorted(FOLDER.rglob("*.yaml"))
OVERLAYS = [path for path in YAMLS if "model_name_or_path" not in yaml.safe_load(path.read_text())]
RECIPES = [path for path in YAMLS if path not in OVERLAYS]
COUNTDOWN = [path for path in RECIPES if path.parent.name == "countdown"]
SMALL = [
    "--engine",
    "fake",
    "--max_steps",
    "2",
    "--population_size",
    "2",
    "--max_train_samples",
    "4",
    "--max_eval_samples",
    "4",
]
PROBLEMS = [
    {"problem": "what is one", "answer": "1", "level": 2},
    {"problem": "what is two", "answer": "2", "level": 3},
]


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def config_of(*words: Path | str) -> RunConfig:
    """The config of `--config` and these words: files, then flags."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read(*parser.parse_known_args(["--config", *map(str, words)]))


@pytest.fixture
def from_the_root(monkeypatch):
    """Work in the repository's root, where recipes find their own reward functions."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])


@pytest.fixture
def two_steps(tiny, tmp_path, capsys, from_the_root):
    """Train the tiny model for two steps by the given files, on local rows."""

    def run(*files: Path, more=()) -> None:
        model = tiny
        if (config_of(*files).task or "").startswith("recipes.vision"):
            pytest.importorskip("PIL")
            model = make("llava", tmp_path / "seeing")
            capsys.readouterr()
        words = [
            "train",
            "--config",
            *map(str, files),
            "--model_name_or_path",
            str(model),
            "--output_dir",
            str(tmp_path / "out"),
            *SMALL,
        ]
        if config_of(*files).dataset_name:
            from recipes.math.data import write

            write(tmp_path / "data", PROBLEMS, PROBLEMS)
            words += ["--dataset_name", str(tmp_path / "data")]
        status = main([*words, *more])
        errors = capsys.readouterr().err
        assert (status, errors) == (0, "")
        assert (tmp_path / "out" / "checkpoint-2" / "model.safetensors").is_file()

    return run


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipe_runs_with_a_small_model_in_place_of_its_own(recipe, two_steps):
    two_steps(recipe)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
def test_a_recipe_runs_with_a_file_laid_over_it(overlay, two_steps):
    two_steps(
        COUNTDOWN[0],
        overlay,
        more=["--workers", "local", "--num_workers", "none", "--ray_address", "none"],
    )


@pytest.mark.ray
def test_a_recipe_runs_on_workers_of_ray(tiny, tmp_path):
    """As on a node of GPUs, with two workers on the CPU in place of eight on GPUs."""
    files = ["recipes/countdown/qwen2.5-0.5b-instruct.yaml", "recipes/on/one-node-of-8.yaml"]
    small = [
        *SMALL,
        "--engine",
        "transformers",
        "--num_workers",
        "2",
        "--max_completion_length",
        "8",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    command = [
        sys.executable,
        "-m",
        "estune",
        "train",
        "--config",
        *files,
        "--model_name_or_path",
        str(tiny),
        *small,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "on 127.0.0.1 (process" in done.stderr
    assert (tmp_path / "out" / "checkpoint-2" / "model.safetensors").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipe_is_valid_alone_and_with_each_overlay(recipe):
    alone = config_of(recipe)
    for overlay in OVERLAYS:
        laid = yaml.safe_load(overlay.read_text())
        assert vars(config_of(recipe, overlay)) == vars(alone) | laid


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_a_recipe_opens_with_what_it_is_and_is_listed(path):
    assert re.match(r"(# .*\n){2}", path.read_text())
    assert f"`{name_of(path)}`" in (FOLDER / "README.md").read_text()


def test_the_countdown_recipes_differ_in_their_model_alone():
    assert len(COUNTDOWN) == 7
    for path in COUNTDOWN:
        config = vars(config_of(path))
        assert path.stem == config["model_name_or_path"].split("/")[1].lower()
        assert config["output_dir"] == f"runs/countdown/{path.stem}"
        own = {name: config[name] for name in ("model_name_or_path", "output_dir")}
        assert config == vars(config_of(COUNTDOWN[0])) | own


@pytest.mark.parametrize("path", [FOLDER / "README.md", *OVERLAYS], ids=name_of)
def test_the_commands_of_a_recipe_are_valid(path, from_the_root):
    text = re.sub(r"\\\n#\s*", "", path.read_text())
    commands = re.findall(r"estune train --config (.*)", text)
    assert commands
    for command in commands:
        config = config_of(*shlex.split(command))
        assert config.model_name_or_path
        assert path not in OVERLAYS or str(path.relative_to(ROOT)) in command


def test_the_files_that_recipes_name_are_there():
    for path in [FOLDER / "README.md", *YAMLS]:
        for named in re.findall(r"recipes/[\w./-]+\.(?:yaml|py)", path.read_text()):
            assert (ROOT / named).is_file(), f"{path} names {named}"


# the math recipe's own data


def test_the_math_data_are_hard_problems_to_learn_from_and_all_held_out(tmp_path, from_the_root):
    from recipes.math.data import write

    write(tmp_path / "data", PROBLEMS, PROBLEMS)
    train, test = (
        [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").open()]
        for split in ("train", "test")
    )
    assert [row["answer"] for row in train] == ["2"]
    assert [row["answer"] for row in test] == ["1", "2"]
    assert [message["role"] for message in train[0]["prompt"]] == ["system", "user"]


# the README of the repository


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    return [
        shlex.split(line, comments=True) for line in re.findall(r"^\$ (estune .*)$", text, re.M)
    ]


@pytest.mark.slow
def test_the_model_of_the_vision_recipe_is_made_and_learns_from_images(tmp_path, from_the_root):
    make_it = [sys.executable, "recipes/vision/make_model.py", tmp_path / "model", "2"]
    subprocess.run(make_it, check=True, capture_output=True)
    settings = {"model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "out"}
    settings |= {"max_steps": 1, "population_size": 2, "batch_size": 4, "eval_steps": 1}
    settings |= {"max_train_samples": 8, "max_eval_samples": 8}
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--config", "recipes/vision/shapes.yaml", *flags]) == 0
    assert (tmp_path / "out/checkpoint-1/model.safetensors").exists()


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_they_stand(tiny, tmp_path, monkeypatch, capsys):
    """Run them in order in one folder that has a small model, a data file and a reward function."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"prompt": "what is a cat", "target": "xx"}\n')
    (tmp_path / "my_rewards.py").write_text(
        "def short(completions, target, **columns): return [-len(c) for c in completions]\n"
    )
    (tmp_path / "answers.jsonl").write_text(
        '{"completion": "</think>\\n<answer>1+2</answer>", "numbers": [1, 2], "target": 3}\n'
    )
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for command in readme_commands():
        words = [
            str(tiny) if word == "MODEL" else word.replace("checkpoint-6", "checkpoint-2")
            for word in command[1:]
        ]
        words = ["1" if word == "6" else word for word in words]
        if words[0] == "train":
            small = (
                [*SMALL, "--eval_strategy", "no", "--eval_on_start", "false"]
                if "--dataset_name" in words
                else SMALL
            )
            resumes = "--resume_from_checkpoint" in words
            words += [
                *small,
                "--output_dir",
                "runs/own" if "--dataset_name" in words else "runs/quickstart",
            ]
            words += [] if "MODEL" in command else ["--model_name_or_path", str(tiny)]
            words += ["--sigma", "0.002"] if resumes else []
        if words[0] == "eval":
            words += ["--engine", "fake", "--max_eval_samples", "4"]
        if words[0] == "compare":  # TRL's part takes minutes: test_compare_rl.py
            words += [
                "--methods",
                "es-paper",
                "--tokens",
                "40",
                "--model_name_or_path",
                str(tiny),
                *SMALL,
            ]
        assert main(words) == 0, (command, capsys.readouterr().err)


@pytest.mark.slow
def test_the_grid_of_sigma_alpha_and_n_is_drawn(tiny, tmp_path):
    command = [
        sys.executable,
        "recipes/learning/grid.py",
        "--config",
        "recipes/learning/conciseness.yaml",
        "--output",
        str(tmp_path),
    ]
    command += [
        "--sigmas",
        "0.01",
        "0.02",
        "--ratios",
        "0.5",
        "auto",
        "--populations",
        "4",
        "--tokens",
        "60",
        "--engine",
        "fake",
    ]
    command += [
        "--model_name_or_path",
        str(tiny),
        "--max_train_samples",
        "2",
        "--max_completion_length",
        "4",
        "--eval_strategy",
        "no",
    ]
    done = subprocess.run(
        [*command, "--eval_on_start", "false"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    header, _, *rows = (tmp_path / "grid.md").read_text().splitlines()
    assert header == "| N | σ | α = 0.5 σ | α = auto |"
    assert [row.split(" | ")[:2] for row in rows] == [["| 4", "0.01"], ["| 4", "0.02"]]
    assert all(float(cell) <= 0 for row in rows for cell in row.strip("| ").split(" | ")[2:])
    assert "<svg" in (tmp_path / "grid.svg").read_text()


@pytest.mark.parametrize("ratio", ["-1", "much", "inf"])
def test_a_ratio_that_is_none_is_refused_before_anything_runs(ratio, tmp_path):
    command = [
        sys.executable,
        "recipes/learning/grid.py",
        f"--ratios={ratio}",
        "--output",
        str(tmp_path / "grid"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"--ratios: must be numbers above 0, or auto; got '{ratio}'"
    )
    assert not (tmp_path / "grid").exists()


def test_the_readme_python_example_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    code = code.replace("HuggingFaceTB/SmolLM2-135M", str(tiny))
    code = code.replace(
        'output_dir="out"',
        'output_dir="out", max_steps=2, population_size=2, max_completion_length=4',
    )
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()
