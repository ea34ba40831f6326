"""vLLM's cache of prompts' beginnings holds nothing that another member computed."""

import sys
from types import SimpleNamespace

import pytest
import torch
from both_engines import BASE, MEMBERS, both_engines, load_both, same_answers
from helpers import make_model
from vllm_child import SETTINGS, SHAPE, TEXT

from estune import ESConfig
from estune.engines.vllm import VLLMEngine
from estune.errors import EngineError

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> SimpleNamespace:
    return both_engines(make_model(tmp_path_factory.mktemp("tied"), **SHAPE))


# the prefix cache


LONG = "what is the color of the sky " * 40  # more than two blocks of the cache


@pytest.fixture
def long(tied) -> list[list[int]]:
    start = tied.engine._tokenizer.encode([LONG])[0]
    return [[*start, word] for word in range(5, 11)]


@pytest.fixture(scope="module")
def uncached(tied) -> VLLMEngine:
    """A second engine of the same model, built after the noise kernels were compiled."""
    for _ in tied.theta.perturbed(
        MEMBERS[1], lambda name: torch.empty(tied.theta.tensors[name].shape)
    ):
        pass
    config = ESConfig(
        **SETTINGS | {"engine_kwargs": SETTINGS["engine_kwargs"] | {"enable_prefix_caching": False}}
    )
    return VLLMEngine(tied.checkpoint, tied.layout, config, "cpu", torch.float32)


def cached(engine: VLLMEngine, prompts) -> list[int]:
    """Return how many tokens of each prompt came from the cache."""
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": ids} for ids in prompts]
    settings = SamplingParams(temperature=0.0, max_tokens=1)
    outputs = engine._llm.generate(requests, settings, use_tqdm=False)
    return [output.num_cached_tokens or 0 for output in outputs]


def test_a_second_engine_can_be_built_after_noise_was_made(uncached, tied):
    assert "llvmlite.binding.ffi" in sys.modules
    uncached.load(tied.theta, MEMBERS[1])
    load_both(tied, MEMBERS[1])
    assert uncached.generate(TEXT, max_completion_length=12) == same_answers(tied)


def test_within_a_member_prompts_share_their_beginnings(tied, long):
    load_both(tied, BASE)
    first = cached(tied.engine, long)
    assert first[0] == 0 and max(first) >= 256
    assert min(cached(tied.engine, long)) >= 256


def test_no_member_sees_what_another_left_in_the_cache(tied, uncached, long):
    for member in MEMBERS[1:]:
        tied.engine.load(tied.theta, member)
        uncached.load(tied.theta, member)
        assert cached(uncached, long) == [0] * len(long)
        answers = tied.engine.generate(long, max_completion_length=8)
        assert answers == uncached.generate(long, max_completion_length=8)
        assert min(cached(tied.engine, long)) > 0  # the cache was in use


def test_without_the_reset_another_members_cache_would_be_seen(tied, uncached, long, monkeypatch):
    tied.engine.load(tied.theta, MEMBERS[1])
    tied.engine.generate(long, max_completion_length=8)
    with monkeypatch.context() as changed:
        changed.setattr(tied.engine, "_reset_cache", lambda: None)
        tied.engine.load(tied.theta, MEMBERS[3])
    uncached.load(tied.theta, MEMBERS[3])
    assert tied.engine.generate(long, max_completion_length=8) != uncached.generate(
        long, max_completion_length=8
    )
    tied.engine._reset_cache()
    assert cached(tied.engine, long)[0] == 0


def test_a_cache_that_a_running_request_holds_is_an_error(tied, long):
    from vllm import SamplingParams

    inner = tied.engine._llm.llm_engine
    inner.add_request(
        "under way",
        {"prompt_token_ids": long[0]},
        SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True),
    )
    inner.step()
    with pytest.raises(EngineError, match="kept its prefix cache"):
        tied.engine.load(tied.theta, MEMBERS[1])
    inner.abort_request(["under way"])
    inner.step()
    load_both(tied, MEMBERS[1])
    same_answers(tied)
