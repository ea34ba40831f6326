"""Requests join and leave vLLM's batch, and get the answers that they would get alone."""

import pytest
import torch
from arrivals import SHARED, arriving
from both_engines import MEMBERS, both_engines
from vllm_child import SHAPE, TEXT

from estune.common.types import Request, Sampling, Unperturbed

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    from helpers import make_model

    torch.manual_seed(0)
    return both_engines(make_model(tmp_path_factory.mktemp("model"), **SHAPE))


@pytest.mark.parametrize("arrivals", [[9], [1] * 9, [2, 0, 0] * 5])
def test_a_request_is_answered_as_by_the_other_engine_however_others_arrive(there, arrivals):
    there.engine.load(there.theta, MEMBERS[1])
    there.reference.load(there.theta, MEMBERS[1])
    budgets = [20, 3, 17, 9, 20, 1, 12, 2, 16]
    found = arriving(there.engine, TEXT, arrivals, budgets)
    assert found == arriving(there.reference, TEXT, [9], budgets)


def test_drawn_requests_and_stop_strings_of_their_own_share_a_batch(there):
    sampling = Sampling(0.7, 0.9, 1, 5)
    [drawn] = there.engine.generate(["cat"], max_completion_length=12, sampling=sampling)
    [whole] = there.engine.generate(["cat"], max_completion_length=12)
    word = whole.text.split()[2]
    numbers = [
        there.engine.submit(Request("cat", 12, sampling=sampling)),
        there.engine.submit(Request("cat", 12, stop=[word])),
        there.engine.submit(Request("cat", 12)),
    ]
    done = {}
    while len(done) < 3:
        done.update(there.engine.step())
    assert done[numbers[0]] == drawn
    assert done[numbers[1]].text == whole.text[: whole.text.index(word)]
    assert done[numbers[2]] == whole


def test_a_member_that_is_loaded_after_an_abort_sees_nothing_of_the_one_before(there):
    """The prompts are long enough to share blocks of vLLM's prefix cache."""
    prompts = [f"{SHARED} {end}" for end in ("cat", "dog", "x", "two")]
    wanted = {}
    for variant in (MEMBERS[1], MEMBERS[3], Unperturbed(0)):
        there.reference.load(there.theta, variant)
        wanted[variant] = arriving(there.reference, prompts, [2, 2], [12] * 4)
    assert len({str(answers) for answers in wanted.values()}) == 3
    for variant, answers in wanted.items():
        there.engine.load(there.theta, variant)
        assert arriving(there.engine, prompts, [2, 2], [12] * 4) == answers
        left = [there.engine.submit(Request(prompt, 12)) for prompt in prompts]
        there.engine.step()
        there.engine.abort(left)
        assert not there.engine.step()
