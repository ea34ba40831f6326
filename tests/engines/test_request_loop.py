"""Requests join and leave a running batch, and get the answers that they would get alone."""

import itertools

import pytest
import torch
from arrivals import SHARED, arriving
from helpers import transformers_engine
from kinds_of_cache import CONFIGS, PROMPTS, saved

from estune import ESConfig
from estune.common.types import Completion, Request, Sampling, Unperturbed
from estune.engines.transformers import TransformersEngine, open_engine
from estune.errors import DataError, EngineError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import Layout, layout
from estune.theta.theta import Theta

ARRIVALS = {"all at once": [8], "one by one": [1] * 8, "in pairs, now and then": [2, 0, 0] * 4}
# Of a model whose positions depend on the longest row, no row is independent of its batch.
KINDS = [kind for kind in CONFIGS if kind != "positions by length"]


def engine(kind: str, folder, **settings) -> TransformersEngine:
    where = "cpu", torch.float32
    return open_engine(saved(kind, folder), Layout({}, {}), ESConfig(**settings), *where)


def theta_of(folder) -> Theta:
    checkpoint = open_checkpoint(folder)
    return Theta.load(checkpoint, layout(checkpoint).in_model)


def alone(one: TransformersEngine, prompts, budgets) -> list[Completion]:
    return [
        one.generate([prompt], max_completion_length=budget)[0]
        for prompt, budget in zip(prompts, budgets, strict=True)
    ]


@pytest.mark.parametrize("arrivals", ARRIVALS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_answered_as_alone_however_others_arrive(kind, arrivals, tmp_path):
    one = engine(kind, tmp_path)
    budgets = [20, 3, 17, 9, 20, 1, 12, 30]
    assert arriving(one, PROMPTS, ARRIVALS[arrivals], budgets) == alone(one, PROMPTS, budgets)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_more_requests_than_the_batch_has_room_for_wait_for_it(most, tmp_path):
    one = engine("llama", tmp_path, generation_batch_size=most)
    budgets = [5, 30, 1, 8, 9, 20, 3, 7]
    assert arriving(one, PROMPTS, [4, 0, 4], budgets) == alone(one, PROMPTS, budgets)
    assert not one.step()


def test_greedy_and_drawn_requests_share_a_batch(tmp_path):
    one = engine("llama", tmp_path)
    choices = [None, Sampling(0.7, 0.9, 1, 5), Sampling(1.5, 1.0, 1, 5), Sampling(0.7, 0.9, 1, 6)]
    numbers = []
    done = {}
    for sampling in choices:
        numbers.append(one.submit(Request(PROMPTS[0], 20, sampling=sampling)))
        done.update(one.step())
    while len(done) < len(choices):
        done.update(one.step())
    for number, sampling in zip(numbers, choices, strict=True):
        [wanted] = one.generate(PROMPTS[:1], max_completion_length=20, sampling=sampling)
        assert done[number] == wanted
    assert len({tuple(answer.ids) for answer in done.values()}) == len(choices)


def test_each_request_has_its_own_stop_strings(tiny):
    one = transformers_engine(tiny, stop=["zzz"])
    [whole] = one.generate(["cat"], max_completion_length=12)
    word = whole.text.split()[2]
    numbers = [one.submit(Request("cat", 12, stop=stop)) for stop in ((), (word,))]
    done = {}
    while len(done) < 2:
        done.update(one.step())
    assert done[numbers[0]] == whole
    assert done[numbers[1]].text == whole.text[: whole.text.index(word)]
    assert not done[numbers[1]].clipped


def test_an_aborted_request_is_gone_and_the_others_do_not_notice(tmp_path):
    one = engine("llama", tmp_path)
    wanted = alone(one, PROMPTS[:3], [20] * 3)
    first, second, third = (one.submit(Request(prompt, 20)) for prompt in PROMPTS[:3])
    done = dict(one.step())
    waiting = one.submit(Request(PROMPTS[3], 20))
    one.abort({second, waiting})
    while len(done) < 2:
        done.update(one.step())
    assert done == {first: wanted[0], third: wanted[2]}
    one.submit(Request(PROMPTS[4], 20))
    one.step()
    one.abort(range(100))
    assert not one.step()


def test_requests_begin_again_when_memory_runs_out(tmp_path, monkeypatch):
    one = engine("llama", tmp_path)
    budgets = [20] * 8
    wanted = alone(one, PROMPTS, budgets)
    generate, sizes = one._model.generate, []

    def cramped(input_ids, **settings):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError
        return generate(input_ids=input_ids, **settings)

    monkeypatch.setattr(one._model, "generate", cramped)
    one._loop.most = 8
    assert arriving(one, PROMPTS, [3, 3, 2], budgets) == wanted
    assert max(sizes) > 3
    assert one._loop.most == 2


@pytest.mark.parametrize("call", [2, 4])
def test_what_ended_before_memory_ran_out_is_not_lost(call, tmp_path, monkeypatch):
    one = engine("llama", tmp_path)
    wanted = alone(one, PROMPTS[:4], [1, 20, 1, 1])
    generate, calls = one._model.generate, itertools.count(1)

    def fails(**settings):
        if next(calls) == call:
            raise torch.OutOfMemoryError
        return generate(**settings)

    monkeypatch.setattr(one._model, "generate", fails)
    assert arriving(one, PROMPTS[:4], [2, 2], [1, 20, 1, 1]) == wanted


def test_a_prompt_that_fills_the_context_is_refused(tiny):
    one = transformers_engine(tiny)
    with pytest.raises(DataError, match="leaves no room in the model's context"):
        one.submit(Request([2] * one.context_length, 1))


def test_what_the_engine_completes_to_check_itself_is_no_request(tiny):
    one = transformers_engine(tiny)
    one.check(theta_of(tiny), Unperturbed(0))
    assert one.step() == []
    number = one.submit(Request("cat", 1))
    assert [ended for ended, _ in one.step()] == [number]


def test_a_request_that_ended_in_a_step_that_failed_can_be_aborted(tmp_path, monkeypatch):
    one = engine("a sliding window", tmp_path)
    numbers = [one.submit(Request(PROMPTS[0], 9))]
    one.step()
    numbers.append(one.submit(Request(PROMPTS[1], 9)))
    generate, calls = one._model.generate, itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(
            one._model, "generate", lambda **given: generate(**given) if next(calls) == 1 else 1 / 0
        )
        with pytest.raises(EngineError, match="the model failed"):
            one.step()
    one.abort(numbers)
    assert one.step() == []


def test_a_failure_of_the_model_is_an_error_and_later_requests_are_answered(tmp_path, monkeypatch):
    one = engine("llama", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(one._model, "generate", lambda **settings: 1 / 0)
        broken = one.submit(Request(PROMPTS[0], 4))
        with pytest.raises(EngineError, match="the model failed to generate"):
            one.step()
    one.abort({broken})
    assert arriving(one, PROMPTS[:1], [1], [4]) == alone(one, PROMPTS[:1], [4])


def test_a_member_that_is_loaded_later_sees_nothing_of_the_one_before(tmp_path):
    """Prompts that are long enough to share their beginnings, and an abort between the members."""
    one = engine("llama", tmp_path)
    prompts = [f"{SHARED} {end}" for end in ("cat", "dog", "x", "two")]
    budgets = [12] * 4
    first = arriving(one, prompts, [2, 2], budgets)
    for prompt in prompts:
        one.submit(Request(prompt, 12))
    one.step()
    one.abort(range(1000))
    with torch.no_grad():
        for parameter in one._model.parameters():
            parameter.mul_(1.3)
    second = arriving(one, prompts, [2, 2], budgets)
    assert second == alone(one, prompts, budgets)
    assert second != first
