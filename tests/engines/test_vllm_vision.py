"""Images through vLLM, on its CPU build and without torchvision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import lines
from vllm_child import SETTINGS

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
CHILD = Path(__file__).with_name("vllm_vision_child.py")


def test_members_see_the_same_on_both_engines_with_a_tuned_vision_tower(tmp_path):
    done = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path / "model")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted, found = json.loads(done.stdout.splitlines()[-1])
    assert found == wanted
    assert found[0] != found[1]


def test_a_run_with_images_ends_with_the_same_bytes_on_both_engines(tmp_path, monkeypatch):
    from seeing import make, seen_rows

    monkeypatch.chdir(tmp_path)
    make("llava", Path("model"), hidden_size=128, head_dim=32)
    rows = seen_rows(4)
    for number, row in enumerate(rows):
        row.pop("image").save(f"{number}.png")
        row["image"] = f"{number}.png"
    lines(Path("rows.jsonl"), rows)
    Path("rewards.py").write_text(
        "def length(completions, **columns): return [len(c[-1]['content']) for c in completions]\n"
    )
    usual = {
        "model_name_or_path": "model",
        "dataset_name": "rows.jsonl",
        "reward_funcs": "rewards.length",
        "sigma": 0.05,
        "population_size": 4,
        "max_steps": 2,
        "max_completion_length": 8,
        "save_steps": 2,
    }
    own = {"vllm_max_model_length": 256, "vllm_model_impl": "transformers"}
    for out, settings in {
        "transformers": {},
        "vllm": {"engine": "vllm", **own},
    }.items():
        Path(f"{out}.yaml").write_text(
            yaml.safe_dump(SETTINGS | usual | settings | {"output_dir": out})
        )
        done = subprocess.run(
            [sys.executable, "-m", "estune", "train", "--config", f"{out}.yaml"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        Path(out, "checkpoint-2/model.safetensors") for out in ("transformers", "vllm")
    )
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != Path("model/model.safetensors").read_bytes()
