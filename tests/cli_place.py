"""What the tests of the command line share: completions to score, small runs, and what is in a run's folder."""

import json
from pathlib import Path

import yaml

COUNTDOWN = {"numbers": [3, 5, 2], "target": 13}
FULL = COUNTDOWN | {"completion": "3*5-2 is 13</think>\n<answer>3 * 5 - 2</answer>"}
BARE = COUNTDOWN | {"completion": "<answer>3*5-2</answer>"}
FLAGS = [
    "--engine",
    "fake",
    "--population_size",
    "2",
    "--max_steps",
    "2",
    "--save_steps",
    "1",
    "--sigma",
    "0.02",
    "--batch_size",
    "2",
    "--reward_workers",
    "0",
]


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_file(path: Path = Path("run.yaml"), **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def train_on(model, data, *more) -> list[str]:
    """The arguments of a small run on the fake engine; later flags win."""
    where = [
        "--model_name_or_path",
        model,
        "--dataset_name",
        data,
        "--reward_funcs",
        "conciseness_reward",
        "--output_dir",
        "out",
    ]
    return list(map(str, ["train", *where, *FLAGS, *more]))


def journal(folder="out") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "journal.jsonl").read_text().splitlines()]


def settings_of(folder="out") -> dict:
    return journal(folder)[0]["config"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def module(text: str, folder: Path) -> str:
    """Write a module of the working folder under a name that no other test has; returns the name."""
    name = f"rewards_{folder.name}".replace("-", "_")
    Path(f"{name}.py").write_text(text)
    return name
