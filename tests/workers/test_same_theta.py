"""θ after a run depends only on seeds and rewards, not on the engine, the workers or tensor splits.

Every case is a real run with the command that a user types.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers import make_model
from launching import BIN, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.ray]

TRANSFORMERS, VLLM = (
    ["--engine", "transformers"],
    ["--engine", "vllm", "--vllm_enforce_eager", "true"],
)
CASES = {
    "transformers, local": ([], [*TRANSFORMERS]),
    "vllm, local": ([], [*VLLM]),
    "vllm, tensors split over two": ([], [*VLLM, "--vllm_tensor_parallel_size", "2"]),
    "transformers, ray, 1": ([], [*TRANSFORMERS, "--workers", "ray", "--num_workers", "1"]),
    "transformers, ray, 2": ([], [*TRANSFORMERS, "--workers", "ray", "--num_workers", "2"]),
    "transformers, ray, 3": ([], [*TRANSFORMERS, "--workers", "ray", "--num_workers", "3"]),
    "vllm, ray, 2": ([], [*VLLM, "--workers", "ray", "--num_workers", "2"]),
    "vllm, ray, tensors split over two": (
        [],
        [*VLLM, "--workers", "ray", "--num_workers", "1", "--vllm_tensor_parallel_size", "2"],
    ),
    "transformers, accelerate, 1": (
        torchrun(1, "--no-python"),
        [*TRANSFORMERS, "--workers", "accelerate"],
    ),
    "transformers, accelerate, 2": (
        torchrun(2, "--no-python"),
        [*TRANSFORMERS, "--workers", "accelerate"],
    ),
    "vllm, accelerate, 2": (torchrun(2, "--no-python"), [*VLLM, "--workers", "accelerate"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model of eight heads for two to share, data, and a rounding-proof reward."""
    folder = tmp_path_factory.mktemp("place")
    make_model(
        folder / "model",
        hidden_size=256,
        intermediate_size=128,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    rows = [{"prompt": f"what is {word}"} for word in ("red", "blue", "cat", "dog")]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own_rewards.py").write_text(
        "def vowels(completions, **columns):\n"
        "    return [sum(map(text.count, 'aeiou')) for text in completions]\n"
    )
    return folder


def run(place: Path, case: str) -> dict[str, object]:
    """Train for three steps; returns what the journal says of the last."""
    launcher, flags = CASES[case]
    out = place / case.replace(", ", "-").replace(" ", "-")
    command = [
        *launcher,
        str(BIN / "estune"),
        "train",
        "--model_name_or_path",
        "model",
        "--dataset_name",
        "data.jsonl",
    ]
    command += [
        "--reward_funcs",
        "own_rewards.vowels",
        "--output_dir",
        str(out),
        "--dtype",
        "float32",
        "--sigma",
        "0.05",
    ]
    command += [
        "--population_size",
        "6",
        "--max_steps",
        "3",
        "--max_completion_length",
        "2",
        *flags,
    ]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads((out / "journal.jsonl").read_text().splitlines()[-1])
    return {name: last[name] for name in ("step", "seeds", "coefficients", "rewards", "digest")}


@pytest.fixture(scope="module")
def reference(place) -> dict[str, object]:
    return run(place, "transformers, local")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [case for case in CASES if case != "transformers, local"])
def test_theta_is_the_same_to_the_bit(place, reference, case):
    assert len(set(reference["rewards"])) > 1  # else nothing would be learned, and all would agree
    assert run(place, case) == reference
