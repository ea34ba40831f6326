"""The command on a real model: SmolLM2-135M-Instruct with the transformers engine."""

import json

import pytest
import torch
from helpers import GGUF

from estune import ESConfig, ESTrainer
from estune.tasks import get_task
from estune.theta.checkpoint import open_checkpoint, resolve
from estune.theta.parameters import layout
from estune.theta.theta import Theta

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm() -> str:
    assert GGUF.exists(), "run `make model` first"
    return str(GGUF)


def test_a_gguf_becomes_a_checkpoint_with_all_its_parameters(smollm):
    checkpoint = open_checkpoint(resolve(smollm))
    plan = layout(checkpoint)
    assert (
        sum(torch.Size(checkpoint.tensors[name].shape).numel() for name in plan.in_model)
        == 134_515_008
    )
    assert "model.embed_tokens.weight" in plan.in_model


def test_a_checkpoint_answers_as_the_engine_did(smollm, tmp_path):
    """In fp32, AutoModelForCausalLM gives the greedy completions of the run's own evaluation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = get_task("conciseness")
    held_out = task.test(6)
    config = ESConfig(
        output_dir=str(tmp_path / "out"),
        population_size=2,
        sigma=0.005,
        max_steps=2,
        batch_size=4,
        max_completion_length=12,
        dtype="float32",
        eval_strategy="steps",
    )
    ESTrainer(smollm, task.reward_funcs[0], config, task.train(8), held_out).train()
    answers = [
        json.loads(line)["completion"]
        for line in (tmp_path / "out/completions/step-2.jsonl").read_text().splitlines()
    ]

    folder = tmp_path / "out" / "checkpoint-2"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )
    assert model.dtype == torch.float32
    batch = tokenizer.apply_chat_template(
        [row["prompt"] for row in held_out],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    out = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert (
        tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        == answers
    )


def test_a_member_of_the_real_model_is_the_same_for_one_thread_and_for_four(smollm):
    from estune.common.types import Member

    checkpoint = open_checkpoint(resolve(smollm))
    one = Theta.load(checkpoint, layout(checkpoint).targets(None))
    four = Theta(one.tensors, threads=4)
    member = Member(2**64 - 1, -1, 0.005, "iid", 0)
    name = "model.embed_tokens.weight"

    def weights(theta: Theta) -> torch.Tensor:
        tensors = theta.perturbed(
            member, lambda n: torch.empty(one.tensors[n].shape, dtype=torch.bfloat16)
        )
        return next(tensor for n, tensor in tensors if n == name)

    assert torch.equal(weights(one), weights(four))
