"""The common prefix is computed once and ended sequences leave; the completions stay the same."""

import pytest
import torch
import transformers
from helpers import generated, make_model, transformers_engine
from kinds_of_cache import BEGINNING, CONFIGS, PROMPTS, saved

from estune import ESConfig
from estune.common.types import Sampling
from estune.engines.cache_reuse import Reuse
from estune.engines.grouped_attention import NAME, attend
from estune.engines.stops import decoded
from estune.engines.transformers import TransformersEngine, open_engine
from estune.theta.parameters import Layout


def wanted(folder, one: TransformersEngine, budget: int):
    """What transformers generates for all prompts at once, cut where the engine cuts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")(
        PROMPTS, return_tensors="pt", padding=True
    )
    length = batch["input_ids"].shape[1]
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=budget,
        do_sample=False,
    )
    return [
        one._tokenizer.completion(row, one._end, budget).ids for row in out[:, length:].tolist()
    ]


@pytest.mark.parametrize("kind", CONFIGS)
def test_answers_are_those_of_transformers_own_generation_whatever_a_model_keeps(kind, tmp_path):
    folder = saved(kind, tmp_path)
    one = open_engine(folder, Layout({}, {}), ESConfig(), "cpu", torch.float32)
    assert [answer.ids for answer in generated(one, PROMPTS, 20)] == wanted(folder, one, 20)


@pytest.fixture(scope="session")
def ending(tmp_path_factory):
    """A tiny model whose answers to PROMPTS end after 1 to 31 tokens, two of them not."""
    return make_model(tmp_path_factory.mktemp("ending"), tied=False, seed=2)


@pytest.fixture
def counted(ending):
    """An engine, and the shapes of what went through its embeddings."""
    one, shapes = transformers_engine(ending), []
    one._model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: shapes.append(tuple(inputs[0].shape))
    )
    return one, shapes


def one_at_a_time(one, **settings):
    return [
        answer
        for prompt in PROMPTS
        for answer in one.generate([prompt], max_completion_length=40, **settings)
    ]


def test_what_all_prompts_begin_with_is_computed_once(counted):
    one, shapes = counted
    lengths = one.prompt_lengths(PROMPTS)
    generated(one, PROMPTS, 1)
    assert shapes == [(1, min(lengths) - 1), (8, max(lengths) - min(lengths) + 1)]


def test_a_beginning_that_is_too_short_to_save_a_pass_is_computed_with_the_rest(counted):
    one, shapes = counted
    generated(one, ["cat x", "cat y y", "cat z"], 1)
    assert shapes == [(3, 3)]


def test_samples_of_one_prompt_share_all_of_it_but_the_last_token(counted):
    one, shapes = counted
    one.generate([BEGINNING], max_completion_length=1, sampling=Sampling(n=6))
    assert shapes == [(1, len(BEGINNING.split()) - 1), (6, 1)]


def test_rows_that_have_ended_are_taken_out(counted):
    one, shapes = counted
    lengths = [len(answer.ids) for answer in generated(one, PROMPTS, 40)]
    steps = [size for size, width in shapes[2:] if width == 1]
    assert steps == [sum(length >= step // 8 * 8 for length in lengths) for step in range(1, 40)]


def test_answers_do_not_depend_on_who_has_ended(ending):
    one = transformers_engine(ending)
    assert generated(one, PROMPTS, 40) == one_at_a_time(one)


def test_drawn_answers_do_not_depend_on_who_has_ended(ending):
    one, sampling = transformers_engine(ending), Sampling(n=3, seed=5)
    assert one.generate(PROMPTS, max_completion_length=40, sampling=sampling) == one_at_a_time(
        one, sampling=sampling
    )


@pytest.mark.parametrize("length", range(4, 12))
def test_a_row_ends_with_its_stop_string_wherever_that_is(ending, length):
    one = transformers_engine(ending)
    text = decoded(one._tokenizer.inner, generated(one, PROMPTS, 40)[2].ids[:length]).strip()
    one = transformers_engine(ending, stop=[text])
    together = generated(one, PROMPTS, 40)
    assert together == one_at_a_time(one)
    assert text in decoded(one._tokenizer.inner, together[2].ids)
    assert text not in decoded(one._tokenizer.inner, together[2].ids[:-1])


def test_nan_is_noted_in_its_row_alone(ending):
    one = transformers_engine(ending)
    (word,) = one._tokenizer.encode(["green"])[0]
    one._model.get_input_embeddings().weight.data[word] = torch.nan
    assert [answer.finite for answer in generated(one, ["cat x", "green dog", "cat"], 20)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("length", "past"), [(1, 9), (5, 9), (5, 0)])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_groups_is_transformers_own(length, past, masked):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    query, key, value = (
        torch.randn(2, heads, size, 16)
        for heads, size in ((6, length), (2, past + length), (2, past + length))
    )
    mask = (
        torch.ones(length, past + length, dtype=torch.bool).tril(past).repeat(2, 1, 1, 1)
        if masked
        else None
    )
    if masked:
        mask[0, :, :, 0] = past == 0
    ours, theirs = (
        function(module, query, key, value, mask, scaling=0.2)[0]
        for function in (attend, sdpa_attention_forward)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_model_on_the_cpu_attends_in_groups_unless_told_otherwise(tiny):
    assert transformers_engine(tiny)._model.config._attn_implementation == NAME
    chosen = transformers_engine(tiny, model_init_kwargs={"attn_implementation": "eager"})
    assert chosen._model.config._attn_implementation == "eager"


def test_attention_in_groups_is_not_written_into_a_checkpoint(tiny, tmp_path):
    transformers_engine(tiny)._model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (
            "llama",
            "the prompts' common prefix is computed once, "
            "and completions that have ended leave the batch",
        ),
        (
            "a sliding window",
            "common prefix is computed once per prompt: "
            "its cache forgets tokens (DynamicSlidingWindowLayer)",
        ),
        (
            "positions by length",
            "common prefix is computed once per prompt: its positions depend on the whole length",
        ),
        ("learned positions", "the prompts' common prefix is computed once"),
        (
            "no positions",
            "common prefix is computed once per prompt: its forward has no argument position_ids",
        ),
        ("a state", "completions that have ended stay in the batch"),
    ],
)
def test_one_line_at_the_start_says_what_is_not_computed_twice_or_why_it_is(
    kind, line, tmp_path, caplog
):
    caplog.set_level("INFO", "estune")
    open_engine(saved(kind, tmp_path), Layout({}, {}), ESConfig(), "cpu", torch.float32)
    (record,) = [
        record for record in caplog.records if record.name == "estune.engines.transformers"
    ]
    assert line in record.getMessage()
    assert (record.levelname == "INFO") == ("per prompt" not in line and "stay" not in line)


def test_a_cache_is_found_under_every_name_that_transformers_has_had_for_it():
    def forward(self, input_ids=None, past_key_values=None, position_ids=None):
        """As before transformers 5.24."""

    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"])
    newest = Reuse.of(model)
    old = Reuse.of(
        type(
            "Old",
            (),
            {"forward": forward, "config": model.config, "__module__": "transformers.old"},
        )()
    )
    none = Reuse.of(
        type("None_", (), {"forward": lambda self, input_ids: None, "config": model.config})()
    )
    assert newest.saves_all and old.saves_all and old.argument == "past_key_values"
    assert "its forward has no argument cache or past_key_values" in none.describe()


def test_no_key_is_copied_for_each_query_head(ending, monkeypatch):
    heads = []
    usual = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **settings):
        heads.append(key.shape[1])
        return usual(query, key, value, **settings)

    one = transformers_engine(ending)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    generated(one, PROMPTS, 8)
    assert set(heads) == {2}, "the model has 4 query heads that share 2 keys"
