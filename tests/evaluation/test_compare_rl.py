"""What estune reads from a completion by TRL: its tokens, text and reward, and where it stops."""

from types import SimpleNamespace

import pytest
import torch
from helpers import WORDS, make_family, make_tokenizer, short

from estune import strategy
from estune.config import ESConfig, RunConfig
from estune.engines.tokens import Tokenizer
from estune.errors import ConfigError
from estune.evaluation.compare.methods import METHODS
from estune.evaluation.compare.rl import _Scorer, _stop_at, _trainable, prompts
from estune.evaluation.compare.runs import Budget, runs
from estune.rewards.scoring import RewardFunctions

PAD, END, CAT, DOG, RED = 0, 1, *(5 + WORDS.index(word) for word in ("cat", "dog", "red"))


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer(tmp_path, ESConfig(), make_tokenizer())


def test_tokens_are_counted_without_the_end_and_rewards_are_of_the_row(tokenizer, rows):
    scorer = _Scorer(
        RewardFunctions.of([short], ESConfig(reward_workers=0)), rows, tokenizer, {END}, 4
    )
    rewards = scorer.score([[CAT, DOG, END], [RED, RED, RED, RED]], row=[0, 3], prompts=["", ""])
    assert scorer.tokens == 6
    assert rewards == [-abs(len("cat dog") - 5), -abs(len("red red red red") - 8)]
    assert scorer.reward == sum(rewards) / 2


def test_text_behind_a_stop_string_earns_nothing(tmp_path, rows):
    config = ESConfig(stop=["dog"], reward_workers=0)
    scorer = _Scorer(
        RewardFunctions.of([short], config),
        rows,
        Tokenizer(tmp_path, config, make_tokenizer()),
        {END},
        4,
    )
    assert scorer.score([[CAT, DOG, RED, RED]], row=[0]) == [-abs(len("cat ") - 5)]


def test_a_row_that_stopped_ends_with_the_end_token_for_trl(tokenizer):
    rows = torch.tensor([[9, CAT, DOG, PAD, PAD], [9, RED, RED, RED, RED], [9, RED, RED, CAT, DOG]])
    model = SimpleNamespace(generate=lambda **settings: rows.clone())
    _stop_at(model, tokenizer, ["dog"], END)
    out = model.generate(input_ids=rows[:, :1])
    assert out[0].tolist() == [9, CAT, DOG, END, END]
    assert out[1:].equal(rows[1:])
    assert model.generate(input_ids=rows[:, :1], stopping_criteria=None).equal(
        rows
    )  # an evaluation is left alone


def test_rl_asks_the_prompts_of_es_in_the_same_order(rows):
    config = RunConfig(model_name_or_path="m", batch_size=4)
    (run,) = runs(
        config, [METHODS["dr_grpo"]], {"dr_grpo": (1e-5,)}, 1, Budget(300, 30, 4), len(rows), {}
    )
    wanted = [row for step in range(1, 11) for row in strategy.batch(config, step, len(rows))]
    laid_out = prompts(run, rows)
    assert laid_out["row"] == wanted
    assert laid_out["prompt"] == [rows[row]["prompt"] for row in wanted]


def test_experts_that_are_fused_in_memory_get_gradients_all_or_none(tmp_path):
    folder = make_family(tmp_path / "moe", num_experts=4, num_hidden_layers=1)
    model = _trainable(folder, RunConfig(target_parameters=[r"experts\.\d+\.(gate|up)_proj"]))
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trained == ["model.layers.0.mlp.experts.gate_up_proj"]
    with pytest.raises(ConfigError, match=r"leaves out .*experts\.3") as refusal:
        _trainable(folder, RunConfig(target_parameters=[r"experts\.[012]\.(gate|up)_proj"]))
    assert "\n" not in str(refusal.value)


def test_only_the_parameters_that_are_named_get_gradients(tiny):
    model = _trainable(tiny, RunConfig(target_parameters=["q_proj"]))
    assert {
        name.split(".")[-2]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    } == {"q_proj"}
    assert all(parameter.requires_grad for parameter in _trainable(tiny, RunConfig()).parameters())
