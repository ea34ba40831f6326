"""Several workers make the run that one makes, also of models that see and of mixtures."""

import json
from pathlib import Path

import pytest
from helpers import WORDS, lines, make_family
from launching import BIN, finish, launch, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LENGTH = """
def length(completions, image=(), **columns):
    sizes = [each.size[0] for each in image] or [0] * len(completions)
    return [len(each[-1]["content"]) + size for each, size in zip(completions, sizes)]
"""
LAUNCHED = (torchrun(2, "--no-python"), ["--workers", "accelerate"])
RAY = ([], ["--workers", "ray", "--num_workers", "2"])


def sees() -> None:
    """Write a model that sees, and rows with images."""
    pytest.importorskip("PIL")
    from seeing import make, seen_rows

    make("llava", Path("model"))
    rows = seen_rows(4)
    for number, row in enumerate(rows):
        row["image"].save(f"{number}.png")
        row["image"] = f"{number}.png"
    lines(Path("rows.jsonl"), rows)


def mixture() -> None:
    """Write a mixture of experts, and rows of conversations."""
    make_family(Path("model"))
    rows = [{"prompt": [{"role": "user", "content": " ".join(WORDS[:n])}]} for n in range(2, 6)]
    lines(Path("rows.jsonl"), rows)


@pytest.mark.parametrize(
    ("write", "workers"),
    [
        pytest.param(sees, LAUNCHED, id="images to launched processes"),
        pytest.param(sees, RAY, id="images to Ray", marks=pytest.mark.ray),
        pytest.param(mixture, RAY, id="a mixture on Ray", marks=pytest.mark.ray),
    ],
)
def test_several_workers_end_with_the_bytes_of_one(write, workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write()
    Path("rewards.py").write_text(LENGTH)
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
    launcher, flags = workers
    finish(launch([], *train, "one"))
    finish(launch(launcher, *train, "two", *flags))
    one, two = (Path(out, "checkpoint-2/model.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two
    assert one != Path("model/model.safetensors").read_bytes()
