"""Drawn tokens follow the model's probabilities, and depend on the seed alone, not on the batch."""

import numpy as np
import pytest
import torch
from helpers import PROMPTS, make_model, transformers_engine

from estune.common.types import Sampling
from estune.engines.sampling import draw, sample_seeds

BUDGET = 12


def drawn(one, prompts=PROMPTS, **settings):
    return one.generate(
        prompts, max_completion_length=BUDGET, sampling=Sampling(**{"n": 3, "seed": 5} | settings)
    )


def test_n_completions_of_the_first_prompt_come_first_then_those_of_the_next(tiny):
    one = transformers_engine(tiny)
    assert drawn(one) == [answer for prompt in PROMPTS for answer in drawn(one, [prompt])]


@pytest.mark.parametrize("size", [1, 4, 64])
def test_drawn_answers_do_not_depend_on_the_batch_size_in_fp32(tiny, size):
    assert drawn(transformers_engine(tiny, generation_batch_size=size)) == drawn(
        transformers_engine(tiny)
    )


def test_the_first_samples_stay_the_same_when_more_are_asked_for(tiny):
    one = transformers_engine(tiny)
    assert drawn(one, ["cat"], n=5)[:2] == drawn(one, ["cat"], n=2)


def test_another_seed_and_another_sample_are_other_draws(tiny):
    one = transformers_engine(tiny)
    first = drawn(one, ["cat"])
    assert len({answer.text for answer in first}) == 3
    assert drawn(one, ["cat"], seed=6) != first


def test_drawing_leaves_the_greedy_answers_and_torchs_own_stream_alone(tiny):
    one = transformers_engine(tiny)
    greedy, state = one.generate(PROMPTS, max_completion_length=BUDGET), torch.get_rng_state()
    drawn(one)
    assert one.generate(PROMPTS, max_completion_length=BUDGET) == greedy
    assert torch.equal(torch.get_rng_state(), state)


def test_nearly_no_temperature_or_probability_to_draw_from_is_greedy(tiny):
    one = transformers_engine(tiny)
    greedy = one.generate(PROMPTS, max_completion_length=BUDGET)
    assert drawn(one, n=1, temperature=1e-4) == greedy
    assert drawn(one, n=1, top_p=1e-6) == greedy


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_tokens_come_as_often_as_their_probability_says(temperature, top_p):
    from scipy.stats import chisquare

    scores, count = torch.tensor([0.3, -1.0, 1.2, -torch.inf, 0.0]), 20_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(count, np.float32))
    tokens = draw(scores.expand(count, -1), uniform, Sampling(temperature, top_p))
    wanted = (scores / temperature).softmax(0)
    if top_p < 1:
        keep = wanted.argsort(descending=True)
        kept = keep[: int((wanted[keep].cumsum(0) < top_p).sum()) + 1]
        wanted = torch.zeros(5).scatter(0, kept, wanted[kept])
        wanted /= wanted.sum()
    seen = torch.bincount(tokens, minlength=5)
    assert seen[wanted == 0].sum() == 0
    there = wanted > 0
    assert (
        chisquare(
            seen[there].numpy(),
            count * wanted[there].double().numpy() / wanted[there].double().sum().item(),
        ).pvalue
        > 0.001
    )


def test_the_last_number_below_one_never_draws_a_token_without_probability():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert draw(
        scores, torch.tensor([np.nextafter(np.float32(1), np.float32(0))]), Sampling()
    ).tolist() == [1]
    assert draw(scores.flip(-1), torch.tensor([0.0]), Sampling()).tolist() == [2]


def test_seeds_differ_by_prompt_sample_and_seed():
    seeds = [
        s
        for ids in ([1], [2], [1, 2])
        for seed in (0, 1)
        for s in sample_seeds(ids, Sampling(n=4, seed=seed))
    ]
    assert len(set(seeds)) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_draws_the_same_for_a_seed_and_each_token_as_often_as_its_probability_says(tmp_path):
    from vllm_child import SETTINGS, SHAPE

    from estune import ESConfig
    from estune.engines.vllm import VLLMEngine
    from estune.theta.checkpoint import open_checkpoint
    from estune.theta.parameters import layout

    folder = make_model(tmp_path / "model", **SHAPE)
    checkpoint = open_checkpoint(folder)
    one = VLLMEngine(checkpoint, layout(checkpoint), ESConfig(**SETTINGS), "cpu", torch.float32)
    greedy = one.generate(PROMPTS, max_completion_length=BUDGET)
    first = drawn(one)
    assert len(first) == 3 * len(PROMPTS)
    assert drawn(one) == first
    assert drawn(one, seed=6) != first
    assert drawn(one, ["cat"]) == first[3:6]
    assert one.generate(PROMPTS, max_completion_length=BUDGET) == greedy
    few = SETTINGS | {"engine_kwargs": SETTINGS["engine_kwargs"] | {"max_num_batched_tokens": 32}}
    narrow = VLLMEngine(checkpoint, layout(checkpoint), ESConfig(**few), "cpu", torch.float32)
    assert (
        drawn(narrow, PROMPTS * 10) == first * 10
    )  # far more than it reads in one go, which it cannot draw for on a CPU
    reference, count = transformers_engine(folder), 600
    sampling, wanted = (
        Sampling(n=count),
        reference._model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(-1),
    )
    for each in (one, reference):
        tokens = [
            answer.ids[0] if answer.ids else None
            for answer in each.generate([[5, 6]], max_completion_length=1, sampling=sampling)
        ]
        for token in range(5, 64):
            spread = float((wanted[token] * (1 - wanted[token]) / count).sqrt())
            assert tokens.count(token) / count == pytest.approx(
                float(wanted[token]), abs=4.5 * spread + 2 / count
            )
