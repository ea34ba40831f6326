"""A reward model is named like any reward function, and scores what TRL would have it score."""

import pytest
import torch
from helpers import make_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from estune.common.types import Completion
from estune.errors import ConfigError
from estune.rewards.scoring import RewardFunctions
from estune.tasks.reward_functions import resolve_rewards


def reward_model(folder, labels=1):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=labels, pad_token_id=0))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model.eval()


@pytest.fixture
def judge(tmp_path):
    return tmp_path / "judge", reward_model(tmp_path / "judge")


def test_joined_text_gets_the_same_score_alone_and_in_a_batch(judge):
    folder, model = judge
    rewards = RewardFunctions(resolve_rewards(str(folder)))
    rows = [{"prompt": "what is "}, {"prompt": "the capital of "}]
    scores = rewards.score(
        rows, [Completion("blue", [1], False), Completion("the red cat is in the sky", [1], False)]
    )
    assert rewards.names == ["judge"]
    tokenizer = make_tokenizer()
    for text, reward in zip(
        ["what is blue", "the capital of the red cat is in the sky"], scores.total, strict=True
    ):
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        assert float(logits[0, 0]) == pytest.approx(reward, abs=1e-5)


def test_a_conversation_goes_through_the_chat_template(judge):
    folder, _ = judge
    rewards = RewardFunctions(resolve_rewards([str(folder)]))
    rows = [{"prompt": [{"role": "user", "content": "what is blue"}]}]
    (reward,) = rewards.score(rows, [Completion("the sky", [1], False)]).total
    text = make_tokenizer().apply_chat_template(
        [*rows[0]["prompt"], {"role": "assistant", "content": "the sky"}], tokenize=False
    )
    assert rewards.score([{"prompt": ""}], [Completion(text, [1], False)]).total[
        0
    ] == pytest.approx(reward, abs=1e-5)


def test_a_run_trains_on_it(judge, make_trainer):
    make_trainer(reward_funcs=str(judge[0]), max_steps=1).train()


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    reward_model(tmp_path / "judge", labels=3)
    with pytest.raises(ConfigError, match="judge has 3 labels; a reward model has one"):
        resolve_rewards(str(tmp_path / "judge"))


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match="cannot be loaded as a reward model") as refusal:
            resolve_rewards(name)
        assert "\n" not in str(refusal.value)
