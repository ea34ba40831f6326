"""Mixtures of experts on vLLM: members are what a fresh engine loads, and errors are found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.vllm
CHILD = Path(__file__).with_name("vllm_families_child.py")

# The families that the CPU build runs: those of which every tensor is written directly, and others.
WHOLLY = ["qwen3_moe", "mixtral", "qwen2_moe", "olmoe", "glm4_moe", "granitemoe", "afmoe"]
WHOLLY += ["granitemoeshared"]
PARTLY = ["gpt_oss", "granitemoehybrid", "lfm2_moe", "llama4_text", "qwen3_next"]
PARTLY += ["deepseek_v2", "deepseek_v3"]

RIGHT = {
    "member is a fresh engine's": True,
    "centre is the first again": True,
    "member differs": True,
}


def child(folder: Path, cases: list, **settings) -> list[dict]:
    done = subprocess.run(
        [sys.executable, CHILD, folder, json.dumps(settings), json.dumps(cases)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("families", [WHOLLY, PARTLY])
def test_members_compute_what_a_fresh_engine_does_and_the_centre_comes_back(tmp_path, families):
    results = child(tmp_path, [[family, None] for family in families], dtype="bfloat16")
    for family, result in zip(families, results, strict=True):
        direct, tensors = result.pop("direct", 0), result.pop("tensors", 0)
        assert result == RIGHT, family
        assert direct == tensors if families is WHOLLY else 0 < direct < tensors, family


@pytest.mark.slow
def test_weights_that_vllm_does_not_compute_with_are_found_at_the_start(tmp_path):
    cases = {
        ("qwen3_moe", "experts are packed once"): "routed_experts.w13_weight",
        ("gpt_oss", "copies into nothing"): "does not take new weights in model.layers.0",
        # The CPU build leaves out the biases when it chooses experts.
        ("ernie4_5_moe", None): "weights in model.layers.N.mlp.moe_statics.e_score_correction_bias",
    }
    if torch.cpu._is_avx512_bf16_supported():  # otherwise vLLM does not pack them
        cases["granitemoehybrid", "convolutions stay"] = "weights in model.layers.N.mamba.conv1d"
    results = child(tmp_path, [list(case) for case in cases], dtype="bfloat16")
    for (case, message), result in zip(cases.items(), results, strict=True):
        assert message in result.get("error", ""), case
        assert "\n" not in result["error"]
