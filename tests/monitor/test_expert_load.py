"""The load of a mixture's experts is counted over the tokens that were generated, and reported."""

import pytest
import torch
from helpers import make_family, metrics_of, transformers_engine

from estune.monitor.expert_load import ExpertLoad, expert_metrics


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("moe"))


def test_an_even_load_has_the_entropy_1_and_a_collapsed_one_0():
    even = ExpertLoad.of([[[5, 5, 5, 5]]])
    assert even == ExpertLoad(pytest.approx(1.0), 0.25)
    assert ExpertLoad.of([[[0, 20, 0, 0]]]) == ExpertLoad(0.0, 1.0)


def test_the_entropy_is_the_mean_of_the_layers_and_the_share_the_worst():
    load = ExpertLoad.of([[[5, 5], [10, 0]]])
    assert load == ExpertLoad(pytest.approx(0.5), 1.0)


def test_a_member_that_several_workers_evaluated_has_the_sum_of_their_counts():
    assert ExpertLoad.of([[[4, 0]], [], [[0, 4]]]) == ExpertLoad(pytest.approx(1.0), 0.5)


def test_without_experts_there_are_no_metrics():
    assert ExpertLoad.of([[], []]) is None
    assert ExpertLoad.of([[[0, 0]]]) is None
    assert expert_metrics([None, None]) == {}


def test_the_metrics_are_means_over_members():
    loads = [ExpertLoad(0.5, 0.4), ExpertLoad(1.0, 0.2), None]
    metrics = expert_metrics(loads)
    assert metrics == {"moe/load_entropy": 0.75, "moe/busiest_share": pytest.approx(0.3)}


def test_the_engine_counts_what_the_routers_choose_for_each_token_that_it_generates(moe):
    """The same as one forward pass over prompt and completion says."""
    engine = transformers_engine(moe)
    prompts = [[3, 5, 7, 9, 11], [4, 6], [8, 8, 8]]
    completions = engine.generate(prompts, max_completion_length=6)
    counted = engine.expert_counts()
    wanted = torch.zeros(2, 12, dtype=torch.long)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion.ids])
        with torch.no_grad():
            routed = engine._model(ids, output_router_logits=True).router_logits
        used = slice(len(prompt) - 1, len(prompt) - 1 + 6)
        for layer, logits in enumerate(routed):
            chosen = logits.topk(2).indices[used]
            wanted[layer] += torch.bincount(chosen.flatten(), minlength=12)
    assert all(completion.clipped for completion in completions)
    assert counted == wanted.tolist()


def test_dense_models_are_not_counted(tiny):
    engine = transformers_engine(tiny)
    engine.generate(["cat"], max_completion_length=3)
    assert engine.expert_counts() == []


def test_a_step_of_a_mixture_reports_its_experts(moe, make_trainer):
    trainer = make_trainer(
        model=moe,
        engine="transformers",
        dtype="float32",
        population_size=2,
        max_steps=1,
        max_completion_length=6,
    )
    trainer.train()
    (line,) = [line for line in metrics_of(trainer) if "reward" in line]
    assert 0 < line["moe/load_entropy"] <= 1
    assert 1 / 12 <= line["moe/busiest_share"] <= 1 / 2
