"""Launched processes exchange messages of any size, and know each other's prompts and images."""

import json
from pathlib import Path

import pytest
from helpers import WORDS, lines, make_model
from launching import BIN, finish, launch, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LARGE = """
from estune.workers.launched_process import LaunchedProcess

process, value = LaunchedProcess(), ["ä" * 3_000_000] * 2  # 36 MB as JSON
if process.leads:
    process.publish("large", value)
process.barrier("published")
assert process.is_published("large")
assert process.wait_for("large") == value
process.barrier("read")
if process.leads:
    process.delete("large")
    assert not process.is_published("large")
"""

OTHER_ROWS = """
import os, sys
from estune import ESConfig, ESTrainer

rows = [{"prompt": f"what is {word} {os.environ['RANK']}"} for word in ("red", "blue")]
config = ESConfig(output_dir=sys.argv[2], workers="accelerate", max_steps=1, population_size=2)

def zero(completions, **columns):
    return [0.0] * len(completions)

ESTrainer(sys.argv[1], zero, config, rows).train()
"""

SIGHT = """
def length(completions, image, **columns):
    return [len(each[-1]["content"]) + one.size[0] for each, one in zip(completions, image)]
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_message_may_be_larger_than_what_the_launchers_store_takes(tmp_path):
    finish(launch(torchrun(2), script(tmp_path / "large.py", LARGE)))


def test_a_process_with_other_data_than_the_leaders_is_one_line_that_says_so(tmp_path):
    model = make_model(tmp_path / "model")
    there = script(tmp_path / "rows.py", OTHER_ROWS)
    process = launch(torchrun(2), there, model, tmp_path / "out")
    _, said = process.communicate(timeout=250)
    assert process.returncode != 0
    assert "process 1: the leader, process 0, has prompts that this process lacks" in said


def test_a_model_that_sees_learns_the_same_in_launched_processes_as_in_one(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from seeing import make, picture

    monkeypatch.chdir(tmp_path)
    make("llava", Path("model"))
    rows = []
    for number in range(4):
        picture((60 * number, 90, 30)).save(f"{number}.png")
        question = [{"role": "user", "content": " ".join(WORDS[: 2 + number % 3])}]
        rows.append({"prompt": question, "image": f"{number}.png"})
    lines(Path("rows.jsonl"), rows)
    script(Path("rewards.py"), SIGHT)
    settings = {
        "model_name_or_path": "model",
        "dataset_name": "rows.jsonl",
        "reward_funcs": "rewards.length",
        "dtype": "float32",
        "sigma": 0.05,
        "population_size": 4,
        "max_steps": 2,
        "max_completion_length": 6,
        "save_steps": 2,
    }
    Path("run.yaml").write_text(json.dumps(settings))
    train = [BIN / "estune", "train", "--config", "run.yaml", "--output_dir"]
    finish(launch([], *train, "alone"))
    finish(launch(torchrun(2, "--no-python"), *train, "both", "--workers", "accelerate"))
    alone, both = (Path(out, "checkpoint-2/model.safetensors") for out in ("alone", "both"))
    assert alone.read_bytes() == both.read_bytes()
    assert alone.read_bytes() != Path("model/model.safetensors").read_bytes()
