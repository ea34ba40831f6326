"""The transformers engine is greedy, keeps the order, and holds exactly the member's weights."""

import pytest
import torch
from helpers import PROMPTS, generated, make_model, transformers_engine

from estune import ESConfig
from estune.common.types import Member
from estune.engines.transformers import open_engine
from estune.errors import DataError, EngineError
from estune.run.model import Model
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import Layout, layout
from estune.theta.theta import Theta
from estune.workers.base import Worker


def test_answers_are_those_of_transformers_own_greedy_generation(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny),
        AutoTokenizer.from_pretrained(tiny, padding_side="left"),
    )
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=12,
        do_sample=False,
    )
    wanted = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [answer.text for answer in generated(transformers_engine(tiny))] == wanted


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_order_and_answers_do_not_depend_on_the_batch_size_in_fp32(tiny, size):
    assert generated(transformers_engine(tiny, generation_batch_size=size)) == generated(
        transformers_engine(tiny)
    )


def test_a_conversation_goes_through_the_chat_template_and_text_goes_in_as_it_is(tiny):
    one = transformers_engine(tiny)
    chat = [{"role": "user", "content": "what is red"}]
    assert one._tokenizer.encode([chat]) == one._tokenizer.encode(["user what is red assistant "])
    assert one.prompt_lengths([chat, "what is red"]) == [5, 3]


def test_a_conversation_without_a_template_is_refused(tiny):
    one = transformers_engine(tiny)
    one._tokenizer.inner.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        generated(one, [[{"role": "user", "content": "cat"}]])


def test_token_ids_go_in_as_they_are_and_those_of_another_model_are_refused_before_anything_runs(
    tiny,
):
    one = transformers_engine(tiny)
    (ids,) = one._tokenizer.encode(["what is red"])
    assert generated(one, [ids]) == generated(one, ["what is red"])
    worker = Worker(
        Theta.load(open_checkpoint(tiny), layout(open_checkpoint(tiny)).targets(None)), one
    )
    with pytest.raises(DataError, match="token 1000000 of .* is not one of the model's"):
        worker.check_lengths({"train_dataset": [[*ids, 10**6]]})


def test_a_completion_ends_before_the_first_stop_string(tiny):
    whole = generated(transformers_engine(tiny), ["cat"])[0]
    word = whole.text.split()[2]
    cut = generated(transformers_engine(tiny, stop=[word]), ["cat"])[0]
    assert cut.text == whole.text[: whole.text.index(word)]
    assert not cut.clipped
    assert len(cut.ids) <= len(whole.ids)


def test_an_answer_that_the_budget_cut_is_marked(tiny):
    assert all(
        answer.clipped == (len(answer.ids) == 3)
        for answer in generated(transformers_engine(tiny), budget=3)
    )
    assert any(answer.clipped for answer in generated(transformers_engine(tiny), budget=1))


class Cramped:
    """`generate` with memory for two sequences."""

    def __init__(self, generate, room):
        self.generate, self.room, self.sizes = generate, room, []

    def __call__(self, input_ids, **settings):
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.room:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 9 bytes"
            )
        return self.generate(input_ids=input_ids, **settings)


def test_the_batch_is_halved_when_memory_runs_out_and_stays_so(tiny, monkeypatch):
    wanted, one = generated(transformers_engine(tiny), budget=4), transformers_engine(tiny)
    cramped = Cramped(one._model.generate, 2)
    monkeypatch.setattr(one._model, "generate", cramped)
    one._loop.most = 8
    assert generated(one, budget=4) == wanted
    assert cramped.sizes == [5, 4, 2, 2, 1]
    assert generated(one, budget=4) == wanted
    assert max(cramped.sizes[5:]) == 2


def test_no_memory_for_one_sequence_is_one_clear_error(tiny, monkeypatch):
    one = transformers_engine(tiny)
    monkeypatch.setattr(one._model, "generate", Cramped(one._model.generate, 0))
    with pytest.raises(EngineError, match="out of memory with one sequence"):
        generated(one)


def test_any_other_failure_is_not_taken_for_lack_of_memory(tiny, monkeypatch):
    one = transformers_engine(tiny)
    monkeypatch.setattr(
        one._model,
        "generate",
        lambda **settings: (_ for _ in ()).throw(RuntimeError("shapes differ")),
    )
    with pytest.raises(EngineError, match="shapes differ"):
        generated(one)


def test_a_prompt_longer_than_the_context_is_refused_naming_its_row(tmp_path):
    folder = make_model(tmp_path / "short", max_position_embeddings=8)
    with pytest.raises(DataError, match="row 1: its prompt has 12 tokens"):
        _ = Model(
            str(folder),
            ESConfig(output_dir=str(tmp_path)),
            None,
            {"train_dataset": ["cat", "cat " * 12]},
        ).workers


def test_an_answer_stays_within_the_context(tmp_path):
    folder = make_model(tmp_path / "short", max_position_embeddings=8)
    assert len(generated(transformers_engine(folder), ["one two three"], budget=100)[0].ids) <= 5


def test_near_the_end_of_the_context_answers_do_not_depend_on_the_batch_size(tmp_path):
    folder = make_model(tmp_path / "short", max_position_embeddings=14)
    alone, together = (
        generated(transformers_engine(folder, generation_batch_size=size), budget=100)
        for size in (1, 64)
    )
    assert alone == together


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_engine_holds_the_members_weights_to_the_bit(tiny, dtype):
    checkpoint = open_checkpoint(tiny)
    theta = Theta.load(checkpoint, layout(checkpoint).in_model)
    one = transformers_engine(tiny, dtype=dtype)
    worker = Worker(theta, one)
    member = Member(3, -1, 0.01, "iid", 0)
    worker.evaluate_one(member, ["cat"], max_completion_length=1)
    for name, wanted in theta.perturbed(member, lambda n: torch.empty_like(one.read(n))):
        assert wanted.dtype == getattr(torch, dtype)
        assert torch.equal(one.read(name), wanted)


def test_an_engine_whose_names_are_mixed_up_is_found_out_before_anything_is_generated(tiny):
    checkpoint = open_checkpoint(tiny)
    names = dict(layout(checkpoint).in_model)
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    names[first], names[second] = names[second], names[first]
    mixed = open_engine(tiny, Layout(names, {}), ESConfig(), "cpu", torch.float32)
    with pytest.raises(EngineError, match="does not hold θ's weights"):
        Worker(Theta.load(checkpoint, names), mixed)


def test_an_engine_that_does_not_take_a_members_weights_is_found_out(tiny):
    checkpoint = open_checkpoint(tiny)
    theta = Theta.load(checkpoint, layout(checkpoint).in_model)
    deaf = transformers_engine(tiny)
    worker = Worker(theta, deaf)
    deaf.load = lambda theta, member: None  # takes nothing
    with pytest.raises(EngineError, match="does not hold the member's weights"):
        worker.evaluate_one(Member(3, 1, 0.01, "iid", 0), ["cat"], max_completion_length=1)
