"""The vLLM engine on a CPU completes as the transformers engine, and notices missing weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from both_engines import BASE, MEMBERS, both_engines, load_both, same_answers
from helpers import make_model
from transformers import AutoTokenizer
from vllm_child import SETTINGS, SHAPE, TEXT, updated

import estune.engines.vllm_reload
from estune import ESConfig
from estune.common.types import Member
from estune.engines.stops import Stops
from estune.engines.vllm import VLLMEngine
from estune.engines.vllm_direct_writer import DirectWriter
from estune.engines.vllm_start import TESTED, version
from estune.engines.vllm_worker import VariantLoader
from estune.errors import ConfigError, DataError, EngineError, ModelError
from estune.noise import kernels
from estune.noise import torch as by_torch
from estune.tasks import get_task
from estune.theta.checkpoint import resolve
from estune.theta.theta import Theta

pytestmark = pytest.mark.vllm
SPECIAL = ["a", "to", "was", "when", "how", "sky", "red", "cat", "one", "three", "x", "z"]
CHAT = [{"role": "user", "content": "what is red"}]


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> SimpleNamespace:
    return both_engines(make_model(tmp_path_factory.mktemp("tied"), **SHAPE))


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> SimpleNamespace:
    """A model with several end tokens, one named by its config only, and with special words."""
    folder = make_model(tmp_path_factory.mktemp("untied"), tied=False, seed=1, **SHAPE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [1, 10]}))
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, 5, 6]}))
    return both_engines(folder)


@pytest.fixture(params=["tied", "untied"])
def both(request) -> SimpleNamespace:
    return request.getfixturevalue(request.param)


# the same answers


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_answers_as_on_the_transformers_engine_in_fp32(both, member):
    load_both(both, member)
    same_answers(both)


def test_members_differ(tied):
    answers = []
    for member in MEMBERS:
        load_both(tied, member)
        answers.append(str(same_answers(tied)))
    assert len(set(answers)) == len(MEMBERS)


def test_text_token_ids_and_conversations_go_in_alike(tied):
    load_both(tied, MEMBERS[1])
    ids = tied.engine._tokenizer.encode([CHAT])[0]
    answers = same_answers(tied, [CHAT, ids, "user what is red assistant ", "cat"])
    assert answers[0] == answers[1] == answers[2] != answers[3]
    assert tied.engine.prompt_lengths([CHAT, ids, "what is red"]) == [5, 5, 3]


def test_answers_come_in_the_order_of_the_prompts(tied):
    load_both(tied, MEMBERS[1])
    assert same_answers(tied, TEXT[::-1]) == same_answers(tied)[::-1]


def test_no_prompts_have_no_answers(tied):
    load_both(tied, BASE)
    assert tied.engine.generate([], max_completion_length=4) == []


def test_a_completion_ends_before_the_first_stop_string(tied, monkeypatch):
    load_both(tied, BASE)
    whole = same_answers(tied, ["cat"])[0]
    word = whole.text.split()[2]
    for engine in (tied.engine, tied.reference):
        monkeypatch.setattr(engine._tokenizer, "stops", Stops(engine._tokenizer.inner, [word]))
    cut = same_answers(tied)[1]
    assert cut.text == whole.text[: whole.text.index(word)]
    assert not cut.clipped
    assert len(cut.ids) < len(whole.ids)


def test_a_stop_string_that_names_a_special_token_ends_a_completion_on_both_engines(
    untied, monkeypatch
):
    load_both(untied, BASE)
    tokens = untied.engine._tokenizer.inner.convert_ids_to_tokens
    answers = same_answers(untied, budget=40)
    ids, at = next(
        (one.ids, i)
        for one in answers
        for i, token in enumerate(one.ids)
        if tokens(token) in SPECIAL and i
    )
    word = tokens(ids[at])
    assert all(word not in one.text for one in answers)
    for engine in (untied.engine, untied.reference):
        monkeypatch.setattr(engine._tokenizer, "stops", Stops(engine._tokenizer.inner, [word]))
    cut = next(one for one in same_answers(untied, budget=40) if one.ids == ids[: at + 1])
    assert not cut.clipped


def test_an_answer_that_the_budget_cut_is_marked(untied):
    load_both(untied, BASE)
    assert all(answer.clipped for answer in same_answers(untied, budget=1) if answer.ids)
    assert {answer.clipped for answer in same_answers(untied, budget=5)} == {True, False}


def test_any_end_token_of_the_models_generation_config_ends_a_completion(untied):
    load_both(untied, BASE)
    answers = same_answers(untied, budget=40)
    assert not {1, 5, 6, 10} & {token for answer in answers for token in answer.ids}
    untied.engine._end, ends = {1}, untied.engine._end
    without = untied.engine.generate(TEXT, max_completion_length=40)
    untied.engine._end = ends
    assert {5, 6, 10} & {token for answer in without for token in answer.ids}


def test_near_the_end_of_the_context_all_prompts_have_the_room_of_the_longest(tied):
    load_both(tied, BASE)
    answers = same_answers(tied, ["cat", "the " * 505], budget=100)
    assert max(len(answer.ids) for answer in answers) == tied.engine.context_length - 505 == 7


def test_a_member_after_an_update_answers_as_on_the_transformers_engine(untied):
    theta = updated(Theta.load(untied.checkpoint, untied.layout.in_model, share=True))
    load_both(untied, Member(3, 1, 0.02, "iid", 1), theta)
    after = same_answers(untied)
    load_both(untied, Member(3, 1, 0.02, "iid", 0))
    assert after != same_answers(untied)


def test_parameters_that_are_not_tuned_stay_as_in_the_files_also_within_a_fused_layer(tied):
    (name,) = tied.layout.targets([r"layers\.0\.self_attn\.q_proj"])
    theta = Theta.load(tied.checkpoint, [name], share=True)
    member = Member(3, 1, 0.5, "iid", 0)
    load_both(tied, BASE)
    before = same_answers(tied)
    load_both(tied, member, theta)
    assert same_answers(tied) != before
    tied.engine.check(theta, member)
    load_both(tied, BASE)  # all parameters again, so that the reference is whole
    assert same_answers(tied) == before


@pytest.fixture(scope="module")
def real() -> SimpleNamespace:
    """Kept like the other engines of this process: with the first, vLLM deletes what they share."""
    from helpers import GGUF

    assert GGUF.exists(), "run `make model` first"
    return both_engines(resolve(str(GGUF)), engine_kwargs={"kv_cache_memory_bytes": 1 << 29})


@pytest.mark.slow
def test_the_real_model_answers_as_on_the_transformers_engine(real):
    prompts = [row["prompt"] for row in get_task("conciseness").train(6)]
    real.engine.check(real.theta, BASE)
    for member in (Member(1, 1, 0.005, "iid", 0), Member(1, -1, 0.005, "iid", 0)):
        load_both(real, member)
        same_answers(real, prompts, budget=16)


# weights


@pytest.mark.parametrize("member", MEMBERS[:2])
def test_an_engine_that_takes_all_weights_passes_its_check(both, member):
    both.engine.load(both.theta, member)
    both.engine.check(both.theta, member)
    both.reference.load(both.theta, member)
    same_answers(both)


def given(monkeypatch, change) -> None:
    """Let the engine reload what `change` makes of name → tensor."""
    whole = VariantLoader.weights
    monkeypatch.setattr(DirectWriter, "learn", lambda *_: None)
    monkeypatch.setattr(
        VariantLoader,
        "weights",
        lambda self, member: iter(change(dict(whole(self, member))).items()),
    )


def test_a_parameter_that_was_not_loaded_is_an_error_whenever_a_member_is(untied, monkeypatch):
    with monkeypatch.context() as changed:
        untied.engine._attached = None  # forgets how members can be written without reloading
        given(changed, lambda weights: weights.pop("model.norm.weight") is None or weights)
        with pytest.raises(
            EngineError,
            match=r"vLLM did not load 1 of its parameters, model\.norm\.weight among them",
        ):
            untied.engine.load(untied.theta, MEMBERS[1])
    load_both(untied, MEMBERS[1])
    same_answers(untied)


@pytest.mark.parametrize(
    "part",
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"],
)
def test_a_part_of_a_fused_layer_that_was_not_loaded_is_found_by_the_check(
    untied, monkeypatch, part
):
    load_both(untied, BASE)
    with monkeypatch.context() as changed:
        given(
            changed,
            lambda weights: {
                name: tensor for name, tensor in weights.items() if f"layers.1.{part}" not in name
            },
        )
        with pytest.raises(EngineError, match="weights in "):
            untied.engine.check(untied.theta, BASE)
    load_both(untied, BASE)
    untied.engine.check(untied.theta, BASE)


@pytest.mark.parametrize(
    "pair",
    [
        ("layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"),
        ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"),
    ],
)
def test_weights_under_each_others_names_are_found_by_the_check(untied, monkeypatch, pair):
    load_both(untied, BASE)
    one, other = (f"model.{name}.weight" for name in pair)
    with monkeypatch.context() as changed:
        given(changed, lambda weights: weights | {one: weights[other], other: weights[one]})
        with pytest.raises(
            EngineError, match="does not hold θ's weights in .*; its layout may differ"
        ):
            untied.engine.check(untied.theta, BASE)
    load_both(untied, BASE)
    untied.engine.check(untied.theta, BASE)


def test_an_output_layer_that_stays_packed_from_old_weights_is_found_by_the_check(
    tied, monkeypatch
):
    load_both(tied, BASE)
    with monkeypatch.context() as changed:
        changed.setattr(estune.engines.vllm_reload, "_tied_heads", lambda model: [])
        with pytest.raises(EngineError, match="vLLM does not take new weights in lm_head"):
            tied.engine.check(tied.theta, BASE)
    load_both(tied, BASE)
    tied.engine.check(tied.theta, BASE)


def test_a_member_that_was_not_taken_is_found_by_the_check(untied, monkeypatch):
    load_both(untied, BASE)
    with pytest.raises(EngineError, match="does not hold the member's weights"):
        untied.engine.check(untied.theta, MEMBERS[1])  # never loaded
    load_both(untied, BASE)


def test_after_a_member_that_overflows_the_next_one_is_right(both):
    with pytest.raises(ModelError, match="overflows torch.float32"):
        both.engine.load(both.theta, Member(1, 1, 3e38, "iid", 0))
    load_both(both, MEMBERS[1])
    same_answers(both)
    both.engine.check(both.theta, MEMBERS[1])


def test_a_centre_that_is_not_shared_is_refused(tied):
    with pytest.raises(EngineError, match="share=True"):
        tied.engine.load(Theta.load(tied.checkpoint, tied.layout.in_model), BASE)


def test_a_centre_on_a_device_is_read_where_it_is_by_the_engine_in_this_process(
    untied, monkeypatch
):
    monkeypatch.setattr(
        kernels, "on_device", lambda kind: by_torch
    )  # CPU tensors stand for a device's
    theta = updated(Theta.load(untied.checkpoint, untied.layout.in_model))
    member = Member(3, 1, 0.02, "iid", 1)
    load_both(untied, member, theta)
    assert theta.address is None
    same_answers(untied)
    untied.engine.check(theta, member)


def test_a_token_that_the_model_does_not_know_is_one_error_and_the_next_prompts_are_answered(tied):
    load_both(tied, BASE)
    with pytest.raises(DataError, match="row 1: token 6000 of .* is not one of the model's 64"):
        tied.engine.generate([[5, 6], [5, 6_000]], max_completion_length=4)
    load_both(tied, MEMBERS[1])
    same_answers(tied)


# dtypes


def test_in_bf16_the_engine_holds_the_members_weights_to_the_bit(tied):
    engine = VLLMEngine(tied.checkpoint, tied.layout, ESConfig(**SETTINGS), "cpu", torch.bfloat16)
    engine.load(tied.theta, MEMBERS[1])
    engine.check(tied.theta, MEMBERS[1])
    worker = engine._llm.llm_engine.model_executor.driver_worker.worker
    assert worker._estune.dtypes == dict.fromkeys(tied.theta.tensors, torch.bfloat16)
    held = dict(worker.model_runner.get_model().named_parameters())
    for name, wanted in tied.theta.perturbed(
        MEMBERS[1], lambda name: torch.empty(tied.theta.tensors[name].shape, dtype=torch.bfloat16)
    ):
        if "norm" in name or "embed" in name:
            assert torch.equal(held[name], wanted), name


# what is refused


def test_a_version_that_lacks_what_is_needed_is_named_with_those_that_were_tested(
    tied, monkeypatch
):
    import vllm.model_executor.model_loader.reload as reload

    monkeypatch.delattr(reload, "finalize_layerwise_reload")
    with pytest.raises(
        ConfigError,
        match=rf"vLLM {version()} lacks .*finalize_layerwise_reload.*; tested with {TESTED[0]}$",
    ):
        VLLMEngine(tied.checkpoint, tied.layout, ESConfig(**SETTINGS), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [({"max_num_sequences": 4}, "max_num_sequences"), ({"max_num_seqs": "many"}, "str")],
)
def test_an_engine_kwarg_that_vllm_does_not_take_is_one_line(tied, kwargs, reason):
    config = ESConfig(**SETTINGS | {"engine_kwargs": kwargs})
    with pytest.raises(
        ConfigError, match=rf"^engine_kwargs: vLLM .* does not take them \(.*{reason}.*\)$"
    ) as caught:
        VLLMEngine(tied.checkpoint, tied.layout, config, "cpu", torch.float32)
    assert "\n" not in str(caught.value)
