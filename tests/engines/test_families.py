"""Families whose tensors transformers converts on loading train, resume and answer like others."""

import pytest
import torch
from helpers import FAMILIES, files_of, make_family, transformers_engine
from transformers import AutoModelForCausalLM

from estune import ESConfig, ESTrainer
from estune.common.types import Member, Unperturbed
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

TOKENS = 8
EIGHT = [[3 + (first * place) % 60 for place in range(1, 3 + first)] for first in range(2, 10)]
TESTED = [name for name in FAMILIES if name != "usual"]
QUICK = ("qwen3_moe", "deepseek_v3", "hrm_text")


def by_tokens(completions, completion_ids, **columns):
    """A reward that differs between most completions."""
    return [sum(ids) % 101 / 101 for ids in completion_ids]


def trained(folder, output, steps, resume=None):
    config = ESConfig(
        output_dir=str(output),
        dtype="float32",
        population_size=2,
        sigma=0.02,
        max_steps=steps,
        save_steps=2,
        save_total_limit=None,
        max_completion_length=TOKENS,
        reward_workers=0,
        num_completions_to_print=0,
        report_to="none",
    )
    trainer = ESTrainer(str(folder), by_tokens, config, [{"prompt": ids} for ids in EIGHT[:4]])
    trainer.train(resume_from_checkpoint=resume)
    return trainer.folder.path


def changed(base, final):
    """The names of the tensors that differ."""
    before = open_checkpoint(base)
    after = dict(open_checkpoint(final).read_all(before.tensors))
    return {
        name
        for name, tensor in before.read_all(before.tensors)
        if not torch.equal(tensor, after[name])
    }


def plain_answers(folder):
    """The new tokens of a plain `generate` for each of eight prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in EIGHT:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        new = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0
        )
        answers.append([token for token in new[0, ids.shape[1] :].tolist() if token != 1])
    return answers


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[3, 5, 7, 9, 11]])).logits


def aligned(model):
    """The model with parameters in memory of their own: alignment changes the last bits."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TESTED],
)
def test_two_steps_resumed_to_three_are_three_steps_and_answer_like_generate(family, tmp_path):
    base = make_family(tmp_path / "base", family)
    whole = trained(base, tmp_path / "whole", 3)
    trained(base, tmp_path / "parts", 2)
    parts = trained(base, tmp_path / "parts", 3, resume=True)
    final = whole / "checkpoint-3"
    assert files_of(final) == files_of(parts / "checkpoint-3")
    assert open_checkpoint(final).tensors == open_checkpoint(base).tensors
    assert changed(base, final) == set(layout(open_checkpoint(base)).in_model)
    engine = transformers_engine(final, generation_batch_size=1)
    answers = engine.generate(EIGHT, max_completion_length=TOKENS)
    assert [answer.ids for answer in answers] == plain_answers(final)


@pytest.mark.parametrize("family", QUICK)
def test_a_member_has_the_logits_of_a_checkpoint_with_its_weights(family, tmp_path):
    base = make_family(tmp_path / "base", family)
    checkpoint = open_checkpoint(base)
    theta = Theta.load(checkpoint, layout(checkpoint).in_model)
    engine = transformers_engine(base)
    engine.check(theta, Unperturbed(0))
    member = Member(5, 1, 0.02, "iid", 0)
    engine.load(theta, member)
    engine.check(theta, member)
    written = dict(theta.perturbed(member, lambda name: torch.empty_like(theta.tensors[name])))
    checkpoint.write(
        tmp_path / "member",
        lambda name: written.get(name, checkpoint.read(name)),
        lambda folder: None,
    )
    plain = aligned(AutoModelForCausalLM.from_pretrained(tmp_path / "member", dtype=torch.float32))
    assert torch.equal(logits(aligned(engine._model)), logits(plain))
