"""vLLM in other processes: further models, two ranks, whole runs, and what is refused before."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
import transformers
import yaml
from helpers import journal, make_family, make_model, make_tokenizer
from vllm_child import SETTINGS, SHAPE, TEXT, updated

from estune import ESConfig
from estune.cli.main import main
from estune.common.types import Member, variant_to_json
from estune.engines.transformers import open_engine
from estune.engines.vllm import VLLMEngine
from estune.engines.vllm_start import TESTED, version
from estune.errors import ModelError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

pytestmark = pytest.mark.vllm
CHILD = Path(__file__).with_name("vllm_child.py")


def child(folder: Path, settings: dict, members: list[Member], prompts=TEXT) -> dict:
    arguments = [
        json.dumps(value)
        for value in (settings, prompts, [variant_to_json(member) for member in members])
    ]
    done = subprocess.run(
        [sys.executable, CHILD, folder, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def expected(folder: Path, members: list[Member], prompts=TEXT) -> tuple[list, str]:
    """What a child answers on the transformers engine, and the digest of its θ."""
    checkpoint = open_checkpoint(folder)
    plan = layout(checkpoint)
    theta = updated(Theta.load(checkpoint, plan.in_model))
    config = ESConfig(**SETTINGS)
    engine = open_engine(folder, plan, config, "cpu", torch.float32)
    answers = []
    for member in members:
        engine.load(theta, member)
        answers.append(
            [asdict(answer) for answer in engine.generate(prompts, max_completion_length=12)]
        )
    return answers, theta.digest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "implementation"),
    [("Qwen2", "vllm"), ("Qwen2", "transformers"), ("Gemma2", "vllm"), ("GPTNeoX", "auto")],
)
def test_other_models_answer_as_on_the_transformers_engine(tmp_path, kind, implementation):
    """With biases, with norms that add one, and GPT-NeoX, for which vLLM uses transformers."""
    torch.manual_seed(0)
    shape = SHAPE | {
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "head_dim": 32,
    }
    shape |= {"bos_token_id": None, "num_key_value_heads": 8 if kind == "GPTNeoX" else 4}
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**shape)
    )
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases are zero and norms one, which would hide them
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    prompts = [[5, 6, 7, 8, 9, 10], [24], [17], [7, 8, 9, 20, 21, 22, 30], [14, 3]]
    members = [Member(1, sign, 0.02, "iid", 1) for sign in (1, -1)]
    there = child(
        tmp_path / "model", SETTINGS | {"vllm_model_impl": implementation}, members, prompts
    )
    assert (there["answers"], there["digest"]) == expected(tmp_path / "model", members, prompts)


def test_two_ranks_answer_as_one_and_map_the_same_centre(tmp_path):
    folder = make_model(tmp_path / "model", **SHAPE)
    members = [Member(1, sign, 0.02, "iid", 1) for sign in (1, -1)]
    two = child(folder, SETTINGS | {"engine": "vllm", "vllm_tensor_parallel_size": 2}, members)

    assert (two["answers"], two["digest"]) == expected(folder, members)
    assert [count for _, count in two["mapping"]] == [1, 1]
    assert not any(psutil.pid_exists(pid) for pid, _ in two["mapping"])


@pytest.mark.slow
def test_two_ranks_that_split_each_expert_answer_as_the_transformers_engine(tmp_path):
    folder = make_family(tmp_path / "model", "qwen3_moe", moe_intermediate_size=128)
    members = [Member(1, sign, 0.02, "iid", 1) for sign in (1, -1)]
    two = child(folder, SETTINGS | {"engine": "vllm", "vllm_tensor_parallel_size": 2}, members)
    assert (two["answers"], two["digest"]) == expected(folder, members)


def train(folder: Path, out: Path, engine: str, steps: int) -> None:
    settings = SETTINGS | {
        "engine": engine,
        "model_name_or_path": str(folder),
        "task": "conciseness",
        "output_dir": str(out),
    }
    settings |= {
        "population_size": 4,
        "sigma": 0.02,
        "batch_size": 3,
        "max_completion_length": 8,
        "save_steps": 1,
        "max_steps": steps,
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings | {"resume_from_checkpoint": out.exists()}))
    done = subprocess.run(
        [sys.executable, "-m", "estune", "train", "--config", file],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_runs_change_their_engine_half_way_and_end_with_the_same_bytes(tmp_path):
    folder = make_model(tmp_path / "model", **SHAPE)
    for out, engines in {
        "plain": ["transformers"] * 2,
        "there": ["vllm", "transformers"],
        "back": ["transformers", "vllm"],
    }.items():
        for steps, engine in enumerate(engines, start=1):
            train(folder, tmp_path / out, engine, 2 * steps)
    wanted = (tmp_path / "plain/checkpoint-4/model.safetensors").read_bytes()
    assert wanted != (tmp_path / "plain/checkpoint-2/model.safetensors").read_bytes()
    for out in ("there", "back"):
        assert (tmp_path / out / "checkpoint-4/model.safetensors").read_bytes() == wanted
        assert len(journal(tmp_path / out)) == len(journal(tmp_path / "plain"))


@pytest.mark.slow
def test_a_mixture_of_experts_trains_and_resumes_on_vllm_as_on_transformers(tmp_path):
    folder = make_family(tmp_path / "model")
    train(folder, tmp_path / "plain", "transformers", 2)
    for steps in (1, 2):
        train(folder, tmp_path / "there", "vllm", steps)
    wanted = (tmp_path / "plain/checkpoint-2/model.safetensors").read_bytes()
    assert (tmp_path / "there/checkpoint-2/model.safetensors").read_bytes() == wanted
    assert wanted != (folder / "model.safetensors").read_bytes()


def test_without_vllm_one_line_says_how_to_install_it(
    mini, data, monkeypatch, capsys, in_a_folder_of_its_own
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    run = [
        "train",
        "--model_name_or_path",
        str(mini),
        "--dataset_name",
        str(data),
        "--reward_funcs",
        "conciseness_reward",
    ]
    assert main([*run, "--engine", "vllm"]) == 2
    err = capsys.readouterr().err
    assert err.startswith('estune: engine: vllm is not installed; pip install "estune[vllm]"')
    assert err.count("\n") == 1


def test_the_version_that_is_installed_is_one_of_those_that_were_tested():
    assert version() in TESTED


def test_a_model_whose_heads_cannot_be_split_is_refused_in_one_line(tmp_path):
    folder = make_model(
        tmp_path / "nine",
        **SHAPE | {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3},
    )
    checkpoint = open_checkpoint(folder)
    config = ESConfig(**SETTINGS | {"engine": "vllm", "vllm_tensor_parallel_size": 2})
    with pytest.raises(
        ModelError, match=r"cannot load this model \(.*9.* divisible by .*2"
    ) as caught:
        VLLMEngine(checkpoint, layout(checkpoint), config, "cpu", torch.float32)
    assert "\n" not in str(caught.value)
