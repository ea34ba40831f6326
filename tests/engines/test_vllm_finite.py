"""On vLLM a member with NaN or infinite logits is counted, and affects neither θ nor others."""

from dataclasses import replace

import numpy as np
import pytest
from both_engines import both_engines, load_both, same_answers
from helpers import journal, make_model
from vllm_child import SETTINGS, SHAPE, TEXT

from estune import ESConfig, ESTrainer, strategy
from estune.common.types import Member
from estune.theta.theta import Theta

pytestmark = pytest.mark.vllm
GOOD, HUGE = Member(1, 1, 0.02, "iid", 0), Member(1, 1, 1e18, "iid", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), **SHAPE)


@pytest.fixture(scope="module")
def there(folder):
    return both_engines(folder)


def test_a_member_that_overflows_answers_nothing_that_counts_and_the_next_one_is_right(there):
    for member, finite in (
        (GOOD, True),
        (HUGE, False),
        (GOOD, True),
    ):  # what is left in the cache of keys and values is not seen
        load_both(there, member)
        assert {
            answer.finite for answer in there.engine.generate(TEXT, max_completion_length=4)
        } == {finite}
    same_answers(there)


def test_it_is_told_again_as_long_as_the_member_stays(there):
    load_both(there, HUGE)
    for _ in range(2):
        assert not any(
            answer.finite for answer in there.engine.generate(TEXT[:2], max_completion_length=2)
        )


def vowels(completions):
    return [float(sum(map(text.count, "aeiou"))) for text in completions]


def test_a_run_leaves_it_out_counts_it_and_goes_on_with_the_others(
    folder, rows, tmp_path, monkeypatch, capsys
):
    settings = SETTINGS | {
        "engine": "vllm",
        "population_size": 4,
        "sigma": 0.05,
        "max_steps": 1,
        "max_completion_length": 8,
    }
    args = ESConfig(output_dir=str(tmp_path / "run"), **settings)
    broken, whole = strategy.ask(args, 1)[2], Theta.perturbed

    def huge(self, member, destination):
        if isinstance(member, Member) and member.seed == broken:
            member = replace(member, sigma=HUGE.sigma)
        return whole(self, member, destination)

    monkeypatch.setattr(Theta, "perturbed", huge)
    trainer = ESTrainer(str(folder), vowels, args, rows)
    before = {name: values.clone() for name, values in trainer.model.theta.tensors.items()}
    output = trainer.train()
    step = journal(tmp_path / "run")[1]
    assert [reward is None for reward in step["rewards"]] == [False, False, True, False]
    assert [coefficient == 0 for coefficient in step["coefficients"]] == [False, False, True, False]
    assert output.metrics["es/members_not_finite"] == output.metrics["es/members_left_out"] == 1
    assert output.metrics["reward"] == pytest.approx(
        np.mean([reward for reward in step["rewards"] if reward is not None])
    )
    assert "step 1: 1 members computed NaN or infinity and are left out" in capsys.readouterr().out
    moved = trainer.model.theta.tensors
    assert all(bool(theta.isfinite().all()) for theta in moved.values())
    assert any(not theta.equal(before[name]) for name, theta in moved.items())
